"""The guide for a plugin's author, read off the hook specifications and the spec dataclasses themselves.

`bpkit plugins --hooks` prints it, and `bpkit new-plugin` puts it into the README that it writes. What it
says of a hook or a field stands in that hook's or class's docstring and nowhere else.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields

from bpkit.core.spec import ModuleSpec, Sample, Spec
from bpkit.plugins import hookspecs
from bpkit.plugins.catalog import KINDS

# From the kinds of spec to what they share.
CLASSES: tuple[type, ...] = (*KINDS.values(), ModuleSpec, Spec, Sample)


def guide() -> str:
    """The hooks with their signatures, and every spec with its fields, in Markdown."""
    introduction, *about = (inspect.getdoc(hookspecs) or "").split("\n\n")
    lines = [f"## Hooks (version {hookspecs.VERSION})", "", introduction]
    for part in about:
        lines += ["", part]
    lines += ["", "### What a plugin brings"]
    for hook in hookspecs.PROVIDING:
        lines += _hook(hook)
    lines += ["", "### Training events"]
    for hook in hookspecs.EVENTS:
        lines += _hook(hook)
    lines += ["", "## Specs"]
    for kind in CLASSES:
        lines += _class(kind)
    return "\n".join(lines) + "\n"


def described(kind: type) -> dict[str, str]:
    """What the docstring of `kind` says of each of its attributes."""
    _, _, section = (inspect.getdoc(kind) or "").partition("\nAttributes:\n")
    found: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        start = re.match(r"    (\w+): (.*)", line)
        if start:
            name = start[1]
            found[name] = start[2]
        elif name and line.strip():
            found[name] += f" {line.strip()}"
    return found


def own_fields(kind: type) -> list[Field[object]]:
    """The fields that `kind` itself adds to those of its bases."""
    inherited = {each for base in kind.__mro__[1:] for each in getattr(base, "__dataclass_fields__", ())}
    return [each for each in fields(kind) if each.name not in inherited]


def _hook(name: str) -> Iterator[str]:
    specification = getattr(hookspecs, name)
    yield from ("", f"- `{name}{inspect.signature(specification)}`".replace("'", ""))
    yield from (f"  {line}".rstrip() for line in (inspect.getdoc(specification) or "").splitlines())


def _class(kind: type) -> Iterator[str]:
    said, _, _ = (inspect.getdoc(kind) or "").partition("\nAttributes:\n")
    bases = [base.__name__ for base in kind.__bases__ if base in CLASSES]
    yield from ("", f"### {kind.__name__}", "", said.strip())
    if bases:
        yield from ("", f"It has the fields of `{bases[0]}` as well.")
    descriptions = described(kind)
    own = own_fields(kind)
    if own:
        yield ""
    for each in own:
        yield f"- `{each.name}: {each.type}{_default(each)}`: {descriptions.get(each.name, '')}"


def _default(each: Field[object]) -> str:
    if each.default is not MISSING:
        return f" = {each.default!r}"
    return "" if each.default_factory is MISSING else f" = {each.default_factory()!r}"
