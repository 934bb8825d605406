"""`PerSample`: how long the gradients of single cases are, layer by layer."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from bpkit.diagnostics.instruments.contributions import Formula, formula, wide
from bpkit.diagnostics.instruments.figures import Figure, Figures
from bpkit.diagnostics.instruments.instrument import Instrument
from bpkit.diagnostics.network import Network
from bpkit.diagnostics.ranks import Ranks
from bpkit.diagnostics.sample import Provenance
from bpkit.diagnostics.shards import is_distributed
from bpkit.diagnostics.subject import Subject

CASES = 8  # of a batch, at most, and at most a quarter of it: a twelfth of a step's products


class PerSample(Instrument):
    """Mean of ‖g_n‖² over some cases n of the batch, and how many cases B it has.

    g_n is B times what case n adds to the gradient of the layer's parameters: for a loss that is a mean over
    cases the gradient of its own loss. Sum and mean cannot be told apart by gradients, and need not be: of a
    sum g_n and the gradient are both B times as long, and the noise scale and the signal-to-noise ratio, in
    which lengths cancel, are the same.

    Cases are what axis 0 of a layer's input counts. There is no figure of a layer whose axis 0 differs from
    that of most others, of one without a formula (`contributions.py`), of one that shares its parameters with
    another, of one that two backwards went through, and of a model with a sequence-first module
    (`batch_first=False`), whose axis 0 is time.

    Several backwards before a step are one batch: the cases of all their forwards. With several ranks B is
    that of all, each taken to have as many; the mean is of this rank's own.
    """

    of = "modules"
    columns = ("square", "cases")
    provenance = Provenance("backward", reduced=False)
    integers: ClassVar[bool] = True

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self._backwards = 0
        self._formulas: dict[int, Formula] = {}
        self._network: Network | None = None

    def arm(self) -> None:
        if self._network is not self.subject.network:
            self._network, self._formulas = self.subject.network, _formulas(self.subject)
        self._runs: dict[tuple[int, int], _Run] = {}
        self._inputs: dict[int, _Use] = {}
        self._spoiled: set[int] = set()
        self._backwards = 0

    def on_input(self, call: int, place: int, module: nn.Module, inputs: list[Tensor]) -> None:
        self._inputs.pop(place, None)
        if not inputs or not inputs[0].dim():
            return
        input = inputs[0].detach()
        # A model may be run by parts, never itself: then a backward tells one forward from the next.
        run = self._runs.setdefault((call, self._backwards), _Run())
        run.sizes[input.shape[0]] += 1
        found = self._formulas.get(place)
        if found is None or input.dim() < found.axes(module) or not input.numel():
            return
        if not any(each.requires_grad for each in module.parameters(recurse=False)):
            return
        if is_distributed(input) or input.is_inference():
            self._spoiled.add(place)
            return
        self._inputs[place] = _Use(run, found, input, module)

    def on_output(self, call: int, place: int, module: nn.Module, outputs: list[Tensor]) -> None:
        use = self._inputs.pop(place, None)
        if use is not None and outputs and outputs[0].requires_grad:
            use.run.uses.setdefault(place, []).append(use)
            self.listen(outputs[0], partial(self._arrived, place, use))

    def on_backward(self) -> None:
        self._backwards += 1
        for run in self._runs.values():
            for place, uses in list(run.uses.items()):
                if any(
                    use.delta is not None for use in uses
                ):  # no error came to the others: they add nothing
                    self._settle(place, run)

    def read(self, lived: frozenset[int]) -> Figures:
        runs = [run for run in self._runs.values() if run.squares]
        cases = sum(run.cases for run in runs)
        everywhere = Ranks.processes()
        found: list[Figure] = []
        for place in range(len(self.subject.modules)):
            means = [run.squares[place] * run.cases / cases for run in runs if place in run.squares]
            if not means or place in self._spoiled:
                found.append(None)
                continue
            square = self.subject.unscaled(self.subject.unscaled(torch.stack(means).sum() * cases**2))
            if square is not None:
                found.append(torch.stack([square, torch.full_like(square, cases * everywhere)]))
        self._runs, self._inputs = {}, {}
        return found

    def _arrived(self, place: int, use: _Use, delta: Tensor) -> None:
        if use.settled or use.delta is not None or is_distributed(delta):
            self._spoiled.add(place)  # a second backward through the same graph
            return
        uses = use.run.uses[place]
        use.take(delta, alone=len(uses) == 1)
        if all(each.delta is not None for each in uses):
            self._settle(place, use.run)

    def _settle(self, place: int, run: _Run) -> None:
        uses = run.uses.pop(place)
        pairs = [(wide(each.input), wide(each.delta)) for each in uses if each.delta is not None]
        fits = all(each.count == run.cases and each.intact for each in uses)
        if fits and place not in run.squares:
            run.squares[place] = uses[0].squares(pairs).mean()
        else:
            self._spoiled.add(place)
        for each in uses:
            each.delta, each.settled = None, True


@dataclass(eq=False)
class _Run:
    """One forward of the model, with the uses of its layers that still wait for their error."""

    sizes: Counter[int] = field(default_factory=Counter)
    uses: dict[int, list[_Use]] = field(default_factory=dict)
    squares: dict[int, Tensor] = field(default_factory=dict)

    @property
    def cases(self) -> int:
        """What axis 0 of most inputs is."""
        return self.sizes.most_common(1)[0][0]


class _Use:
    """One use of a layer: some cases of its input, and of the error at its output once that has come."""

    def __init__(self, run: _Run, by: Formula, input: Tensor, module: nn.Module) -> None:
        self.run, self._formula, self._module = run, by, module
        self.count = input.shape[0]
        some = max(1, min(CASES, -(-self.count // 4)))
        self._cases = slice(0, some * (self.count // some), self.count // some)
        self.input = by.seen(module, input, self._cases)
        if torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:
            self.input = self.input.clone()  # the whole would outlive a checkpoint that is there to drop it
        self._version = self.input._version
        self.delta: Tensor | None = None
        self.settled = False

    @property
    def intact(self) -> bool:
        """Whether the input is as it was: autograd, too, keeps a reference and no copy."""
        return self.input._version == self._version

    def take(self, delta: Tensor, *, alone: bool) -> None:
        """Keep the error of the same cases: a copy where it has to wait, so that the rest can go."""
        self.delta = delta[self._cases] if alone else delta[self._cases].clone()

    def squares(self, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
        """‖c_n‖² of the parameters that learn, [cases]."""
        parts = [
            of(self._module, pairs)
            for name, of in (("weight", self._formula.weight), ("bias", self._formula.bias))
            if (parameter := getattr(self._module, name, None)) is not None and parameter.requires_grad
        ]
        return torch.stack(parts).sum(0)


def _formulas(subject: Subject) -> dict[int, Formula]:
    """By place, of layers that share no parameter."""
    if any(getattr(module, "batch_first", True) is False for module in subject.model.modules()):
        return {}
    owners = Counter(id(each) for module in subject.modules for each in module.parameters(recurse=False))
    found = {}
    for place, module in enumerate(subject.modules):
        own = list(module.parameters(recurse=False))
        if own and all(owners[id(each)] == 1 for each in own):
            known = formula(module)
            if known is not None:
                found[place] = known
    return found
