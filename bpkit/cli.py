"""The command line: `bpkit demo`, `train`, `watch`, `verify`, `doctor`, `plugins`, `new-plugin`, `bench`.

A subcommand is imported when it is called, so that `bpkit --help` needs no torch. A user's mistake is
one line on stderr and exit code 2, without a traceback; any other exception is a bug, and keeps its own.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Sequence

import click

from bpkit import __version__
from bpkit.core.errors import BpkitError, unknown_name

COMMANDS = {
    "demo": "Prove, train, diagnose and mend a network, on real digits, in a minute and a half.",
    "train": "Train a recipe, by its name or from a TOML file.",
    "verify": "Prove every backward that is registered, or those named.",
    "watch": "Run a training script unchanged, and say what is wrong with its gradients.",
    "doctor": "Say what is wrong with a run, from its logs.",
    "plugins": "List the plugins, what they provide, and what is wrong with them.",
    "new-plugin": "Write a plugin of your own: a distribution that installs and passes its tests.",
    "bench": "Measure layers and the Trainer against torch's own.",
}


class Lazy(click.Group):
    """A group of commands `bpkit.commands.NAME:NAME` (hyphens are underscores), imported when called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        if cmd_name not in COMMANDS:
            raise unknown_name("command", cmd_name, COMMANDS)
        name = cmd_name.replace("-", "_")
        command: click.Command = getattr(importlib.import_module(f"bpkit.commands.{name}"), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=Lazy, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="bpkit", message="%(prog)s %(version)s")
@click.option(
    "-p",
    "plugins",
    multiple=True,
    metavar="[no:]NAME",
    help="Load plugin NAME (an entry point, a module, file.py), or fail; no:NAME leaves it out. Repeatable.",
)
@click.option("--trace-hooks", is_flag=True, help="Print each hook call to stderr, with its plugin and time.")
@click.pass_context
def bpkit(ctx: click.Context, plugins: tuple[str, ...], trace_hooks: bool) -> None:
    """Hand-written backpropagation for PyTorch: proven, watched, trained.

    BPKIT_PLUGINS=NAME,... loads those installed plugins alone; BPKIT_AUTOLOAD=0 loads none unasked.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
        return
    _hand_down("BPKIT_ASK", [_asked(each) for each in plugins if not each.startswith("no:")])
    _hand_down("BPKIT_BLOCK", [each.removeprefix("no:") for each in plugins if each.startswith("no:")])
    if trace_hooks:
        os.environ["BPKIT_TRACE"] = "1"
    if plugins:
        from bpkit.plugins import registry

        registry()  # says at once when a plugin that was named is unknown or broken


def _asked(name: str) -> str:
    """A file by its path from the root, which holds in any directory; any other name as it is."""
    from bpkit.plugins import files

    if not files.is_path(name):
        return name
    path = files.absolute(name)
    if "," in path:
        raise BpkitError(f"-p {path}: a plugin's path can have no comma, which BPKIT_ASK puts between two")
    return path


def _hand_down(variable: str, names: list[str]) -> None:
    """Add `names` to a variable that the registry reads, here and in worker processes."""
    if not all(name.strip() for name in names):
        raise BpkitError("-p: names no plugin; it takes NAME or no:NAME")
    if names:
        os.environ[variable] = ",".join(filter(None, (os.environ.get(variable), *names)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; `arguments` are the process's own by default.

    Returns:
        0 done, 1 the command found a fault, 2 a user's mistake, 130 Ctrl-C, 141 the reader of stdout left.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a sigma must not end a run in a Latin-1 terminal
    try:
        code = _run(sys.argv[1:] if arguments is None else list(arguments))
        sys.stdout.flush()
    except BrokenPipeError:
        if not _reader_left():
            raise
        return 141
    except KeyboardInterrupt:
        return 130
    return code


def _run(arguments: list[str]) -> int:
    try:
        with bpkit.make_context("bpkit", arguments) as ctx:
            bpkit.invoke(ctx)
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.Abort:  # Ctrl-C at a prompt
        return 130
    except BpkitError as error:
        return _refuse(str(error))
    except click.ClickException as error:
        return _refuse(error.format_message())
    return 0


def _refuse(message: str) -> int:
    print(f"bpkit: error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _reader_left() -> bool:
    """Whether it is stdout that is broken; if so, what is still in its buffer is let go."""
    try:
        print(flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False
