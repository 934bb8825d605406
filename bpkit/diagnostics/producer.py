"""Who made the first value that is not finite: read off what the modules had on either side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, isnan
from typing import Any

from bpkit.diagnostics.instruments import Deltas, Finite, GradientNorm, Sentinel, WeightNorm
from bpkit.diagnostics.instruments.rerun import COLUMNS, INFINITE
from bpkit.diagnostics.network import ModuleInfo
from bpkit.diagnostics.sample import Sample


@dataclass(frozen=True)
class Producer:
    """Who made the first value that is not finite."""

    layers: tuple[str, ...]
    advice: str


@dataclass(frozen=True)
class _Module:
    """A module, what `Finite` says of it, and the norms of the errors at its outputs and inputs."""

    info: ModuleInfo
    finite: tuple[float, ...]
    out: float | None
    back: float | None

    def figure(self, column: str) -> float:
        """One column of `Finite`."""
        return self.finite[Finite.columns.index(column)]


class Seen:
    """What was not finite at each module, in the order of the forward.

    Args:
        sample: with what the modules showed, or a second run of them.
        usual: modules, and columns of `Finite`, that have infinities in good health.
    """

    def __init__(self, sample: Sample, usual: set[tuple[str, str]]) -> None:
        self._network, self._again = sample.network, False
        modules = self._network.modules
        nothing: tuple[Any, ...] = (None,) * len(modules)
        forward = sample[Finite] if sample.has(Finite) else nothing
        back = sample[Deltas] if sample.has(Deltas) else nothing
        if all(value is None for value in forward):
            self._again = True
            forward = back = sample[Sentinel]
        places: Sequence[int] = sample.called or range(len(modules))
        self._late = self._again and any(value is not None and all(map(isnan, value)) for value in forward)
        if self._again:
            places = sorted((each for each in places if forward[each]), key=lambda each: forward[each][0])
        first = COLUMNS.index(Finite.columns[0]) if self._again else 0
        self._order = [
            _Module(
                modules[place],
                forward[place][first : first + len(Finite.columns)],
                out=None if back[place] is None else back[place][-2],
                back=None if back[place] is None else back[place][-1],
            )
            for place in places
            if forward[place] is not None
        ]
        self._usual = usual
        weights = sample.by_layer(WeightNorm) if sample.has(WeightNorm) else {}
        self._bad_weights = [layer for layer, norm in weights.items() if not isfinite(norm)]
        self._step = sample.step

    def producer(self) -> Producer | None:
        """The first one, None where nothing was seen of the modules."""
        if self._late:
            return Producer(
                tuple(self._bad_weights),
                f"it reached the weights in step {self._step - 1}, and who made it is not known: on this "
                "device a step that is not sampled is looked at when it is over. Go back to a checkpoint "
                "from before and watch every step from there, bpkit.watch(..., every=1, budget=1.0)",
            )
        if self._bad_weights:
            layer = self._bad_weights[0]
            return Producer(
                tuple(self._bad_weights),
                f"the optimizer: weights, of '{layer}' first, were no longer finite when step {self._step} "
                "began, though its gradients had been: go back to a checkpoint from before, lower the "
                "learning rate, and look for a division by zero in the update (eps of Adam, a rate that is "
                "not finite)",
            )
        if not self._order:
            return None
        return self._in_forward() or self._in_backward()

    def _in_forward(self) -> Producer | None:
        """By the first event: of a module that is called several times it need not be in the first call."""
        events = [
            (each.figure(f"{end} at"), end, each)
            for each in self._order
            for end in ("input", "output")
            if self._odd(each, f"{end}s")
        ]
        if not events:
            return None
        _, end, each = min(events, key=lambda event: event[0])
        name, kind = each.info
        if end == "output":
            return Producer(
                (name,),
                f"'{name}' ({kind}), in its forward: its input is finite, its output is not. Look for "
                "log, sqrt or division at 0 and exp of large numbers in it; a clamp or an eps keeps it "
                "finite",
            )
        behind = int(each.figure("behind"))
        if behind < 0:
            return Producer(
                (name,),
                f"the batch: the input of '{name}', the first module, is not finite: look for missing "
                "values, a division by a standard deviation of zero or a log of zero where the data is "
                "prepared",
            )
        before = self._network.modules[behind].name
        inner = self._network.inner(before, name)
        return Producer(
            tuple(dict.fromkeys((*inner, before, name))),
            f"the forward, between '{before}', whose output is finite, and '{name}', whose input is "
            "not: look at what the model computes there (sqrt, log, division, exp)",
        )

    def _odd(self, module: _Module, column: str) -> bool:
        """Whether it is worse than in good health: where infinities are usual, a second run tells NaN."""
        usual = (module.info.name, column) in self._usual
        return module.figure(column) > (INFINITE if usual else 0)

    def _in_backward(self) -> Producer:
        behind = None
        for each in reversed(self._order):
            name, kind = each.info
            if _bad(each.out):
                if behind is None and not self._again:
                    return _loss(name)
                if behind is not None:
                    inner = self._network.inner(name, behind)
                    return Producer(
                        (*inner, name, behind),
                        f"the backward{_named(inner)}, between '{behind}' and '{name}': the gradient that "
                        f"leaves '{behind}' is finite, that which reaches '{name}' is not. Look between them "
                        "for an infinite slope (sqrt or norm at 0) or a 0 times infinity behind torch.where",
                    )
            if _bad(each.back):
                return Producer(
                    (name,),
                    f"'{name}' ({kind}), in its backward: all outputs are finite, and the gradient that it "
                    "hands on is not. A slope in it is infinite (sqrt or norm at 0, a power below 1), or "
                    "torch.where hides a branch whose gradient is 0 times infinity: keep its argument away "
                    "from there",
                )
            if each.out is not None and isfinite(each.out) and each.out >= 0:
                behind = name
        if self._again:
            return Producer(
                (self._order[-1].info.name,),
                "the loss, or something that does not happen twice: the model was run again on the same "
                "batch, and gives finite values both ways. Look for log, sqrt or division at 0 in the loss, "
                "and use its form on logits (cross_entropy, binary_cross_entropy_with_logits)",
            )
        return _loss(self._order[-1].info.name)


def _named(inner: list[str]) -> str:
    return f" of '{inner[0]}'" if inner else ""


def _bad(norm: float | None) -> bool:
    """Whether an error that came is not finite; one that did not come has no norm."""
    return norm is not None and not isfinite(norm)


def _loss(name: str) -> Producer:
    return Producer(
        (name,),
        f"the loss: the output of '{name}' is finite, and the gradient that the loss gives for it is not. "
        "Look for log, sqrt or division at 0 in the loss, use its form on logits (cross_entropy, "
        "binary_cross_entropy_with_logits), and, after steps that were exploding, for plain overflow",
    )


def by_gradients(sample: Sample, bad: tuple[str, ...]) -> Producer:
    """What the gradients alone tell, of a model whose modules were not seen."""
    if len(bad) == len(sample.by_layer(GradientNorm)):
        return Producer(
            bad,
            "every layer has it and the weights are finite, so the loss had it: look for NaN in the batch, "
            "for log, sqrt or division at 0 and exp of large numbers in the forward and in the loss, and, "
            "after steps that were exploding, for plain overflow",
        )
    return Producer(
        bad[-1:],
        f"gradients below '{bad[-1]}' are finite above it: look at what follows '{bad[-1]}' in the forward "
        "(log, sqrt, division, exp); torch.autograd.set_detect_anomaly(True) names the line",
    )
