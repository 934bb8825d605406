"""`Probe`: takes samples of a model, with the instruments that somebody needs and no others."""

from __future__ import annotations

from collections.abc import Iterable
from operator import is_

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from bpkit.diagnostics.hooks import Handle, on_gradients
from bpkit.diagnostics.instruments import Figures, Instrument, to_host
from bpkit.diagnostics.network import describe
from bpkit.diagnostics.sample import Reading, Sample


class Probe:
    """The instruments at one model. A sampled step is `arm`, `before_step`, `after_step`, `sample`.

    Args:
        model: what is measured; every parameter once, a shared one under its first name.
        needs: the instruments.
        scaler: mixed precision's loss scaler, if there is one.
    """

    def __init__(
        self, model: nn.Module, needs: Iterable[type[Instrument]], scaler: GradScaler | None = None
    ) -> None:
        self._model = model
        self.parameters = list(model.parameters())
        self._instruments = {need: need(self.parameters, scaler) for need in needs}
        self._listening = [
            each
            for each in self._instruments.values()
            if type(each).on_gradient is not Instrument.on_gradient
        ]
        self._hooks: list[Handle] = []
        self._arrived: dict[int, None] = {}  # in order
        self._described = False
        self.armed = False

    def arm(self) -> None:
        """The step that begins now is sampled: listen to its gradients."""
        self.disarm()
        self._look_again()
        self.armed = True
        self._arrived.clear()
        self._hooks = on_gradients(self.parameters, self._on_gradient)
        for instrument in self._instruments.values():
            instrument.arm()

    def disarm(self) -> None:
        """Take the hooks on the parameters away."""
        self.armed = False
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def before_step(self, optimizer: Optimizer) -> None:
        """The optimizer's step begins."""
        if self._look_again():
            self.arm()
        with torch.no_grad():
            for instrument in self._instruments.values():
                instrument.before_step(optimizer)

    def after_step(self, optimizer: Optimizer) -> None:
        """The optimizer's step is over."""
        with torch.no_grad():
            for instrument in self._instruments.values():
                instrument.after_step(optimizer)

    def sample(
        self,
        step: int,
        loss: Tensor | float | None = None,
        loss_step: int | None = None,
        validation: Tensor | float | None = None,
    ) -> Sample:
        """What this step showed; one copy from the device, which waits for it."""
        if not self._described:  # by now lazy parameters in use have their shapes
            self._network = describe(self._model)
            self._compiled = any(map(_is_compiled, self._model.modules()))
            self._described = not any(map(nn.parameter.is_lazy, self.parameters))
        figures: list[Tensor | float | None] = [loss, validation]
        with torch.no_grad():
            read: list[Figures] = [instrument.read() for instrument in self._instruments.values()]
            for each in read:
                figures.extend(each)
            numbers = to_host(figures)
        count, readings = len(self.parameters), {}
        for place, (need, instrument) in enumerate(self._instruments.items()):
            start = 2 + place * count
            readings[need] = Reading(tuple(numbers[start : start + count]), instrument.provenance)
        return Sample(
            step=step,
            network=self._network,
            readings=readings,
            loss=numbers[0],
            loss_step=loss_step,
            validation=numbers[1],
            order=self._order(),
        )

    def _look_again(self) -> bool:
        """Whether the model has other parameters than before: layers come and go while a model trains.

        The instruments hold the same list. A step in which that happens is sampled without what arrived.
        """
        now = list(self._model.parameters())
        if len(now) == len(self.parameters) and all(map(is_, now, self.parameters)):
            return False
        self.parameters[:] = now
        self._described = False
        return True

    def _on_gradient(self, index: int, grad: Tensor) -> None:
        self._arrived[index] = None
        if self._listening:
            with torch.no_grad():
                for instrument in self._listening:
                    instrument.on_gradient(index, grad)

    def _order(self) -> tuple[int, ...]:
        """Parameters from the input to the output: gradients reach the last layer first.

        Empty, for registration order, when none was seen to arrive, and for a compiled model, whose
        gradients arrive all at once.
        """
        if not self._arrived or self._compiled:
            return ()
        silent = [index for index in range(len(self.parameters)) if index not in self._arrived]
        return (*reversed(self._arrived), *silent)


def _is_compiled(module: nn.Module) -> bool:
    """By `torch.compile(module)` or by `module.compile()`."""
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
