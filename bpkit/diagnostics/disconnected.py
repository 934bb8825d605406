"""Disconnected: a trainable parameter that the optimizer holds and that no gradient ever reaches.

Told from a frozen one (it requires a gradient), a stuck one (that has a gradient) and a dead one (whose
gradient is zero). Its module is either never called, or its output never comes to the loss: `detach`,
`no_grad`, `argmax`, `.item()`, or numbers that went through NumPy on the way. Where every gradient is there
when the backward ends, and none at the step, somebody has erased them in between.

Only sampled steps are looked at, and an expert that few batches are routed to may run in none of them: that
the optimizer has moved it meanwhile tells of a gradient in some other step.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from bpkit.core.finding import Finding
from bpkit.diagnostics.diagnostic import Diagnostic
from bpkit.diagnostics.instruments import AccumulatedNorm, Activations, GradientNorm, Standing, Update
from bpkit.diagnostics.sample import Sample

if TYPE_CHECKING:
    from bpkit.diagnostics.watcher import Watcher

ERASED = 5  # samples in a row
SAMPLES = 10  # a layer that some batches pass by, a task's head, has had its turn by then
ROUTED = 50  # samples, where other layers run in some steps only: an expert may be called in few


class Disconnected(Diagnostic):
    """Layers without any gradient since the run began."""

    needs = (Standing, Activations)
    wants = (AccumulatedNorm, GradientNorm, Update)

    def __init__(self) -> None:
        self._samples = 0
        self._erased = 0  # samples in a row
        self._reached: set[str] = set()
        self._called: set[str] = set()
        self._routes: set[frozenset[int]] = set()
        self._versions: dict[str, tuple[int, int]] = {}
        self._watcher: Watcher | None = None
        self._seen: Finding | None = None

    def attach(self, watcher: Watcher) -> None:
        """Keep the watcher: its optimizer and parameters tell of the steps between two samples."""
        self._watcher = watcher

    def observe(self, sample: Sample) -> Iterable[Finding]:
        """A finding from the tenth sample on, one of information where it is over."""
        self._samples += 1
        self._called |= {sample.network.modules[place].name for place in sample.called}
        if len(self._routes) < 2:
            self._routes.add(frozenset(sample.called))
        self._note_moved(sample)
        self._erased = self._erased + 1 if _is_erased(sample) else 0
        if self._erased >= ERASED:
            self._seen = sample.finding(
                "disconnected",
                sample.layers,
                {"gradient_norm_before": sample.total(AccumulatedNorm), "gradient_norm_at_step": 0.0},
                _ERASED,
                severity="critical",
            )
            yield self._seen
            return
        waiting: dict[str, None] = {}
        for info, standing in zip(sample.network.parameters, sample[Standing], strict=True):
            trainable, reached, held, _ = standing
            if reached:
                self._reached.add(info.name)
            elif trainable and held and info.name not in self._reached:
                waiting[info.layer] = None
        layers = tuple(layer for layer in waiting if self._samples >= self._patience(layer))
        if not layers or not self._reached:
            yield from self._over(sample)
            return
        unused = [layer for layer in layers if layer not in self._called]
        self._seen = sample.finding(
            "disconnected",
            layers,
            {
                "layers": len(layers),
                "layers_never_called": len(unused) if sample.called else float("nan"),
                "samples_without_gradient": self._samples,
            },
            _advice(layers, unused, seen=bool(sample.called)),
        )
        yield self._seen

    def _patience(self, layer: str) -> int:
        """Samples to wait for a layer's gradient."""
        return ROUTED if len(self._routes) > 1 and layer not in self._called else SAMPLES

    def _note_moved(self, sample: Sample) -> None:
        """Count as reached what the optimizer has moved since it was first looked at.

        Without a gradient it leaves a parameter alone, and has no state for it. One that was changed by
        hand as well is told by the state, where the optimizer keeps any.
        """
        optimizer = None if self._watcher is None else self._watcher.optimizer
        if self._watcher is None or optimizer is None:
            return
        stateful = any(optimizer.state.values())
        for info, parameter in zip(sample.network.parameters, self._watcher.subject.parameters, strict=True):
            now = id(parameter), parameter._version
            first = self._versions.setdefault(info.name, now)
            if first[0] != now[0]:
                self._versions[info.name] = now
            elif first != now and (not stateful or optimizer.state.get(parameter)):
                self._reached.add(info.name)

    def _over(self, sample: Sample) -> Iterable[Finding]:
        if self._seen is not None:
            yield replace(self._seen, severity="info", last_step=sample.step, advice=_OVER)
            self._seen = None


_ERASED = (
    "the gradients are there when the backward ends, and gone when the optimizer steps: zero_grad() stands "
    "between the two. Call it before the backward, or after the step"
)
_OVER = "a gradient reaches it now"


def _is_erased(sample: Sample) -> bool:
    """Whether all gradients that the backward left are gone at the step, which then moves nothing by them."""
    if not all(map(sample.has, (AccumulatedNorm, GradientNorm, Update))):
        return False
    left = [
        (now, moved)
        for before, now, moved in zip(
            sample[AccumulatedNorm], sample[GradientNorm], sample.column(Update, "norm"), strict=True
        )
        if before
    ]
    return bool(left) and all(now == 0 or (now is None and not moved) for now, moved in left)


def _advice(layers: tuple[str, ...], unused: list[str], *, seen: bool) -> str:
    cut = [layer for layer in layers if layer not in unused]
    parts = []
    if unused and seen:
        parts.append(
            f"{_named(unused)} is never called: use it in the forward, or take it out of the model and "
            f"the optimizer"
        )
    if cut or not seen:
        parts.append(
            f"{_named(cut or list(layers))} runs, but its output never reaches the loss: look for detach(), "
            "torch.no_grad(), argmax, .item() or .numpy() after it"
        )
    return "; ".join(parts)


def _named(layers: list[str]) -> str:
    more = f" and {len(layers) - 1} more" if len(layers) > 1 else ""
    return f"'{layers[0]}'{more}"
