"""A distributed run: norms of the whole batch and of whole parameters, and the same steps on every rank."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.diagnostics.two_ranks import CLIP, POISONED, STEPS, WORLD, run_on_two_processes

pytestmark = [
    pytest.mark.cpu,
    pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo"),
]
WRAPPED = [
    *("ddp", "ddp, accumulated", "ddp, scaled", "ddp, static", "ddp, unused"),
    *("fsdp", "fsdp, accumulated", "fsdp, scaled"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("ranks")
    run_on_two_processes(where)
    return where


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(WORLD)]


@pytest.mark.parametrize("wrapped", WRAPPED)
def test_norms_are_those_of_the_whole_batch(ranks: list[dict[str, Any]], wrapped: str) -> None:
    for rank in ranks:
        seen, true = rank[wrapped]["seen"], rank[wrapped]["true"]
        assert len(seen) == STEPS
        for sample, by_hand in zip(seen, true, strict=True):
            for measured, norms in zip(sample, by_hand, strict=True):
                assert measured == pytest.approx(norms, rel=1e-9, nan_ok=True)
            accumulated, used, *_ = by_hand
            assert sum(each**2 for each in used) ** 0.5 == pytest.approx(CLIP, rel=1e-4)
            assert sum(each**2 for each in accumulated) ** 0.5 > 2 * CLIP


def test_what_is_sharded_in_part_is_watched_too(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        part = rank["fsdp, in part"]
        assert len(part["seen"]) == STEPS
        for (_, *seen), (_, *true) in zip(part["seen"], part["true"], strict=True):
            assert seen[0] == pytest.approx(true[0], rel=1e-9)
            assert seen[1] == pytest.approx(true[1], rel=1e-9)


@pytest.mark.parametrize(("wrapped", "step"), [("ddp", POISONED), ("fsdp", 20)])
def test_nan_on_one_rank_is_found_on_all_at_the_same_step(
    ranks: list[dict[str, Any]], wrapped: str, step: int
) -> None:
    """At once where every rank has all parameters, else with the next sample."""
    for rank in ranks:
        assert rank[f"{wrapped}, poisoned"] == {"nonfinite": step}


@pytest.mark.parametrize("wrapped", [*WRAPPED, "fsdp, in part"])
def test_no_diagnostic_breaks_and_every_rank_finds_the_same(
    ranks: list[dict[str, Any]], wrapped: str
) -> None:
    assert [rank[wrapped]["lines"] for rank in ranks] == [[], []]
    assert ranks[0][wrapped]["findings"] == ranks[1][wrapped]["findings"]


def test_the_first_rank_alone_writes(folder: Path, ranks: list[dict[str, Any]]) -> None:
    for logs in ("ddp", "fsdp"):
        assert len(list((folder / logs).iterdir())) == 1


def test_of_replicas_one_rank_may_watch_alone(ranks: list[dict[str, Any]]) -> None:
    for place, rank in enumerate(ranks):
        for alone, seen in enumerate(rank["ddp, one watches"]):
            expected = STEPS if alone == place else None
            assert seen == {"lines": [], "steps": expected, "hooks": 0}


def test_of_shards_one_rank_alone_says_a_line_and_stops(ranks: list[dict[str, Any]]) -> None:
    watches, other = (rank["fsdp, one watches"] for rank in ranks)
    (line,) = watches["lines"]
    assert "not watched: the parameters are sharded" in line
    assert (watches["steps"], watches["hooks"]) == (1, 0)
    assert other["lines"] == []


def test_every_rank_samples_the_steps_that_the_first_one_decides(ranks: list[dict[str, Any]]) -> None:
    leads, follows = (rank["thinned"] for rank in ranks)
    assert leads == follows
    for steps in leads:
        assert min(steps["thinned"]) >= 4  # more than once
        assert steps["full"]
        assert steps["light"]
