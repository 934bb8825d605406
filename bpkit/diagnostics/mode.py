"""Mode: normalisations and dropout that run as in evaluation while the model trains, or the other way.

BatchNorm in `eval()` normalises by running statistics that nobody updates; that is right for a backbone
that is frozen, whose scale and shift then require no gradient, and a mistake for one that trains. A model
left in `eval()` after a validation has no dropout any more; one validated in training mode has it on, and
lets the validation data into its running statistics.
"""

from __future__ import annotations

from collections.abc import Iterable

from bpkit.core.finding import Finding
from bpkit.diagnostics.diagnostic import Diagnostic
from bpkit.diagnostics.instruments import Modes
from bpkit.diagnostics.sample import Sample

SAMPLES = 3  # in a row


class Mode(Diagnostic):
    """Modules in the wrong mode."""

    needs = (Modes,)

    def __init__(self) -> None:
        self._row = 0
        self._validated = 0

    def observe(self, sample: Sample) -> Iterable[Finding]:
        """A finding from the third sample on."""
        modes = {
            sample.network.modules[place]: dict(zip(Modes.columns, value, strict=True))
            for place, value in enumerate(sample[Modes])
            if value is not None
        }
        asleep = [module for module, each in modes.items() if each["evaluating"] and each["trainable"]]
        self._row = self._row + 1 if asleep else 0
        if self._row >= SAMPLES:
            names = tuple(module.name for module in asleep)
            yield sample.finding(
                "mode",
                names,
                {"modules_in_eval": len(asleep), "modules": len(modes)},
                f"'{names[0]}' ({asleep[0].kind}) is in eval() while the model trains. "
                "Call model.train() after every evaluation; to keep its statistics on purpose, freeze its "
                "parameters too (requires_grad_(False))",
            )
        self._validated += len(sample.validations)
        awake = [module for module, each in modes.items() if each["validated_in_training"]]
        if self._validated >= SAMPLES - 1 and awake:
            names = tuple(module.name for module in awake)
            yield sample.finding(
                "mode",
                names,
                {"evaluations": float(self._validated), "modules": len(awake)},
                f"'{names[0]}' ({awake[0].kind}) is in training mode while validation data passes. "
                "Call model.eval() before evaluating, and model.train() after it",
            )
