"""`bpkit plugins`: one plugin a line, what it provides, and what is wrong with it."""

from __future__ import annotations

import dataclasses
import json

import click

from bpkit.commands._console import print_table
from bpkit.plugins import PluginInfo, registry

STYLES = {"ok": "green", "blocked": "yellow", "broken": "bold red"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
@click.option("--hooks", is_flag=True, help="Print the guide for authors instead: every hook, every spec.")
@click.option("--layers", is_flag=True, help="Print the table of layers and losses instead, in Markdown.")
def plugins(as_json: bool, hooks: bool, layers: bool) -> None:
    """List the plugins, what they provide, and what is wrong with them.

    A broken plugin is reported here and left out elsewhere; `bpkit -p NAME` makes it an error. To write
    one, `bpkit new-plugin NAME`; what it can do, `bpkit plugins --hooks`.
    """
    if hooks:
        from bpkit.plugins.guide import guide

        click.echo(guide(), nl=False)
        return
    if layers:
        from bpkit.plugins.table import table

        click.echo(table([*registry().layers, *registry().losses]))
        return
    found = registry().plugins
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(info) for info in found], indent=2))
        return
    print_table(
        ("plugin", "version", "status", "provides"),
        [(info.name, info.version or "-", info.status, _provides(info)) for info in found],
        styles=lambda column, cell: STYLES.get(cell, "") if column == "status" else "",
        plain_heading=False,
    )


def _provides(info: PluginInfo) -> str:
    """`layers: Linear, Conv2d; losses: MSELoss`, or why there is nothing."""
    return info.error or "; ".join(f"{kind}: {', '.join(names)}" for kind, names in info.provides.items())
