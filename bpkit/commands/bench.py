"""`bpkit bench layers|models|trainer`: bpkit against torch, interleaved in one process."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict

import click

from bpkit.commands._console import announced, print_table

WAYS = ("converted", "handwritten")


@click.group(name="bench")
def bench() -> None:
    """Measure layers, whole models and the Trainer against torch's own."""


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
