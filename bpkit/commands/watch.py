"""`bpkit watch train.py ARGS...`: anybody's training script, unchanged, and a verdict at its end."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bpkit.core.errors import BpkitError

if TYPE_CHECKING:
    from bpkit.diagnostics.script import Watching


class _Watch(click.Command):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Of an unknown option, say where it goes if it is the script's."""
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            script = next((each for each in given if each.endswith(".py")), "SCRIPT")
            raise BpkitError(
                f"{error.format_message()} Options of the script come after it: "
                f"bpkit watch {script} {error.option_name} ..."
            ) from None


@click.command(name="watch", cls=_Watch, context_settings={"allow_interspersed_args": False})
@click.option("-m", "module", is_flag=True, help="SCRIPT is a module, package.train, as for python -m.")
@click.option("--logdir", type=click.Path(path_type=Path), help="Where the logs go [runs/SCRIPT-N].")
@click.option("--every", type=click.IntRange(min=1), help="Steps from one sample to the next [10].")
@click.option(
    "--budget",
    type=click.FloatRange(0, 1, min_open=True),
    help="Share of the run's time that watching may take in the long run [0.03].",
)
@click.option("--diagnostics", metavar="NAME,...", help="Those alone (see `bpkit plugins`).")
@click.option("--json", "as_json", is_flag=True, help="JSON on stdout; the script's own goes to stderr.")
@click.argument("script")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def watch(
    module: bool,
    logdir: Path | None,
    every: int | None,
    budget: float | None,
    diagnostics: str | None,
    as_json: bool,
    script: str,
    arguments: tuple[str, ...],
) -> None:
    """Run SCRIPT with its ARGUMENTS as python would, and watch the models that it trains.

    The verdict comes at the end, on stderr, whichever way the script ends: stdout is the script's, and so is
    the exit code. Under torchrun the first rank writes and reports.
    """
    from bpkit.commands.train import free
    from bpkit.diagnostics.script import Watching, located, run

    target = located(script, module=module)
    given = {"every": every, "budget": budget, "diagnostics": diagnostics and _names(diagnostics)}
    settings = {name: value for name, value in given.items() if value is not None}
    _try(settings)
    # The script may change its directory.
    logdir = (free(target.name) if logdir is None else _usable(logdir)).absolute()
    watching = Watching(logdir, settings)
    with _aside() if as_json else nullcontext():
        with watching:
            code = run(target, arguments)
        _flush()
    if not watching.forked and _leads():
        if as_json:
            click.echo(_json(watching, script, code))
        else:
            click.echo(_verdict(watching, script), err=True)
    sys.exit(code)


def _names(text: str) -> list[str]:
    return [name for each in text.split(",") if (name := each.strip())]


def _try(settings: dict[str, Any]) -> None:
    """Settings that cannot be are refused before the script runs, not at its first step."""
    from torch import nn

    from bpkit.diagnostics import watch as begin

    begin(nn.Linear(1, 1), **settings).close()


def _usable(logdir: Path) -> Path:
    if logdir.exists() and not logdir.is_dir():
        raise BpkitError(f"--logdir {logdir} is a file, not a directory")
    there = next(each for each in (logdir.absolute(), *logdir.absolute().parents) if each.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise BpkitError(f"--logdir {logdir}: {there} cannot be written to")
    return logdir


def _leads() -> bool:
    """Whether this process is the first of those that train together."""
    return os.environ.get("RANK", "0") == "0"


def _verdict(watching: Watching, script: str) -> str:
    """What stands at the end on the terminal."""
    several = len(watching.watched) > 1
    lines = []
    for each in watching.watched:
        lines.append(f"{each.name}:\n{_indented(each.summary)}" if several else each.summary)
    if watching.logdir is not None and watching.watched:
        lines.append(f"logs  tensorboard --logdir {_shown(watching.logdir)}")
    if not watching.watched:
        lines.append(_nothing(watching, script))
    return "\n".join(lines)


def _nothing(watching: Watching, script: str) -> str:
    if watching.unknown:
        steps = f"{watching.unknown} step" + ("s" if watching.unknown > 1 else "")
        return f"nothing watched: {script} has taken {steps}, but with parameters of no torch.nn.Module"
    return f"nothing watched: no torch optimizer has taken a step in the process of {script}"


def _json(watching: Watching, script: str, code: int) -> str:
    import json
    from dataclasses import asdict

    from bpkit.tensorboard.record import Verdicts

    models = []
    for each in watching.watched:
        verdicts = Verdicts(each.steps, [asdict(finding) for finding in each.findings], finished=True)
        held = json.loads(verdicts.to_json())
        logdir = None if each.logdir is None else str(each.logdir)
        models.append(
            {"model": each.name, "logdir": logdir, "steps": each.steps, "findings": held["findings"]}
        )
    return json.dumps({"script": script, "exit_code": code, "models": models}, indent=2)


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())


def _shown(path: Path) -> Path:
    """As short as it can be said from here."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _flush() -> None:
    """What the script has printed comes before the verdict, unless it closed stdout or its reader left."""
    with suppress(OSError, ValueError):
        sys.stdout.flush()


@contextmanager
def _aside() -> Iterator[None]:
    """What is written to stdout, by this process or its children, goes to stderr."""
    _flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        _flush()
        os.dup2(kept, 1)
        os.close(kept)
