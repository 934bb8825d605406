"""Live audit: on sampled steps, hand-written backwards against autograd, on the batch that is trained on.

A few modules a sample, in turn, are run again beside the training: once by their own backward, once by
autograd through torch's class (`bpkit.diagnostics.trials`), from the same inputs, generators and ∂L/∂output.
The map's column `audit` is the relative error of the layer, max|a − b| ÷ max|b| of the worst gradient.

How large an error may be, the layer itself says: where the two differ by more than `NOISE` units in the last
place, autograd runs in float64 as well, and again on inputs that are off by one unit. A backward is wrong
when it is `FACTOR` times further from the float64 truth than autograd in the same precision is, and than
rounding its inputs alone would make it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from bpkit.core.errors import BpkitError
from bpkit.core.finding import Finding
from bpkit.diagnostics.aside import generators_kept
from bpkit.diagnostics.capture import Call, Captures
from bpkit.diagnostics.diagnostic import Diagnostic
from bpkit.diagnostics.sample import Sample
from bpkit.diagnostics.trials import Trial, trials
from bpkit.diagnostics.uses import NoReferenceError
from bpkit.verification.compare import relative_error

if TYPE_CHECKING:
    from bpkit.diagnostics.watcher import Watcher

NOISE = 4.0
FACTOR = 100.0
DRAWS = 3  # of noise: one alone may be small by chance where a gradient is a single number
FLOOR = 1e-6  # of the layer's largest gradient: below, a gradient is compared by that


@dataclass(frozen=True)
class Judgement:
    """What a trial showed.

    Attributes:
        error: of the hand-written backward against autograd in the same precision.
        gradient: of which it is largest.
        wrong: beyond what the precision explains.
        truth: its error against float64; NaN where that was not needed.
        twin: autograd's own error against float64, likewise.
    """

    error: float
    gradient: str = ""
    wrong: bool = False
    truth: float = float("nan")
    twin: float = float("nan")


@dataclass(frozen=True)
class _Fault:
    """A wrong backward, without the tensors that showed it."""

    name: str
    label: str
    target: str
    swapped: bool
    found: Judgement


class Audit(Diagnostic):
    """Runs modules again by hand and by autograd; names those whose backward is wrong.

    Hand-written modules, and modules in whose forward custom Functions are used; of a hand-written composite
    its parts. A Function is compared with autograd through its own `forward`; one whose backward is another
    on purpose (gradient reversal) has to be excluded. What it takes counts towards the watch's budget.

    Args:
        layers: modules a sample; the next ones have their turn in the next.
        exclude: names of modules, of their classes and of Functions that are left alone.

    Attributes:
        errors: by module, the last relative error.
        skipped: by module, why it could not be compared.

    Raises:
        BpkitError: a setting that cannot be.
    """

    needs = (Captures,)

    def __init__(self, *, layers: int = 4, exclude: Iterable[str] = ()) -> None:
        if not isinstance(layers, int) or layers < 1:
            raise BpkitError(f"audit: layers must be at least 1, not {layers!r}")
        if isinstance(exclude, str):
            raise BpkitError(f"audit: exclude must be a list, such as [{exclude!r}], not {exclude!r}")
        self._layers, self._exclude = layers, frozenset(exclude)
        self._captures: Captures | None = None
        self._last: Sample | None = None  # of those without anything to compare
        self._now: dict[str, float] = {}
        self._met = False
        self._faults: dict[str, _Fault] = {}
        self.errors: dict[str, float] = {}
        self.skipped: dict[str, str] = {}

    def attach(self, watcher: Watcher) -> None:
        """Refuses a model whose parameters are sharded."""
        if watcher.subject.sharded:
            raise BpkitError("audit: the parameters are sharded; audit a model that one rank holds")
        self._captures = watcher.instrument(Captures)
        self._captures.layers, self._captures.exclude = self._layers, self._exclude

    def observe(self, sample: Sample) -> Iterable[Finding]:
        """Critical for wrong backwards, a note for what could not be compared."""
        self._now = {}
        if self._captures is None:
            return
        calls, self._captures.calls = self._captures.calls, {}
        self._met = self._met or bool(calls) or bool(self._captures.failed)
        self._last = None if self._met else sample
        for name, call in calls.items():
            self._try(name, call)
        self.skipped.update(self._captures.failed)
        self._captures.failed.clear()
        self.errors.update(self._now)
        if self._faults:
            yield self._finding(sample)
        elif self.skipped:
            yield self._note(sample)

    def columns(self, sample: Sample) -> Mapping[str, Mapping[str, float]]:
        """`audit`: relative error of the layers whose turn it was."""
        return {"audit": self._now}

    def close(self) -> Iterable[Finding]:
        """A note where there was nothing to compare."""
        if self._last is not None:
            yield self._last.finding("audit", (), {}, _NOTHING, severity="info")

    def _try(self, name: str, call: Call) -> None:
        if not call.finite:
            return  # NaN says nothing of a backward; others report it
        try:
            with generators_kept(call.given):
                for trial in trials(call):
                    found = judge(trial)
                    self._now[name] = max(self._now.get(name, 0.0), found.error)
                    known = self._faults.get(name)
                    if found.wrong and (known is None or found.truth > known.found.truth):
                        self._faults[name] = _Fault(
                            trial.name, trial.label, trial.target, trial.swapped, found
                        )
            self.skipped.pop(name, None)
        except NoReferenceError as reason:
            self.skipped[name] = str(reason)
        except Exception as error:  # a module that cannot be run twice, a kernel that torch lacks
            said = str(error).strip().splitlines() or [repr(error)]
            self.skipped[name] = f"could not be run again: {said[0]}"

    def _finding(self, sample: Sample) -> Finding:
        fault = max(self._faults.values(), key=lambda each: each.found.truth)
        found = fault.found
        if fault.swapped:
            mend = f"until it is mended, bpkit.revert({fault.target}) runs torch's"
        else:
            mend = f"if it is another on purpose, leave it out: Audit(exclude=[{fault.name!r}])"
        return sample.finding(
            "audit",
            self._faults,
            {"error": found.truth, "autograd_error": found.twin, "layers_wrong": len(self._faults)},
            f"the backward of {fault.label} gives another ∂L/∂({found.gradient}) than autograd: "
            f"bpkit.verify({fault.target}, *inputs) shows where; {mend}",
            severity="critical",
        )

    def _note(self, sample: Sample) -> Finding:
        name, reason = next(iter(self.skipped.items()))
        return sample.finding(
            "audit",
            self.skipped,
            {"not_compared": len(self.skipped), "compared": len(self.errors)},
            f"{name} {reason}; bpkit.verify(…, reference=…) proves it against a formula of yours",
            severity="info",
        )


_NOTHING = (
    "nothing was compared: no module that ran has a hand-written backward or uses a custom Function "
    "(bpkit.convert(model) gives torch's modules theirs; under torch.compile none is seen)"
)


def judge(trial: Trial) -> Judgement:
    """How far the hand-written gradients are from autograd's, and whether the precision explains it.

    Raises:
        NoReferenceError: what is tried has no gradient that it could be compared with.
    """
    ours, theirs = trial.handwritten(), trial.reference()
    if not ours:
        return Judgement(0.0)
    floor = FLOOR * max(_largest(each) for each in theirs.values())
    errors = {name: relative_error(ours[name], theirs[name], scale=floor) for name in theirs}
    worst = max(errors, key=errors.__getitem__)
    if errors[worst] <= NOISE * trial.eps:
        return Judgement(errors[worst], worst)
    truth = trial.truth()
    noise = torch.Generator().manual_seed(0)
    others = [trial.truth(noise) for _ in range(DRAWS)]
    found = Judgement(errors[worst], worst)
    for name, exact in truth.items():
        size = max(_largest(exact), floor, torch.finfo(torch.float64).tiny)
        own, twin = _gap(ours[name], exact), _gap(theirs[name], exact)
        rounding = max(_gap(other[name], exact) for other in others)
        allowed = max(FACTOR * twin, FACTOR * rounding, NOISE * trial.eps * _largest(exact))
        wrong = not own <= allowed
        if (wrong, own / size) > (found.wrong, found.truth if found.truth == found.truth else -1.0):
            found = Judgement(errors[worst], name, wrong, own / size, twin / size)
    return found


def _largest(tensor: torch.Tensor) -> float:
    return tensor.abs().amax().item() if tensor.numel() else 0.0


def _gap(one: torch.Tensor, other: torch.Tensor) -> float:
    return _largest(one.to(other.dtype) - other)
