"""Curvature: the spectrum of the loss's Hessian, and how its sharpness stands to the learning rate.

    curvature = Curvature(lambda: loss_fn(model(x), y))         # a fixed batch
    watcher = bpkit.watch(model, optimizer, diagnostics=[curvature])

The sharpness is the largest eigenvalue; above `Edge.threshold` a step along its direction overshoots by more
than it came. Full-batch training of healthy networks drives it there and stays, the loss still falling over
longer times (Cohen et al. 2021, the edge of stability): the finding is a note. It is a warning where the
sharpness is `SEVERAL` times the threshold and the loss rises; up to there networks of ReLUs are seen to leap
to a flatter place (Lewkowycz et al. 2020: up to 12/lr).

A measurement costs `steps` + `probes` products with the Hessian, each about two gradients, and as many again
as `steps` where the optimizer divides by a preconditioner; memory of `steps` gradients.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING

import torch

from bpkit.core.errors import BpkitError
from bpkit.core.finding import Finding, Severity
from bpkit.diagnostics.diagnostic import Board, Diagnostic
from bpkit.diagnostics.edge import Edge, edge_of
from bpkit.diagnostics.hessian import Closure, Hessian
from bpkit.diagnostics.history import Series
from bpkit.diagnostics.sample import Sample
from bpkit.diagnostics.spectrum import Density, Draw, Trace, lanczos, normal, signs
from bpkit.tensorboard import Writer

if TYPE_CHECKING:
    from bpkit.diagnostics.watcher import Watcher

SEVERAL = 6.0
ENOUGH = 3  # losses to say so
DEVIATIONS = 3.0  # of its noise that the loss has to stand above its best to be rising


@dataclass(frozen=True)
class Spectrum:
    """One measurement.

    Attributes:
        step: after which step; the parameters as that left them.
        loss: the closure's value.
        eigenvalues: the largest ones, descending.
        lowest: the most negative, or the least.
        errors: how far at most each of `eigenvalues` is from one of the Hessian's.
        trace: of the Hessian, with its standard error.
        threshold: up to which the optimizer is stable, NaN where that is not known of it.
        sharpness: what is compared with it: the largest eigenvalue, of the preconditioned Hessian for Adam.
        parameters: how many numbers the loss is a function of.
        density: of all eigenvalues, where it was asked for.
    """

    step: int
    loss: float
    eigenvalues: tuple[float, ...]
    lowest: float
    errors: tuple[float, ...]
    trace: Trace
    threshold: float
    sharpness: float
    parameters: int
    density: Density | None = None


class Curvature(Diagnostic):
    """Eigenvalues, trace and density of the Hessian on a batch, every so many samples.

    Of several ranks each measures its own batch; parameters that are sharded are refused.

    Args:
        closure: gives the loss on a fixed batch, a scalar with a graph, without a backward or a step. Without
            one, that of the watcher: the Trainer gives the loss of its last batch, penalties apart.
        eigenvalues: how many of the largest.
        steps: of Lanczos.
        probes: random vectors for the trace and the density.
        every: samples from one measurement to the next; the watch's `budget` does not thin them.
        density: measure the density as well, which takes `steps` products a probe.
        seed: of the random vectors, from a generator of their own.

    Attributes:
        spectrum: the last measurement, None before the first.

    Raises:
        BpkitError: a setting that cannot be.
    """

    def __init__(
        self,
        closure: Closure | None = None,
        *,
        eigenvalues: int = 5,
        steps: int = 20,
        probes: int = 10,
        every: int = 10,
        density: bool = False,
        seed: int = 0,
    ) -> None:
        if closure is not None and not callable(closure):
            raise BpkitError(f"curvature: closure must be a function that gives the loss, not {closure!r}")
        counts = {"eigenvalues": eigenvalues, "steps": steps, "probes": probes, "every": every}
        for name, count in counts.items():
            if not isinstance(count, int) or count < 1:
                raise BpkitError(f"curvature: {name} must be at least 1, not {count!r}")
        self._closure, self._density, self._seed = closure, density, seed
        self._eigenvalues, self._steps, self._probes, self._every = eigenvalues, steps, probes, every
        self._watcher: Watcher | None = None
        self._samples = 0
        self._losses = Series()
        self.spectrum: Spectrum | None = None

    def attach(self, watcher: Watcher) -> None:
        """Refuses a model whose parameters are sharded."""
        if watcher.subject.sharded:
            raise BpkitError("curvature: the parameters are sharded; measure on a model that one rank holds")
        self._watcher = watcher

    def observe(self, sample: Sample) -> Iterable[Finding]:
        """A note at the edge of stability, a warning far beyond it."""
        self._samples += 1
        if self._watcher is None or (self._samples - 1) % self._every:
            return ()
        closure = self._closure or self._watcher.closure
        if closure is None:
            raise BpkitError("curvature needs the loss: Curvature(lambda: loss_fn(model(inputs), target))")
        subject, optimizer = self._watcher.subject, self._watcher.optimizer
        chosen = [each for each in subject.parameters if each.requires_grad]
        if not chosen:
            return ()
        edge = None if optimizer is None else edge_of(optimizer, chosen)
        with Hessian(closure, subject.model, chosen, compiled=subject.compiled) as hessian:
            self._losses.add(sample.step, hessian.loss)
            if not isfinite(hessian.loss) or not bool(hessian.vector.isfinite().all()):
                return ()  # others report that
            self.spectrum = self._measure(hessian, edge, sample.step)
        measured = sample.history.loss.count < ENOUGH
        return self._verdict(self.spectrum, self._losses if measured else sample.history.loss)

    def write(self, sample: Sample, board: Board) -> None:
        """`curvature/…`: four curves, five with a preconditioner; the density as a histogram."""
        found = self.spectrum
        if found is None or found.step != sample.step:
            return
        figures = {
            "sharpness": found.eigenvalues[0],
            "most negative": found.lowest,
            "trace": found.trace.value,
            "threshold": found.threshold,
        }
        if found.sharpness != found.eigenvalues[0]:
            figures["preconditioned sharpness"] = found.sharpness
        for name, value in figures.items():
            if isfinite(value):
                board.add_scalar(f"curvature/{name}", value, sample.step)
        if found.density is not None and isinstance(board, Writer):
            counts = found.density.histogram()
            counts[:, 2] *= found.parameters
            board.add_tensor("curvature/eigenvalues", counts, sample.step, plugin="histograms")

    def _measure(self, hessian: Hessian, edge: Edge | None, step: int) -> Spectrum:
        like, size = hessian.vector, hessian.vector.numel()
        generator = torch.Generator().manual_seed(self._seed + step)

        def draw() -> torch.Tensor:
            return normal(like, generator)

        found = [lanczos(hessian.product, signs(like, generator), self._steps, draw)]
        forms = [size * (found[0].weights * found[0].values).sum().item()]
        for _ in range(self._probes - 1):
            probe = signs(like, generator)
            if self._density:
                found.append(lanczos(hessian.product, probe, self._steps, draw))
                forms.append(size * (found[-1].weights * found[-1].values).sum().item())
            else:
                forms.append(torch.dot(probe, hessian.product(probe)).item())
        largest = found[0].values.flip(0)[: self._eigenvalues].tolist()
        sharpness = largest[0]
        if edge is not None and not edge.plain:
            sharpness = self._preconditioned(hessian, edge, draw)
        return Spectrum(
            step=step,
            loss=hessian.loss,
            eigenvalues=tuple(largest),
            lowest=found[0].values[0].item(),
            errors=tuple(found[0].errors.flip(0)[: self._eigenvalues].tolist()),
            trace=Trace.of(forms),
            threshold=float("nan") if edge is None else edge.threshold,
            sharpness=sharpness,
            parameters=size,
            density=Density.of(found) if self._density else None,
        )

    def _preconditioned(self, hessian: Hessian, edge: Edge, draw: Draw) -> float:
        """The largest eigenvalue of D^½ H D^½."""
        root = edge.root(hessian.vector)

        def product(vector: torch.Tensor) -> torch.Tensor:
            return root * hessian.product(root * vector)

        return lanczos(product, root * draw(), self._steps, draw).values[-1].item()

    def _verdict(self, found: Spectrum, losses: Series) -> Iterable[Finding]:
        if not found.sharpness > found.threshold:
            return
        beyond = found.sharpness / found.threshold
        severity: Severity = "warning" if beyond > SEVERAL and _rises(losses) else "info"
        evidence: Mapping[str, float] = {
            "sharpness": found.sharpness,
            "stable_up_to": found.threshold,
            "loss": found.loss,
        }
        yield Finding(
            kind="divergence",
            severity=severity,
            layers=(),
            step=found.step,
            last_step=found.step,
            evidence=evidence,
            advice=(
                f"divide the learning rate by {beyond:.2g}, or warm it up"
                if severity == "warning"
                else "the edge of stability, where large rates keep a healthy run: nothing to do while the "
                "loss falls over time"
            ),
        )


def _rises(losses: Series) -> bool:
    """Whether a loss goes up: it stands above its best by more than its noise, and above its start."""
    if losses.count < ENOUGH:
        return False
    return losses.now > max(losses.best + DEVIATIONS * losses.noise, losses.start)
