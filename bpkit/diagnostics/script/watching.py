"""`Watching`: finds the models that a script trains, and watches each from its first step on."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from weakref import WeakKeyDictionary, ref

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from bpkit.diagnostics.hooks import Handle
from bpkit.diagnostics.script.calls import Calls
from bpkit.diagnostics.script.losses import Losses
from bpkit.diagnostics.script.models import free, model_of, named, outermost, owner, receiver, trainable
from bpkit.diagnostics.script.watched import Watched
from bpkit.diagnostics.shards import is_distributed
from bpkit.diagnostics.watch import watch

logger = logging.getLogger("bpkit")

LOOK = 20  # steps of optimizers for which calls of modules are noted, at most
CEDED = 20  # steps that another optimizer takes with a model, its own none, until the model is the other's


@dataclass
class _Seen:
    """An optimizer that has stepped: how often, with which model, and since when."""

    steps: int = 0
    model: Watched | None = None


class Watching:
    """A context manager: within it, every model that an optimizer trains in this process is watched.

    An optimizer's first step tells its model, from the modules that were called before it. Until then a
    hook on all modules notes their calls; afterwards there are two calls of Python for a step, and one for
    a backward. When another optimizer begins to step, the hook is back for it.

    Args:
        logdir: where the logs go. A lone model's go there, those of several into directories in it.
        settings: further arguments of `watch`.

    Attributes:
        watched: the models, in the order of their first steps.
        unknown: steps of optimizers whose model was not found.
    """

    def __init__(self, logdir: Path | None, settings: Mapping[str, Any] | None = None) -> None:
        self.watched: list[Watched] = []
        self.unknown = 0
        self.logdir = logdir
        self._settings = dict(settings or {})
        self._calls, self._losses = Calls(), Losses()
        self._all = self._losses.tally()  # for a model that is found after the first backward
        self._turns = 0  # steps of optimizers since calls are noted
        self._seen: WeakKeyDictionary[Optimizer, _Seen] = WeakKeyDictionary()
        self._hooks: list[Handle] = []
        self._process = os.getpid()
        self._broken = False

    def __enter__(self) -> Watching:
        self._losses.__enter__()
        self._hooks = [
            register_optimizer_step_pre_hook(lambda optimizer, *_: self._guarded(self._before, optimizer)),
            register_optimizer_step_post_hook(lambda optimizer, *_: self._guarded(self._after, optimizer)),
        ]
        self._calls.begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._calls.end()
        for hook in self._hooks:
            hook.remove()
        self._losses.close()
        if not self.forked:
            for each in self.watched:
                each.close()

    @property
    def forked(self) -> bool:
        """Whether this is a child of the process that watches: it watches nothing."""
        return os.getpid() != self._process

    def _guarded(self, part: Callable[[Optimizer], None], optimizer: Optimizer) -> None:
        """Whatever fails in the looking for models, the training goes on."""
        if self._broken or self.forked:
            return
        try:
            part(optimizer)
        except Exception as error:
            self._broken = True
            self._calls.end()
            logger.warning("bpkit: no more models are looked for: %r", error)

    def _before(self, optimizer: Optimizer) -> None:
        seen = self._seen.get(optimizer)
        if seen is None:
            seen = self._seen[optimizer] = _Seen()
            self._begin_looking()
        # Of sharded parameters every rank must have begun before one asks whether all have.
        if self._calls.open and not _sharded(optimizer):
            self._look(optimizer, seen, self._all.total)

    def _after(self, optimizer: Optimizer) -> None:
        seen = self._seen[optimizer]
        seen.steps += 1
        self._all.take()
        if seen.model is None and self._calls.open:
            # Of an optimizer that runs the model inside its step, in a closure, the calls are known by now.
            # How many of its losses were of the step's last point, nobody says.
            self._look(optimizer, seen, None)
        if seen.model is None:
            self.unknown += 1
        elif seen.model.optimizer() is optimizer:
            seen.model.passed = 0
            loss = seen.model.tally.take()
            if loss is not None and seen.model.watcher is not None:
                seen.model.watcher.loss(loss)
        else:
            self._cede(seen.model, optimizer, seen)
        if self._calls.open:
            self._turns += 1
            if self._turns >= LOOK or (self._turns > 1 and not self._missing()):
                self._calls.end()
                self._losses.forget(self._all)

    def _begin_looking(self) -> None:
        self._turns = 0
        for each in self.watched:
            if each.over:
                self._finish(each)
        if not self._calls.open:
            self._calls.begin()
            self._all = self._losses.tally()

    def _look(self, optimizer: Optimizer, seen: _Seen, loss: Tensor | None) -> None:
        """Find the optimizer's model; a step later, the larger one that this turns out to be a part of."""
        if seen.model is not None and seen.steps != 1:
            return
        called = list(self._calls.modules)
        model = model_of(optimizer, called)
        if model is None and seen.steps > 1:  # compiled, so that no call shows
            model = owner(trainable(optimizer))
        if model is None:
            return
        before = None if seen.model is None else seen.model.model()
        if before is None:
            same = [each for each in self.watched if each.model() is model and not each.over]
            seen.model = same[0] if same else self._watch(model, optimizer, seen.steps, loss)
        elif before is not model and before in model.modules() and seen.model is not None:
            self._replace(seen.model, model, optimizer)

    def _watch(self, model: nn.Module, optimizer: Optimizer, steps: int, loss: Tensor | None) -> Watched:
        name = free(named(model), [each.name for each in self.watched])
        logdir = self.logdir
        if logdir is not None and (self.watched or self._missing(model)):
            logdir = logdir / _directory(name)
        found = Watched(name, logdir, ref(optimizer))
        self._start(found, model, optimizer, steps)
        found.tally = self._losses.tally(receiver(optimizer), loss)
        self.watched.append(found)
        return found

    def _replace(self, found: Watched, model: nn.Module, optimizer: Optimizer) -> None:
        """The same run goes on with a larger model."""
        step = found.steps
        found.close()
        self._start(found, model, optimizer, step)
        if len(self.watched) == 1:
            found.name = named(model)

    def _cede(self, found: Watched, optimizer: Optimizer, seen: _Seen) -> None:
        """Of several optimizers of a model the first tells its steps; when it has ended, another does."""
        if found.watcher is not None and found.watcher.optimizer is optimizer:
            found.optimizer, found.passed = ref(optimizer), 0  # the watch has followed by itself
            return
        found.passed += 1
        model = found.model()
        if model is not None and (found.over or found.passed >= CEDED):
            self._finish(found)
            seen.model = self._watch(model, optimizer, seen.steps, None)

    def _finish(self, found: Watched) -> None:
        found.close()
        self._losses.forget(found.tally)

    def _start(self, found: Watched, model: nn.Module, optimizer: Optimizer, step: int) -> None:
        scaler = self._losses.scaler(optimizer)
        found.hold(model, watch(model, optimizer, logdir=found.logdir, scaler=scaler, **self._settings))
        if step and found.watcher is not None:
            found.watcher.step = step

    def _missing(self, *models: nn.Module) -> bool:
        """Whether a module was called that is trained, it seems, but by no optimizer seen so far."""
        known = [*models, *(model for each in self.watched if (model := each.model()) is not None)]
        covered = {id(parameter) for model in known for parameter in model.parameters()}
        return any(
            parameter.requires_grad and id(parameter) not in covered
            for module in outermost(list(self._calls.modules))
            for parameter in module.parameters()
        ) or any(seen.model is None for seen in self._seen.values() if not models)


def _sharded(optimizer: Optimizer) -> bool:
    return any(is_distributed(each) for group in optimizer.param_groups for each in group["params"])


def _directory(name: str) -> str:
    """A class may be called anything; a directory may not."""
    return "".join(each if each.isalnum() or each in "-_." else "_" for each in name).lstrip(".") or "model"
