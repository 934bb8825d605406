"""`Subject`: the model under watch, its parameters and modules as they are at the moment."""

from __future__ import annotations

import sys
from operator import is_
from typing import Any

import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler, OptState

from bpkit.core.errors import BpkitError
from bpkit.diagnostics.network import Network, describe, leaves
from bpkit.diagnostics.shards import is_sharded

_LOOK_UP = 24  # frames between an optimizer's step and the scaler's that called it: frameworks wrap


class Subject:
    """What instruments measure. The lists stay the same objects while their contents follow the model.

    Args:
        model: any module; a parameter or a module that is shared counts once, under its first name.
        scaler: mixed precision's loss scaler; None finds it at the first step that one takes.

    Attributes:
        parameters: those of `model.parameters()`, in that order.
        modules: those without children, and those that own parameters, in registration order.
        functional: activations that are called as functions: by the place of the module whose output they
            take, the module of the same name (`"ReLU"`); None until a forward was seen.
    """

    def __init__(self, model: nn.Module, scaler: GradScaler | None = None) -> None:
        self.model = model
        self.parameters: list[nn.Parameter] = list(model.parameters())
        self.modules: list[nn.Module] = [module for _, module in leaves(model)]
        self._all = list(model.modules())
        self._scaler, self._given = scaler, scaler is not None
        self._network: Network | None = None
        self.functional: dict[int, str] | None = None

    @property
    def scaler(self) -> GradScaler | None:
        """The loss scaler, if one is at work."""
        return self._scaler if self._scaler is not None and self._scaler.is_enabled() else None

    @property
    def network(self) -> Network:
        """The model, described; lazy parameters in use have their shapes once a step was taken."""
        if self._network is None:
            network = describe(self.model)
            if any(map(nn.parameter.is_lazy, self.parameters)):
                return network
            self._network = network
        return self._network

    @property
    def hookable(self) -> bool:
        """Whether a hook on the model itself runs eagerly: `model.compile()` would compile it in."""
        return getattr(self.model, "_compiled_call_impl", None) is None

    @property
    def compiled(self) -> bool:
        """Whether any of it runs under `torch.compile`: module hooks do not fire there."""
        return any(
            hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
            for module in self.model.modules()
        )

    @property
    def sharded(self) -> bool:
        """Whether a rank has only a part of some parameters (FSDP2, tensor parallelism)."""
        return any(map(is_sharded, self.parameters))

    def activation(self, place: int) -> str:
        """What a module is, or what is done to its output: `"ReLU"` for a ReLU and what `F.relu` takes."""
        return (self.functional or {}).get(place) or self.network.modules[place].kind

    def look_again(self) -> bool:
        """Whether the model has other parameters or modules than before: layers come and go."""
        parameters, modules = list(self.model.parameters()), list(self.model.modules())
        if _same(parameters, self.parameters) and _same(modules, self._all):
            return False
        self.parameters[:], self._all = parameters, modules
        self.modules[:] = [module for _, module in leaves(self.model)]
        self._network = self.functional = None
        return True

    def find_scaler(self) -> None:
        """Called inside an optimizer's step: a `GradScaler` that takes it is one of the callers.

        One that was found, and that no optimizer steps through any more, is over.
        """
        if self._given or (self.scaler is not None and self.scaler._per_optimizer_states):
            return
        self._scaler = None
        frame: Any = sys._getframe(1)
        for _ in range(_LOOK_UP):
            if frame is None:
                return
            if frame.f_code.co_name == "step" and isinstance(frame.f_locals.get("self"), GradScaler):
                self._scaler = frame.f_locals["self"]
                return
            frame = frame.f_back

    def still_scaled(self, optimizer: Any) -> bool:
        """Whether the step runs on scaled gradients: neither `unscale_` nor a fused kernel divided them.

        Raises:
            BpkitError: nobody can tell, for the optimizer steps without the scaler.
        """
        if self.scaler is None:
            return False
        states = self.scaler._per_optimizer_states
        if id(optimizer) not in states:
            if not self._given:
                self._scaler = None  # it takes the steps of another optimizer by now
                return False
            raise BpkitError(
                "the gradients may be scaled or not: the optimizer does not step through the scaler that "
                "watch was given; call scaler.step(optimizer), or watch without scaler="
            )
        stage = states[id(optimizer)]["stage"]
        return stage is OptState.READY and getattr(optimizer, "grad_scale", None) is None

    def unscaled(self, value: torch.Tensor | None) -> torch.Tensor | None:
        """A figure of scaled gradients over the loss scale, which stays on its device."""
        scale = None if self.scaler is None else self.scaler._scale
        return value if value is None or scale is None else value / scale.to(value.device)


def _same(now: list[Any], before: list[Any]) -> bool:
    return len(now) == len(before) and all(map(is_, now, before))
