"""`Session`: the watch of one fit, as the callbacks of all frameworks run it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from bpkit.core.finding import Finding
from bpkit.diagnostics import Watcher, watch
from bpkit.diagnostics.hooks import Handle, innermost
from bpkit.diagnostics.script.losses import Losses
from bpkit.diagnostics.script.models import receiver, smallest, trainable


class Session:
    """Watches a model for each optimizer, and gives it its losses, noted where `backward` is called.

    With several optimizers, as of a GAN, each has the smallest part of the model that holds its parameters;
    a part is watched once.

    Args:
        model: what is trained.
        optimizers: torch's, or a framework's wrappers.
        logdir: where the logs go; of several parts, in directories by their names. None writes none.
        settings: further arguments of `bpkit.watch`; a `logdir` or `writer` of the user's among them counts.
        step: steps that were taken before.

    Attributes:
        watchers: by the part's qualified name, "" for the whole model.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Any],
        logdir: str | Path | None,
        settings: Mapping[str, Any],
        step: int = 0,
    ) -> None:
        self.watchers: dict[str, Watcher] = {}
        self._hooks: list[Handle] = []
        self._losses = Losses()
        inner = [innermost(each) for each in optimizers]
        for optimizer in inner:
            name = _part(model, optimizer) if len(inner) > 1 else ""
            if name not in self.watchers:
                where = {} if settings.keys() & {"logdir", "writer"} else {"logdir": logdir}
                given = {**where, **settings}
                if name and given.get("logdir") is not None:
                    given["logdir"] = Path(given["logdir"]) / name
                watcher = watch(model.get_submodule(name), optimizer, **given)
                self.watchers[name] = watcher
                self._deliver(watcher, optimizer)
                if step and len(inner) == 1:
                    watcher.step = step
        self._losses.__enter__()

    @property
    def findings(self) -> list[Finding]:
        return [finding for watcher in self.watchers.values() for finding in watcher.findings]

    def summary(self) -> str:
        """The verdict; of several parts, each under its name."""
        return "\n".join(
            f"{name}: {watcher.summary()}" if name else watcher.summary()
            for name, watcher in self.watchers.items()
        )

    def validation(self, value: Tensor | float) -> None:
        """The loss on data that is not trained on."""
        for watcher in self.watchers.values():
            watcher.validation(value)

    def close(self) -> None:
        """Take all hooks away and finish the logs; findings stay."""
        self._losses.close()
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        for watcher in self.watchers.values():
            watcher.close()

    def _deliver(self, watcher: Watcher, optimizer: Optimizer) -> None:
        """Give the watcher its loss after each step; registered behind the watcher's own hook."""
        tally = self._losses.tally()
        known = False

        def stepped(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            nonlocal tally, known
            loss = tally.take()
            if loss is not None:
                watcher.loss(loss)
            if not known and (parameter := receiver(optimizer)) is not None:
                self._losses.forget(tally)
                tally, known = self._losses.tally(parameter), True

        self._hooks.append(optimizer.register_step_post_hook(stepped))


def _part(model: nn.Module, optimizer: Optimizer) -> str:
    """Qualified name of the smallest module in the model that holds what the optimizer trains."""
    names = {id(module): name for name, module in model.named_modules()}
    part = smallest(model.modules(), trainable(optimizer))
    return "" if part is None else names[id(part)]
