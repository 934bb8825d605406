"""Disconnected: a trainable parameter that the optimizer holds and that no gradient ever reaches.

Told from a frozen one (it requires a gradient), a stuck one (that has a gradient) and a dead one (whose
gradient is zero). Its module is either never called, or its output never comes to the loss: `detach`,
`no_grad`, `argmax`, `.item()`, or numbers that went through NumPy on the way.
"""

from __future__ import annotations

from collections.abc import Iterable

from bpkit.core.finding import Finding
from bpkit.diagnostics.diagnostic import Diagnostic
from bpkit.diagnostics.instruments import Activations, Standing
from bpkit.diagnostics.sample import Sample

SAMPLES = 10  # a layer that some batches pass by, an expert or a task's head, has had its turn by then


class Disconnected(Diagnostic):
    """Layers without any gradient since the run began."""

    needs = (Standing, Activations)

    def __init__(self) -> None:
        self._samples = 0
        self._reached: set[str] = set()
        self._called: set[str] = set()

    def observe(self, sample: Sample) -> Iterable[Finding]:
        """A finding from the tenth sample on, one of information where it is over."""
        self._samples += 1
        self._called |= {sample.network.modules[place].name for place in sample.called}
        waiting: dict[str, None] = {}
        for info, standing in zip(sample.network.parameters, sample[Standing], strict=True):
            trainable, reached, held, _ = standing
            if reached:
                self._reached.add(info.name)
            elif trainable and held and info.name not in self._reached:
                waiting[info.layer] = None
        if self._samples < SAMPLES or not waiting or not self._reached:
            return
        layers = tuple(waiting)
        unused = [layer for layer in layers if layer not in self._called]
        yield sample.finding(
            "disconnected",
            layers,
            {
                "layers": len(layers),
                "layers_never_called": len(unused) if sample.called else float("nan"),
                "samples_without_gradient": self._samples,
            },
            _advice(layers, unused, seen=bool(sample.called)),
        )


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
