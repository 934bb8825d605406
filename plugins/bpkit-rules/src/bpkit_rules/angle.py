"""The angle of a rule, logged while it trains: what a layer hands down against what the chain rule would.

    cos = ⟨δ B, δ W⟩ / (‖δ B‖ ‖δ W‖)          δ: the error at the layer's output, B: the rule's way back

below 90° the layer below moves downhill (Lillicrap et al. 2016, fig. 2c: feedback alignment starts near 90° and
falls as W aligns itself with B). Measured on sampled steps only, where it costs one matrix product a layer; nothing
is read back from the device until the watch copies all its figures.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any

import torch
from bpkit import Finding
from bpkit.diagnostics import Diagnostic, Sample
from bpkit.diagnostics.instruments import Figures, Instrument
from bpkit.diagnostics.sample import Provenance
from bpkit.diagnostics.subject import Subject
from torch import Tensor


class Record:
    """Where a layer's backward leaves its angle, in degrees, 0-d on the layer's device."""

    angle: Tensor | None = None

    def note(self, own: Tensor, truth: Tensor) -> None:
        """Keep the angle between the two."""
        own, truth = own.detach().float().flatten(), truth.detach().float().flatten()
        cosine = own @ truth / (own.norm() * truth.norm())
        self.angle = torch.rad2deg(torch.acos(cosine.clamp(-1, 1)))


def record_of(weight: Any) -> Record | None:
    """The record that a sampled step has put at this parameter, if it is one."""
    return getattr(weight, "bpkit_rules_record", None)


class FeedbackAngle(Instrument):
    """Degrees between the error that a layer under a rule hands down and the true one, at its weight."""

    provenance = Provenance("accumulated", reduced=False)

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self._records: list[Record] = []

    def arm(self) -> None:
        """A record for every parameter; a layer's forward takes it along."""
        self._records = [Record() for _ in self.subject.parameters]
        for parameter, record in zip(self.subject.parameters, self._records, strict=True):
            vars(parameter)["bpkit_rules_record"] = record

    def read(self, lived: frozenset[int]) -> Figures:
        """None for every parameter that is no weight of a layer under a rule."""
        for parameter in self.subject.parameters:
            vars(parameter).pop("bpkit_rules_record", None)
        found = [record.angle for record in self._records]
        count = len(self.subject.parameters)
        return found if len(found) == count else [None] * count


class FeedbackAngles(Diagnostic):
    """Puts the angles on the map; finds a layer whose error points uphill, sample after sample."""

    needs = (FeedbackAngle,)
    window = 10  # samples

    def __init__(self) -> None:
        self._past: dict[str, deque[float]] = {}

    def observe(self, sample: Sample) -> Iterable[Finding]:
        """A finding for as long as the median of the last samples is beyond 90° somewhere."""
        for layer, angle in sample.by_layer(FeedbackAngle).items():
            self._past.setdefault(layer, deque(maxlen=self.window)).append(angle)
        medians = {layer: median(past) for layer, past in self._past.items() if len(past) == self.window}
        bad = [layer for layer, angle in medians.items() if angle > 91]
        if bad:
            yield sample.finding(
                "misaligned",
                bad,
                {"angle": max(medians[layer] for layer in bad)},
                "train longer before judging it, lower the learning rate, or use rule 'sign_symmetry'",
            )

    def columns(self, sample: Sample) -> Mapping[str, Mapping[str, float]]:
        """The angle by layer, in degrees."""
        return {"rule angle": sample.by_layer(FeedbackAngle)}
