"""All rows of the clinic."""

from __future__ import annotations

from collections.abc import Iterable

from bpkit.bench.clinic.case import Case, Lab, Part
from bpkit.bench.clinic.faults_flow import flow
from bpkit.bench.clinic.faults_nonfinite import nonfinite
from bpkit.bench.clinic.faults_training import training
from bpkit.bench.clinic.faults_units import units
from bpkit.bench.clinic.healthy_deep import deep
from bpkit.bench.clinic.healthy_dense import dense

FIRST_SEED: dict[Part, int] = {"tuning": 0, "reporting": 1000}  # the parts share no seed


def cases(part: Part, has: Iterable[str] = ("digits",)) -> list[Case]:
    """Faults, then healthy runs, of those that the data sets at hand allow."""
    lab = Lab(part, frozenset(has))
    return [case for rows in (flow, units, nonfinite, training, dense, deep) for case in rows(lab)]
