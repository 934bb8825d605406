"""`bpkit new-plugin NAME`: a distribution of one's own, that installs and passes its tests as it is."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import click

from bpkit.core.errors import BpkitError

_KINDS = "layer,loss,optimizer,regularizer,diagnostic,rule,recipe"


@click.command(name="new-plugin")
@click.argument("name")
@click.option("--kind", "kinds", default="layer", show_default=True, help=f"Of what: some of {_KINDS}.")
def new_plugin(name: str, kinds: str) -> None:
    """Write a plugin called NAME (a distribution's name, as bpkit-mine) to ./NAME.

    It has a working example of each kind, with its proof as tests, and a guide to every hook.
    """
    from bpkit.plugins import scaffold

    chosen = scaffold.kinds(each for each in kinds.split(",") if each.strip())
    written = scaffold.files(name, chosen)
    home = Path(name)
    if os.path.lexists(home):
        raise BpkitError(f"./{name} is there already, and nothing is overwritten; take another name")
    try:
        home.mkdir()
    except OSError as error:
        raise BpkitError(f"./{name} cannot be made: {error.strerror}") from error
    try:
        for path, text in written.items():
            file = home / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
    except BaseException as error:
        shutil.rmtree(home, ignore_errors=True)
        if isinstance(error, OSError):
            raise BpkitError(f"./{name} cannot be written: {error.strerror}") from error
        raise
    for path in written:
        click.echo(home / path)
    click.echo(f'\nnext:\n  cd {name}\n  pip install -e ".[dev]"\n  bpkit plugins\n  pytest', err=True)
