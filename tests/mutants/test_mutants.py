"""Every mutant caught by the check meant for it; every unusual Function that is right, not refused."""

from __future__ import annotations

import pytest
import torch

import bpkit

from . import MUTANTS, UNUSUAL, Mutant, Unusual

pytestmark = pytest.mark.cpu  # the tables hold tensors of the CPU's

# Skipped for lack of a device, of a jvp, or of a second input: what a Function is, not how it is written.
ANYWHERE = {"device", "jvp", "aliased", "frozen"}


def _ids(targets: list[Mutant] | list[Unusual]) -> list[str]:
    return [f"{i}-{target.name}" for i, target in enumerate(targets)]


@pytest.mark.parametrize("mutant", MUTANTS, ids=[f"{m.name}-{m.check}" for m in MUTANTS])
def test_a_mutant_is_caught_by_the_check_meant_for_it(mutant: Mutant) -> None:
    report = bpkit.verify(mutant.function, *mutant.inputs, reference=mutant.reference, only=mutant.check)
    (result,) = report.results
    assert (result.name, result.status) == (mutant.check, mutant.status), result.detail
    assert result.detail
    assert result.remedy
    assert report.ok == (mutant.status != "fail")


def test_every_mutant_has_its_story_and_a_name_of_its_own() -> None:
    assert all(mutant.story for mutant in MUTANTS)
    names = [(mutant.name, mutant.check) for mutant in MUTANTS]
    assert len(set(names)) == len(names) >= 50


# One of each theme, by everything there is: a mutant must not keep another check from ending.
WHOLE = [
    m
    for m in MUTANTS
    if m.name
    in {
        "WrongTail",
        "VectorsOfFour",
        "ContiguousInput",
        "SavedOverwritten",
        "OutputOnContext",
        "MaskRedrawn",
        "five_times",
    }
]


@pytest.mark.parametrize("mutant", WHOLE, ids=[f"{m.name}-{m.check}" for m in WHOLE])
def test_a_full_run_ends_and_names_the_mutants_check(mutant: Mutant) -> None:
    report = bpkit.verify(mutant.function, *mutant.inputs, reference=mutant.reference)
    ends = {result.name: result.status for result in report.results}
    assert ends[mutant.check] == mutant.status, str(report)
    assert mutant.check in str(report)


@pytest.mark.parametrize("target", UNUSUAL, ids=_ids(UNUSUAL))
def test_what_is_right_is_not_refused(target: Unusual) -> None:
    report = bpkit.verify(target.function, *target.inputs, reference=target.reference)
    assert report.ok, str(report)
    skipped = {result.name for result in report.results if result.status == "skip"}
    assert skipped - ANYWHERE == target.skipped - ANYWHERE, str(report)


def test_the_tables_are_not_changed_by_being_used() -> None:
    before = [value.clone() for m in MUTANTS for value in m.inputs if isinstance(value, torch.Tensor)]
    for mutant in MUTANTS[:3]:
        bpkit.verify(mutant.function, *mutant.inputs, reference=mutant.reference, only="parity")
    after = [value for m in MUTANTS for value in m.inputs if isinstance(value, torch.Tensor)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
