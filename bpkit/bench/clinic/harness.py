"""Runs the cases, each under every contender in a training of its own, and notes what came of it."""

from __future__ import annotations

import contextlib
import logging
import math
import multiprocessing
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from bpkit.bench.clinic.case import Case, Part
from bpkit.bench.clinic.data import available
from bpkit.bench.clinic.gan import train_gan
from bpkit.bench.clinic.loop import Trained, train
from bpkit.bench.clinic.observers import Contender, Verdict, contender
from bpkit.bench.clinic.tables import FIRST_SEED, cases

logger = logging.getLogger("bpkit")
LOOPS = {"train": train, "gan": train_gan}

# `bpkit.watch`'s share of the time: its default. The first 200 steps, which most runs here end within, are
# sampled regardless; how many samples there are after them hangs on what else the machine does.
BUDGET = 0.03


@dataclass(frozen=True)
class Job:
    """One training: a case by its name, so that it can be handed to a worker."""

    name: str
    part: Part
    seed: int
    contender: str
    directory: Path | None = None
    budget: float = BUDGET


@dataclass(frozen=True)
class Outcome:
    """What a contender said of one run.

    Attributes:
        name, seed, contender: which run.
        kinds: those that count as finding the fault; empty for a healthy run.
        verdicts: everything said at warning or above.
        found: those of the verdicts that count.
        placed: whether the found verdicts name the place (`names_place`); None where no layer is to blame.
        delay: steps from the fault to the first verdict that counts; None where there is none.
        score: of the trained model on held-out cases.
        valid: whether the run is what its row says: a healthy one learns, a fault does harm.
        seconds: of processor time that the run took.
        error: the exception that ended it.
    """

    name: str
    seed: int
    contender: str
    kinds: frozenset[str]
    verdicts: Sequence[Verdict] = ()
    found: Sequence[Verdict] = ()
    placed: bool | None = None
    delay: int | None = None
    score: float = math.nan
    valid: bool = False
    seconds: float = 0.0
    error: str = ""

    @property
    def healthy(self) -> bool:
        return not self.kinds


def names_place(found: Iterable[Verdict], right: frozenset[str], layers: frozenset[str]) -> bool:
    """Whether each verdict names a right layer first, which is the one that its reader will look at.

    A verdict without layers is about the whole model, and so are verdicts that together name all of its
    layers: they name no place.

    Args:
        found: the verdicts that count.
        right: the modules that are to blame.
        layers: all modules with parameters of their own.
    """
    placing = [each for each in found if each.layers]
    named = {layer for each in placing for layer in each.layers}
    return bool(placing) and not layers <= named and all(each.layers[0] in right for each in placing)


def judged(case: Case, trained: Trained, job: Job, seconds: float = 0.0) -> Outcome:
    """Hold what was said against what the case's row has."""
    found = [
        each for each in trained.verdicts if each.kind & case.kinds and max(each.step, each.until) >= case.at
    ]
    learnt = trained.score >= case.recipe.bar
    placed = None
    if found and case.layers is not None:
        placed = names_place(found, trained.right, trained.layers)
    return Outcome(
        case.name,
        job.seed,
        job.contender,
        case.kinds,
        trained.verdicts,
        found,
        placed,
        max(min(each.step for each in found) - case.at, 0) if found else None,
        trained.score,
        learnt if case.healthy else case.silent or not learnt,
        seconds,
    )


def run_case(case: Case, job: Job, monitor: Contender) -> Outcome:
    """Train and judge; an exception ends the run, not the clinic."""
    start = time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trained = LOOPS[case.loop](case, job.directory, job.seed, monitor)
    except Exception as error:
        return Outcome(
            case.name, job.seed, job.contender, case.kinds, error=f"{type(error).__name__}: {error}"
        )
    return judged(case, trained, job, time.process_time() - start)


@cache
def _known(part: Part, directory: Path | None) -> dict[str, Case]:
    return {case.name: case for case in cases(part, available(directory))}


def run_job(job: Job) -> Outcome:
    """A worker's whole task."""
    torch.set_num_threads(1)
    logger.setLevel(logging.CRITICAL)  # hundreds of verdicts, all of them in the report
    return run_case(_known(job.part, job.directory)[job.name], job, contender(job.contender, job.budget))


def plan(
    names: Iterable[str],
    part: Part,
    seeds: int,
    contenders: Sequence[str],
    directory: Path | None = None,
    budget: float = BUDGET,
) -> list[Job]:
    """All trainings, those of one run one after the other."""
    first = FIRST_SEED[part]
    return [
        Job(name, part, first + seed, each, directory, budget)
        for name in names
        for seed in range(seeds)
        for each in contenders
    ]


def run(jobs: Sequence[Job], workers: int = 1) -> Iterator[Outcome]:
    """The outcomes in the order of the jobs, from spawned workers of one thread each."""
    if workers == 1:
        with contextlib.ExitStack() as stack:
            stack.callback(torch.set_num_threads, torch.get_num_threads())
            stack.callback(logger.setLevel, logger.level)
            yield from map(run_job, jobs)
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(run_job, jobs)
