"""`bpkit bench`: bpkit against torch, interleaved in one process, and monitors against seeded faults."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import click

from bpkit.commands._console import announced, print_table, show_progress

WAYS = ("converted", "handwritten")


@click.group(name="bench")
def bench() -> None:
    """Measure layers, whole models and the Trainer against torch's own, and verdicts against faults."""


@bench.command()
@click.argument("names", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--seconds", default=1.0, show_default=True, help="How long to measure each row.")
def layers(names: tuple[str, ...], as_json: bool, seconds: float) -> None:
    """Time and bytes saved for backward of each layer and loss, or those NAMED.

    `fused` is a layer converted with `fuse=True`; `ratio` and `more` are those of the quicker of the two.
    """
    from bpkit.bench.layers import measure
    from bpkit.bench.measure import saved_bytes
    from bpkit.core.errors import unknown_name
    from bpkit.plugins.registry import registry

    found = (*registry().layers, *registry().losses)
    specs = {spec.name: spec for spec in found}
    aliases = {alias: spec.name for spec in found for alias in spec.aliases}
    names = tuple(aliases.get(name, name) for name in names)
    for name in names:
        if name not in specs:
            raise unknown_name("layer or loss", name, specs)
    chosen = announced(list(names or specs))
    rows = list(measure((specs[name] for name in chosen), saved_bytes, seconds=seconds))
    if as_json:
        click.echo(json.dumps([{**asdict(row), "within": row.within} for row in rows], indent=2))
        return
    print_table(
        (
            "layer",
            "input",
            "torch µs",
            "bpkit µs",
            "fused µs",
            "ratio",
            "more µs",
            "saved",
            "of torch's",
            "bar",
        ),
        [
            (
                row.layer,
                "x".join(map(str, row.shape)),
                f"{row.torch * 1e6:,.0f}",
                f"{row.bpkit * 1e6:,.0f}",
                "" if row.fused is None else f"{row.fused * 1e6:,.0f}",
                f"{row.best / row.torch:.2f}",
                f"{(row.best - row.torch) * 1e6:,.0f}",
                f"{row.saved_bpkit:,}",
                f"{row.saved_bpkit / row.saved_torch:.2f}" if row.saved_torch else "-",
                "ok" if row.within else "over",
            )
            for row in rows
        ],
        right=("torch µs", "bpkit µs", "fused µs", "ratio", "more µs", "saved", "of torch's"),
        styles=lambda heading, cell: "red" if heading == "bar" and cell == "over" else "",
    )
    over = sum(not row.within for row in rows)
    click.echo(f"{len(rows) - over} of {len(rows)} rows keep their bar (large: 1.5 times; small: 40 µs more)")
    large = [row for row in rows if row.large]
    if large:
        mean = statistics.geometric_mean(row.best / row.torch for row in large)
        eager = statistics.geometric_mean(row.bpkit / row.torch for row in large)
        more = [row.layer for row in large if row.saved_bpkit > row.saved_torch]
        click.echo(
            f"large rows: geometric mean {mean:.2f} of torch's time, fused where that is quicker, "
            f"and {eager:.2f} by default; {len(large) - len(more)} of {len(large)} save no more than torch"
            + (f" (more: {', '.join(more)})" if more else "")
        )


@bench.command()
@click.argument("names", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--seconds", default=1.0, show_default=True, help="How long to measure each model.")
@click.option("--width", default=128, show_default=True, help="Of the models' layers.")
def models(names: tuple[str, ...], as_json: bool, seconds: float, width: int) -> None:
    """Whole models converted, and inside `handwritten()`: time, bytes saved, and the share of nodes by hand.

    A ResNet, a U-Net, an LSTM tagger and torch's Transformer; with transformers installed BERT, GPT-2,
    Llama, ViT and T5, from small configurations with random weights.
    """
    from bpkit.bench.models import HUGGING_FACE, available, measure
    from bpkit.core.errors import unknown_name

    found = available()
    for name in names:
        if name not in found:
            raise unknown_name("model", name, found)
    missing = [name for name in HUGGING_FACE if name not in found]
    if missing and not names and not as_json:
        click.echo(f"{', '.join(missing)}: left out; pip install transformers to measure them")
    rows = list(measure(announced(list(names or found)), width, seconds))
    if as_json:
        click.echo(json.dumps([asdict(row) for row in rows], indent=2))
        return
    columns = (
        "model",
        "torch ms",
        *(f"{what}, {way}" for what in ("time", "bytes", "nodes") for way in WAYS),
    )
    print_table(
        columns,
        [
            (
                row.model,
                f"{row.torch * 1e3:.1f}",
                f"{row.converted / row.torch:.2f}",
                f"{row.handwritten / row.torch:.2f}",
                f"{row.saved_converted / row.saved_torch:.2f}",
                f"{row.saved_handwritten / row.saved_torch:.2f}",
                f"{row.coverage_converted.share:.0%}",
                f"{row.coverage_handwritten.share:.0%}",
            )
            for row in rows
        ],
        right=columns[1:],
    )
    click.echo("time and bytes saved for backward as a part of torch's; nodes: the hand-written share")


@bench.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def trainer(as_json: bool) -> None:
    """The Trainer with TensorBoard and its watch, against a bare loop."""
    from bpkit.bench.trainer import MOST_TIMES, measure

    times = measure()
    ratio = times["trainer"] / times["bare"]
    if as_json:
        click.echo(json.dumps({**times, "ratio": ratio}))
        return
    click.echo(f"bare loop  {times['bare'] * 1e6:.0f} µs a step")
    click.echo(f"Trainer    {times['trainer'] * 1e6:.0f} µs a step, {ratio:.2f} times (bar: {MOST_TIMES})")


@bench.command()
@click.argument("networks", nargs=-1)
@click.option("--steps", default=1000, show_default=True, help="Steps of each loop.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def watch(networks: tuple[str, ...], steps: int, as_json: bool) -> None:
    """What `bpkit.watch` costs a loop, beside wandb.watch, torchmortem and Cockpit where these are installed.

    NETWORKS are MLP, ResNet, transformer, LSTM, and all by default.
    """
    from bpkit.bench.monitors import available
    from bpkit.bench.watch import FIRST, NETWORKS, measure
    from bpkit.core.errors import BpkitError, unknown_name

    for name in networks:
        if name not in NETWORKS:
            raise unknown_name("network", name, NETWORKS)
    if steps < 2 * FIRST:
        raise BpkitError(f"--steps {steps}: at least {2 * FIRST}, for a budget is a share of a long run")
    rows = list(measure(announced(list(networks or NETWORKS)), available(), steps))
    if as_json:
        click.echo(json.dumps([asdict(row) for row in rows], indent=2))
        return
    columns = ("network", "step ms", "monitor", f"first {FIRST} steps", "after them", "says itself")
    print_table(
        columns,
        [
            (
                row.network,
                f"{row.step * 1e3:.2f}",
                row.monitor,
                "fails" if row.failed else f"{row.beginning:.2f}",
                "" if row.failed else f"{row.long_run:.3f}",
                "" if row.said is None else f"{row.said:.1%}",
            )
            for row in rows
        ],
        right=("step ms", f"first {FIRST} steps", "after them", "says itself"),
    )
    click.echo("time of a loop under a monitor over that of a bare one; what the watch says that it took")
    for row in rows:
        if row.failed:
            click.echo(f"{row.monitor} on {row.network}: {row.failed}")


@bench.command()
@click.argument("names", nargs=-1)
@click.option(
    "--data",
    "directory",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Directory with mnist10k, tinyshakespeare, fsdd, multi30k: the rows that need one of them run too.",
)
@click.option(
    "--part",
    type=click.Choice(["tuning", "reporting"]),
    default="reporting",
    show_default=True,
    help="Rows that diagnostics may be tuned on, or those with other seeds, networks and data.",
)
@click.option("--seeds", type=click.IntRange(min=1), default=1, show_default=True, help="Runs of each row.")
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Worker processes.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write JSON here.")
@click.option("--against", default="", metavar="NAMES", help="Other monitors: torchmortem,thresholds.")
@click.option(
    "--budget",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.03,
    show_default=True,
    help="`bpkit.watch`'s share of the time; at 1 its samples hang on the step alone.",
)
def clinic(
    names: tuple[str, ...],
    directory: Path | None,
    part: Literal["tuning", "reporting"],
    seeds: int,
    jobs: int,
    json_file: Path | None,
    against: str,
    budget: float,
) -> None:
    """Seeded faults and healthy runs, or those whose names hold one of NAMES: what a watch says of them.

    A fault is found when a finding of a fitting kind comes at warning or above; on a healthy run any such
    finding is a false alarm. The layer is right where the one that is named first is to blame, and not
    every layer is named. Every monitor watches a training of its own from the same seed.

    Exits with 1 when `bpkit.watch` misses a bar (found 95 %, false alarms 2 %, right layer 90 %); not for
    NAMES, a few runs of which say nothing of a share.
    """
    from bpkit.bench.clinic import harness, report, score
    from bpkit.bench.clinic.data import available
    from bpkit.bench.clinic.tables import cases

    known = [case.name for case in cases(part, available(directory))]
    others, absent = report.rivals(against)
    for name in absent:
        click.echo(f"{name}: left out; pip install {name} to compare with it", err=True)
    planned = harness.plan(report.chosen(names, known), part, seeds, ("bpkit", *others), directory, budget)
    outcomes = []
    for job, outcome in zip(planned, harness.run(planned, jobs), strict=True):
        outcomes.append(outcome)
        show_progress(f"{len(outcomes)}/{len(planned)} {job.name} {job.contender}")
    show_progress("")
    if json_file is not None:
        json_file.write_text(json.dumps(score.as_json(outcomes), indent=2) + "\n")
    print_table(
        ("run", "kinds that count", "bpkit", *others),
        report.rows(outcomes),
        styles=lambda heading, cell: "red" if cell.startswith(("missed", "alarm", "invalid")) else "",
    )
    click.echo("")
    print_table(report.TOTALS, report.totals(outcomes), right=report.TOTALS[1:-1])
    click.echo("found: of faulty runs; bars: found 95 %, false alarms 2 % of healthy runs, right layer 90 %")
    own = score.by_contender(outcomes)["bpkit"]
    for line in score.complaints(own):
        click.echo(line)
    disturbed = score.disturbed(outcomes)
    if disturbed:
        click.echo(f"trained differently under different monitors: {', '.join(disturbed)}")
    if not names and not score.score(own).within:
        raise click.exceptions.Exit(1)
