r"""The fixed thresholds that SageMaker Debugger documents for its built-in rules, as a monitor of their own.

Source: "List of Debugger built-in rules", Amazon SageMaker's developer guide (parameter tables; the
defaults below). Each rule is evaluated at every step, as the service does on every saved step.

| rule | default |
|---|---|
| VanishingGradient | mean \|g\| of a layer < 1e-7 |
| ExplodingTensor | NaN or infinity in a gradient, a weight or a loss |
| DeadRelu | over 50 % of a layer's units active in under 1 % of the cases |
| SaturatedActivation | over 50 % of units with input in ±9.4999 (tanh), -23 … 17 (sigmoid) in under 1 % |
| WeightUpdateRatio | ‖update‖ ÷ ‖weight‖ outside 1e-8 … 10 |
| AllZero | a weight or gradient that is all zeros |
| UnchangedTensor | a weight equal over 3 steps (rtol 1e-5, atol 1e-8) |
| LossNotDecreasing | loss after 10 steps not 0.1 % lower |
| Overfit | (validation - train) ÷ train > 0.1, once |
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

VANISHING_GRADIENT = 1e-7
INACTIVITY, INACTIVE_UNITS = 0.01, 0.5
TANH_INPUT = 9.4999
SIGMOID_INPUT = (-23.0, 16.99999)
LARGE_UPDATE, SMALL_UPDATE, EPSILON = 10.0, 1e-8, 1e-9
UNCHANGED_STEPS, RTOL, ATOL = 3, 1e-5, 1e-8
LOSS_STEPS, LOSS_DECREASE = 10, 0.001
OVERFIT_RATIO = 0.1


@dataclass(frozen=True)
class Rule:
    """A rule of the service's, and the kinds of bpkit's that it may mean."""

    name: str
    kinds: str


VANISHING = Rule("VanishingGradient", "vanishing dead disconnected")
EXPLODING = Rule("ExplodingTensor", "exploding nonfinite divergence")
DEAD = Rule("DeadRelu", "dead")
SATURATED = Rule("SaturatedActivation", "saturated")
UPDATE = Rule("WeightUpdateRatio", "update_ratio stuck frozen")
ZERO = Rule("AllZero", "zero disconnected dead")
UNCHANGED = Rule("UnchangedTensor", "stuck frozen disconnected update_ratio")
LOSS = Rule("LossNotDecreasing", "plateau divergence")
OVERFIT = Rule("Overfit", "overfit")


class Thresholds:
    """Evaluates the rules; `found` has each rule's first step and all its layers."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.found: dict[Rule, tuple[int, list[str]]] = {}
        self._parameters = dict(model.named_parameters())
        self._before: dict[str, Tensor] = {}
        self._unchanged: dict[str, int] = defaultdict(int)
        self._losses: list[float] = []
        self._step = 1
        self._loss: float | None = None
        self._hooks: list[Any] = [optimizer.register_step_pre_hook(lambda *_: self._before_update())]
        for name, module in model.named_modules():
            if isinstance(module, nn.ReLU):
                self._hooks.append(module.register_forward_hook(self._relu(name)))
            elif isinstance(module, nn.Tanh | nn.Sigmoid):
                self._hooks.append(module.register_forward_hook(self._squashing(name)))

    def step(self, loss: float | None, step: int) -> None:
        """After the optimizer's step."""
        self._after_update()
        if loss is not None:
            self._loss = loss
            self._losses.append(loss)
            if not math.isfinite(loss):
                self._note(EXPLODING, ())
            if len(self._losses) > LOSS_STEPS and step % LOSS_STEPS == 0:
                before = self._losses[-1 - LOSS_STEPS]
                if loss > before * (1 - LOSS_DECREASE):
                    self._note(LOSS, ())
        self._step = step + 1

    def validation(self, value: float) -> None:
        if self._loss is not None and value - self._loss > OVERFIT_RATIO * self._loss:
            self._note(OVERFIT, ())

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _note(self, rule: Rule, layers: Iterable[str]) -> None:
        _, known = self.found.setdefault(rule, (self._step, []))
        known.extend(layer for layer in layers if layer not in known)

    def _before_update(self) -> None:
        self._before = {name: each.detach().clone() for name, each in self._parameters.items()}
        for name, gradient in self._gradients():
            if not torch.isfinite(gradient).all():
                self._note(EXPLODING, [layer_of(name)])
            elif not gradient.any():
                self._note(ZERO, [layer_of(name)])
            if name.endswith("weight") and gradient.abs().mean() < VANISHING_GRADIENT:
                self._note(VANISHING, [layer_of(name)])

    def _after_update(self) -> None:
        for name, before in self._before.items():
            after = self._parameters[name].detach()
            if not name.endswith("weight"):
                continue
            ratio = (after - before).norm() / (before.norm() + EPSILON)
            if not SMALL_UPDATE <= ratio <= LARGE_UPDATE:
                self._note(UPDATE, [layer_of(name)])
            if not torch.isfinite(after).all():
                self._note(EXPLODING, [layer_of(name)])
            elif not after.any():
                self._note(ZERO, [layer_of(name)])
            same = torch.allclose(after, before, rtol=RTOL, atol=ATOL)
            self._unchanged[name] = self._unchanged[name] + 1 if same else 0
            if self._unchanged[name] >= UNCHANGED_STEPS:
                self._note(UNCHANGED, [layer_of(name)])

    def _gradients(self) -> list[tuple[str, Tensor]]:
        return [
            (name, each.grad.to_dense() if each.grad.is_sparse else each.grad)
            for name, each in self._parameters.items()
            if each.grad is not None
        ]

    def _relu(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if module.training:
                active = (output.detach() > 0).float().transpose(0, 1).flatten(1).mean(1)
                if (active < INACTIVITY).float().mean() > INACTIVE_UNITS:
                    self._note(DEAD, [name])

        return hook

    def _squashing(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if module.training:
                low, high = (-TANH_INPUT, TANH_INPUT) if isinstance(module, nn.Tanh) else SIGMOID_INPUT
                entered = inputs[0].detach()
                inside = ((entered > low) & (entered < high)).float().transpose(0, 1).flatten(1).mean(1)
                if (inside < INACTIVITY).float().mean() > INACTIVE_UNITS:
                    self._note(SATURATED, [name])

        return hook


def layer_of(parameter: str) -> str:
    """The qualified name of the module that owns a parameter."""
    return parameter.rpartition(".")[0]
