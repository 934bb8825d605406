"""Modules that cannot be copied, saved or built as torch's can."""

from __future__ import annotations

import torch
from torch import nn

from bpkit.core.spec import LayerSpec, Sample

from .mutant import Mutant, X, randn


class Affine(nn.Module):
    """Right: a parameter and a buffer."""

    def __init__(self, features: int = 6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(1, 2, features))
        self.register_buffer("shift", torch.ones(features))

    def forward(self, x):
        return x * self.weight + self.shift


class Unpicklable(Affine):
    def __init__(self, features: int = 6) -> None:
        super().__init__(features)
        self.activation = lambda x: x

    def forward(self, x):
        return self.activation(super().forward(x))


class LosesState(Affine):
    """What it learned is in an attribute that pickling leaves out."""

    def __init__(self, features: int = 6) -> None:
        super().__init__(features)
        self.gain = 3.0

    def forward(self, x):
        return super().forward(x) * self.gain / 3

    def __getstate__(self):
        return {name: value for name, value in self.__dict__.items() if name != "gain"}

    def __setstate__(self, state):
        super().__setstate__(state)
        self.gain = 1.0


class SharesMemory(Affine):
    def __deepcopy__(self, memo):
        other = SharesMemory(len(self.shift)).to(self.shift.dtype)
        other.weight.data = self.weight.data
        other.shift = self.shift
        return other


class CopiesToBase(Affine):
    def __deepcopy__(self, memo):
        other = Affine(len(self.shift)).to(self.shift.dtype)
        other.load_state_dict(self.state_dict())
        return other


class RenamesState(Affine):
    def state_dict(self, *args, **kwargs):
        state = super().state_dict(*args, **kwargs)
        state["gamma"] = state.pop("weight")
        return state

    def load_state_dict(self, state, *args, **kwargs):
        state = dict(state)
        state["weight"] = state.pop("gamma")
        return super().load_state_dict(state, *args, **kwargs)


class IgnoresMeta(Affine):
    def __init__(self, features: int = 6) -> None:
        super().__init__(features)
        self.shift = torch.ones(features, device="cpu")


class ReadsValues(Affine):
    """Decides by a value in its constructor, which the meta device has none of."""

    def __init__(self, features: int = 6) -> None:
        super().__init__(features)
        self.large = bool(self.weight.max() > 10)


class DropsInEvaluation(nn.Dropout):
    """Right in training, which is the mode that it is handed over in."""

    def forward(self, x):
        return nn.functional.dropout(x, self.p, training=True)


def spec(module: type[nn.Module]) -> LayerSpec:
    return LayerSpec(
        name=module.__name__,
        module=module,
        reference=Affine,
        saves="the input",
        saved_bytes=lambda module, inputs, output: inputs[0].nbytes,
        samples=lambda: [Sample(inputs=(randn(4, 6),))],
    )


MUTANTS = [
    Mutant(
        Unpicklable(),
        (X,),
        Affine(),
        "module",
        story="a lambda as an attribute: lucidrains/x-transformers#52",
    ),
    Mutant(LosesState(), (X,), Affine(), "module", story="an attribute that pickling leaves out"),
    Mutant(SharesMemory(), (X,), Affine(), "module", story="a copy that trains the original"),
    Mutant(CopiesToBase(), (X,), Affine(), "module", story="a copy of another class than its original"),
    Mutant(spec(RenamesState), (), None, "module", story="a state_dict under other names than the twin's"),
    Mutant(
        spec(IgnoresMeta),
        (),
        None,
        "module",
        story="a table made on a fixed device",
    ),
    Mutant(
        DropsInEvaluation(), (X,), nn.Dropout(), "parity", story="eval() forgotten, the mode left at True"
    ),
    Mutant(spec(ReadsValues), (), None, "module", story="a constructor that reads a value"),
]
