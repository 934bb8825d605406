"""The clinic's tables are what they claim, and its harness counts right; a few runs go through for real."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bpkit.bench.clinic import report
from bpkit.bench.clinic.case import Case, Part, Recipe, adam, named, nearer_input, owners
from bpkit.bench.clinic.data import available, load
from bpkit.bench.clinic.harness import Job, Outcome, names_place, plan, run_case
from bpkit.bench.clinic.loop import batches
from bpkit.bench.clinic.networks import mlp
from bpkit.bench.clinic.observers import PEERS, Fixed, Nothing, Verdict, Watched, contender
from bpkit.bench.clinic.score import as_json, complaints, disturbed, score
from bpkit.bench.clinic.tables import FIRST_SEED, cases
from bpkit.cli import main
from bpkit.core.errors import BpkitError

EVERYTHING = ("digits", "mnist", "plays", "spoken", "captions")
PARTS: tuple[Part, ...] = ("tuning", "reporting")
KINDS = frozenset(
    {
        *(
            "vanishing",
            "exploding",
            "nonfinite",
            "dead",
            "saturated",
            "update_ratio",
            "stuck",
            "disconnected",
        ),
        *("frozen", "zero", "plateau", "divergence", "overfit", "noise", "scale", "mode"),
    }
)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("has", [("digits",), EVERYTHING])
def test_tables(part: Part, has: tuple[str, ...]) -> None:
    rows = cases(part, has)
    assert not [name for name, count in Counter(case.name for case in rows).items() if count > 1]
    faults = [case for case in rows if not case.healthy]
    assert len(faults) >= 30
    assert len(rows) - len(faults) >= 30
    for case in rows:
        assert case.kinds <= KINDS, case.name
        assert case.recipe.data in has
        assert 1 <= case.at <= case.recipe.steps, case.name
        assert 100 <= case.recipe.steps <= 400, case.name
    for case in faults:
        assert case.sound is not None
        assert case.sound != case.recipe, f"{case.name} changes nothing"
    assert frozenset().union(*(case.kinds for case in faults)) == KINDS, "every kind has a fault"


def test_the_parts_have_the_same_faults_and_share_nothing_that_is_trained() -> None:
    tuning, reporting = (cases(part, EVERYTHING) for part in PARTS)
    assert [case.name for case in tuning] == [case.name for case in reporting]
    assert [case.kinds for case in tuning] == [case.kinds for case in reporting]
    assert {case.recipe.data for case in reporting} - {case.recipe.data for case in tuning} == {"mnist"}
    seeds = [{job.seed for job in plan(["x"], part, 100, ["bpkit"])} for part in PARTS]
    assert not seeds[0] & seeds[1]


@pytest.mark.parametrize("part", PARTS)
def test_the_right_layers_are_layers_of_the_network(part: Part) -> None:
    for case in cases(part):
        if case.layers is not None:
            model = case.recipe.model(case.recipe.shape(load("digits", None)))
            right = set(case.layers(model))
            assert right, case.name
            assert right <= {name for name, _ in model.named_modules()}, case.name


def test_layers() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    assert set(named("0", "[34]")(model)) == {"0", "3", "4"}
    assert nearer_input(model) == {"0", "1", "2"}


def test_batches_are_whole_and_the_same_for_every_monitor() -> None:
    task = load("digits", None)
    first, again = batches(task, 500, 3), batches(task, 500, 3)
    drawn = [next(first) for _ in range(4)]
    assert all(len(inputs) == 500 for inputs, _ in drawn)
    assert all(torch.equal(next(again)[0], inputs) for inputs, _ in drawn)
    assert not torch.equal(drawn[0][1], drawn[2][1])


class Says:
    """A monitor that says what it was told to, whatever it sees."""

    def __init__(self, *verdicts: Verdict) -> None:
        self.verdicts = verdicts

    def __call__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Says:
        return self

    def loss(self, value: Tensor | None, step: int) -> None:
        assert step >= 1

    def validation(self, value: Tensor) -> None: ...

    def close(self) -> Sequence[Verdict]:
        return self.verdicts


def verdict(kind: str, step: int, *layers: str) -> Verdict:
    return Verdict(frozenset({kind}), layers, step, f"{kind} in {layers}")


def learns(steps: int = 60) -> Recipe:
    return Recipe(model=mlp(1, 32), optimizer=adam(1e-2), bar=0.7, steps=steps)


def broken(**change: object) -> Case:
    at_rest = replace(learns(), rate=lambda step, steps: 0.0)
    case = Case(
        name="at rest",
        recipe=at_rest,
        kinds=frozenset({"stuck", "plateau"}),
        layers=named("2"),
        at=5,
        sound=learns(),
    )
    return replace(case, **change)


def outcome(case: Case, *verdicts: Verdict) -> Outcome:
    return run_case(case, Job(case.name, "tuning", 0, "says"), Says(*verdicts))


def test_a_found_fault() -> None:
    early, other = verdict("stuck", 4, "0"), verdict("dead", 6, "0")
    found = outcome(broken(), early, other, verdict("plateau", 15), verdict("stuck", 9, "2"))
    assert [each.step for each in found.found] == [15, 9]  # what came before the fault was no finding of it
    assert (found.valid, found.placed, found.delay) == (True, True, 4)
    assert score([found]).detection == 1.0
    assert not complaints([found])


def test_an_analysis_after_the_end_counts_by_its_range() -> None:
    found = outcome(broken(), replace(verdict("stuck", 1, "2"), until=60))
    assert (bool(found.found), found.delay) == (True, 0)
    assert not outcome(broken(), replace(verdict("stuck", 1, "2"), until=4)).found


def test_a_fault_at_the_wrong_layer() -> None:
    found = outcome(broken(), verdict("stuck", 5, "0"), verdict("dead", 5, "2"))
    assert (found.placed, found.delay) == (False, 0)
    assert score([found]).right_layer == 0.0
    assert complaints([found])[0].startswith("wrong layer")


@pytest.mark.parametrize(
    ("named", "right"),
    [
        ([""], False),  # the whole model is no place
        (["b"], True),
        (["b a"], True),
        (["a b"], False),
        (["b", "d a"], True),
        (["b", "a"], False),
        (["", "b"], True),  # and takes none away
        (["b a c d e"], False),  # every layer
        (["b a c d e activation"], False),
        (["b c", "d a e"], False),
    ],
)
def test_a_place_is_what_each_verdict_names_first_where_not_everything_is_named(
    named: list[str], right: bool
) -> None:
    found = [verdict("dead", 5, *layers.split()) for layers in named]
    assert names_place(found, right=frozenset("bd"), layers=frozenset("abcde")) is right


@pytest.mark.parametrize("part", PARTS)
def test_nobody_names_a_place_by_naming_all_of_it(part: Part) -> None:
    for case in cases(part):
        if case.layers is not None:
            model = case.recipe.model(case.recipe.shape(load("digits", None)))
            everything = verdict("dead", 1, *(name for name, _ in model.named_modules()))
            assert not names_place([everything], frozenset(case.layers(model)), frozenset(owners(model)))


def test_a_fault_without_a_place() -> None:
    found = outcome(broken(layers=None), verdict("stuck", 5, "0"))
    assert found.placed is None
    assert score([found]).located == 0


def test_a_missed_fault() -> None:
    missed = outcome(broken(), verdict("dead", 6, "2"))
    assert (missed.found, missed.placed, missed.delay) == ([], None, None)
    assert score([missed]).detection == 0.0
    assert complaints([missed]) == [
        "missed       says: at rest (seed 0), expects plateau or stuck; said: dead in ('2',)"
    ]


def test_a_healthy_run() -> None:
    case = Case(name="learns", recipe=learns())
    quiet, alarmed = outcome(case), outcome(case, verdict("dead", 6, "2"))
    assert quiet.valid
    total = score([quiet, alarmed])
    assert (total.healthy, total.alarmed, total.false_alarms, total.within) == (2, 1, 0.5, False)
    assert score([quiet]).within
    assert complaints([quiet, alarmed]) == ["false alarm  says: learns (seed 0): dead in ('2',)"]


def test_runs_that_are_not_what_they_claim_count_for_nobody() -> None:
    idle = outcome(Case(name="idle", recipe=broken().recipe))
    harmless = outcome(broken(recipe=learns()), verdict("stuck", 9, "2"))
    total = score([idle, harmless])
    assert (total.faults, total.healthy, total.invalid) == (0, 0, 2)
    assert not total.within  # nobody has kept a bar in no run at all
    assert [line.split()[0] for line in complaints([idle, harmless])] == ["invalid", "invalid"]
    assert outcome(broken(recipe=learns(), silent=True)).valid


def test_a_run_that_fails_ends_itself_alone() -> None:
    def fails(step: int, steps: int) -> float:
        raise ValueError("no such step")

    failed = outcome(Case(name="fails", recipe=replace(learns(), rate=fails)))
    assert failed.error == "ValueError: no such step"
    assert score([failed]).invalid == 1
    assert complaints([failed]) == ["error        says: fails (seed 0): ValueError: no such step"]


def test_a_monitor_that_changes_the_training_is_noticed() -> None:
    same = outcome(broken())
    other = replace(same, contender="other")
    assert not disturbed([same, other])
    assert disturbed([same, replace(other, score=other.score + 1e-3)]) == ["at rest (seed 0)"]


def test_the_tables_of_a_report() -> None:
    found = outcome(broken(), verdict("stuck", 5, "2"))
    missed = replace(outcome(broken()), contender="other")
    assert report.rows([found, missed]) == [("at rest", "plateau stuck", "found +0", "missed 1/1")]
    totals = report.totals([found, missed])
    assert totals[0] == ("says", "1/1 100.0%", "-", "1/1 100.0%", "0", "0", "ok")
    assert totals[1] == ("other", "0/1 0.0%", "-", "-", "-", "0", "over")
    data = as_json([found, missed])
    assert data["summary"]["says"]["found"] == 1
    assert json.loads(json.dumps(data))["runs"][0]["verdicts"][0]["layers"] == ["2"]


@pytest.mark.parametrize("name", ["NaN in a batch", "dead by bias", "one layer", "GAN", "frozen backbone"])
def test_a_run_from_end_to_end(name: str) -> None:
    (case,) = [each for each in cases("tuning") if each.name == name]
    short = replace(case, recipe=replace(case.recipe, steps=12, bar=-1.0), at=1)
    if case.name == "NaN in a batch":
        short = replace(case, recipe=replace(case.recipe, steps=case.at + 3))
    watched, bare = (
        run_case(short, Job(name, "tuning", 0, who), monitor)
        for who, monitor in (("bpkit", Watched), ("nothing", Nothing))
    )
    assert not watched.error
    assert not disturbed([watched, bare])
    if case.name == "NaN in a batch":
        assert watched.found
        assert watched.delay is not None


def test_fixed_thresholds() -> None:
    (nan,) = [each for each in cases("tuning") if each.name == "NaN in a batch"]
    (dead,) = [each for each in cases("tuning") if each.name == "dead by bias"]
    for case in (nan, dead):
        found = run_case(case, Job(case.name, "tuning", 0, "thresholds"), Fixed)
        assert found.found, case.name
        assert found.delay == 0


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    assert available(None) == {"digits"}
    (tmp_path / "mnist10k").mkdir()
    assert available(tmp_path) == {"digits", "mnist"}
    with pytest.raises(BpkitError, match="cannot be read as mnist"):
        load("mnist", tmp_path)
    with pytest.raises(BpkitError, match="give --data"):
        load("plays", None)
    with pytest.raises(BpkitError, match="did you mean 'thresholds'"):
        contender("treshold")
    assert set(PEERS) == {"torchmortem", "thresholds"}


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = tmp_path / "clinic.json"
    asked = [
        "bench",
        "clinic",
        "one layer",
        "--part",
        "tuning",
        "--against",
        "thresholds",
        "--json",
        str(written),
    ]
    level, threads = logging.getLogger("bpkit").level, torch.get_num_threads()
    assert main(asked) == 0
    assert (logging.getLogger("bpkit").level, torch.get_num_threads()) == (level, threads)
    printed = capsys.readouterr().out
    assert "one layer" in printed
    assert "false alarms" in printed
    runs = json.loads(written.read_text())["runs"]
    assert [(each["contender"], each["seed"]) for each in runs] == [
        ("bpkit", FIRST_SEED["tuning"]),
        ("thresholds", FIRST_SEED["tuning"]),
    ]
    assert main(["bench", "clinic", "no such run"]) == 2
    assert main(["bench", "clinic", "one layer", "--against", "nobody"]) == 2


@pytest.mark.parametrize(("names", "missed", "code"), [((), 1, 1), ((), 0, 0), (("rest",), 1, 0)])
def test_the_exit_code_tells_whether_the_bars_are_kept(
    names: tuple[str, ...], missed: int, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, silent = outcome(broken(), verdict("stuck", 5, "2")), outcome(broken())
    outcomes = [replace(found, contender="bpkit")] * 15 + [replace(silent, contender="bpkit")] * missed
    monkeypatch.setattr("bpkit.bench.clinic.tables.cases", lambda part, has: [broken()])
    monkeypatch.setattr("bpkit.bench.clinic.harness.plan", lambda *given: outcomes)
    monkeypatch.setattr("bpkit.bench.clinic.harness.run", lambda jobs, workers: iter(outcomes))
    assert main(["bench", "clinic", *names]) == code
