"""`Modes`: in which mode modules run that train in one way and evaluate in another."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bpkit.diagnostics.hooks import Handle, ModuleHook
from bpkit.diagnostics.instruments.figures import Figure, Figures
from bpkit.diagnostics.instruments.instrument import Instrument
from bpkit.diagnostics.sample import Provenance
from bpkit.diagnostics.subject import Subject

_NORMS = (nn.modules.batchnorm._BatchNorm,)
_RANDOM = (nn.modules.dropout._DropoutNd, nn.AlphaDropout, nn.RReLU)


class Modes(Instrument):
    """Of each BatchNorm and dropout, 1 and 0 for yes and no; None of other modules.

    `evaluating`: a step that trains ran it in `eval()`; `trainable`: its own parameters, or for a dropout
    any of the model's, require a gradient, and it would do something in training; `validated_in_training`:
    every forward without gradients since the last sample ran in training mode, and there was one.
    """

    of = "modules"
    columns = ("evaluating", "trainable", "validated_in_training")
    provenance = Provenance("forward", reduced=False)

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self._evaluations = {True: 0, False: 0}  # forwards without gradients, by the model's mode
        self._hooks: list[Handle] = []
        if subject.hookable:
            hook = ModuleHook(self._count)
            self._hooks.append(subject.model.register_forward_pre_hook(hook, prepend=True))

    def _count(self, module: nn.Module, args: Any) -> None:
        if not torch.compiler.is_compiling() and not torch.is_grad_enabled():
            self._evaluations[module.training] += 1

    def arm(self) -> None:
        self._seen: dict[int, bool] = {}

    def on_input(self, call: int, place: int, module: nn.Module, inputs: list[Tensor]) -> None:
        if isinstance(module, (*_NORMS, *_RANDOM)):
            self._seen[place] = module.training

    def read(self, lived: frozenset[int]) -> Figures:
        training, evaluating = self._evaluations[True], self._evaluations[False]
        self._evaluations = {True: 0, False: 0}
        any_trains = any(each.requires_grad for each in self.subject.parameters)
        found: list[Figure] = []
        for place, module in enumerate(self.subject.modules):
            if not isinstance(module, (*_NORMS, *_RANDOM)):
                found.append(None)
                continue
            if isinstance(module, _NORMS):
                does = module.track_running_stats and (
                    any(each.requires_grad for each in module.parameters(recurse=False))
                )
            else:
                does = any_trains and getattr(module, "p", 1.0) > 0
            validated = training > 0 and evaluating == 0
            found.append((float(not self._seen.get(place, True)), float(does), float(validated)))
        return found

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()
