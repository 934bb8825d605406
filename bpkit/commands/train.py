"""`bpkit train NAME|FILE.toml`: a run as data, with its verdicts at the end."""

from __future__ import annotations

import sys
from pathlib import Path

import click


@click.command(name="train")
@click.argument("run")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a key, as train.epochs=5.")
@click.option("--logdir", type=click.Path(path_type=Path), help="Where the run goes [runs/NAME-N].")
@click.option("--device", help="cpu, cuda, ... [auto].")
@click.option("--resume", is_flag=True, help="Go on from last.pt in --logdir.")
def train(run: str, changes: tuple[str, ...], logdir: Path | None, device: str | None, resume: bool) -> None:
    """Train RUN: the name of a recipe (see `bpkit plugins`), or a TOML file."""
    from bpkit.core.errors import BpkitError
    from bpkit.plugins.registry import registry
    from bpkit.train import build, parts
    from bpkit.train.config import parse, source
    from bpkit.train.progress import figures

    if resume and logdir is None:
        raise BpkitError("--resume needs --logdir, the directory of the run to go on with")
    name, where, text = source(run, registry().recipes)
    config = parse(text, where, changes)
    if device is not None:
        parts.device(device)
        config.train.device = device
    if logdir is not None and logdir.exists() and not logdir.is_dir():
        raise BpkitError(f"--logdir {logdir} is a file, not a directory")
    logdir = logdir or free(name)
    training, validation, test = build.data(config)
    trainer = build.trainer(config, logdir)
    parameters = sum(each.numel() for each in trainer.model.parameters())
    click.echo(
        f"{name}: {parameters:,} parameters on {trainer.device}; {len(training):,} examples to train on, "
        f"{len(validation) if validation else 0} to validate, {len(test)} to test"
    )
    settings = config.train
    trainer.fit(training, validation, epochs=settings.epochs, steps=settings.steps, resume=resume)
    if trainer.interrupted:
        click.echo(
            f"interrupted after step {trainer.step}; to go on: bpkit train {run} --logdir {logdir} --resume",
            err=True,
        )
        sys.exit(130)
    click.echo(f"test  {figures(trainer.evaluate(test))}")
    if trainer.watcher is not None:
        click.echo(trainer.watcher.summary())
    click.echo(f"checkpoints  {logdir / 'last.pt'}" + (f", {logdir / 'best.pt'}" if validation else ""))
    click.echo(f"logs  tensorboard --logdir {logdir}")


def free(name: str) -> Path:
    """The first of runs/NAME-1, runs/NAME-2, ... that is not there."""
    number = 1
    while (path := Path("runs") / f"{name}-{number}").exists():
        number += 1
    return path
