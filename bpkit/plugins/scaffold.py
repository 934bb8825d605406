"""What `bpkit new-plugin` writes: the files of `template/`, one module and one test file from its pieces.

A piece is a working module of bpkit's own, checked as such, with `mine` where the new plugin's name goes.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import keyword
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from string import Template

from bpkit.core.errors import BpkitError, unknown_name
from bpkit.plugins import sources
from bpkit.plugins.guide import guide
from bpkit.plugins.hookspecs import PROVIDING

# By kind: what is to be done with its example, in the README.
KINDS: Mapping[str, str] = {
    "layer": '`Softcap`, a layer: `bpkit.convert(model)`, or `["mine.Softcap"]` in a recipe',
    "loss": '`LogCosh`, a loss: `Trainer(loss="mine.log_cosh")`',
    "optimizer": '`HeavyBall`, an optimizer: `Trainer(optimizer="mine.heavy_ball")`',
    "regularizer": '`SmoothL1`, a regularizer: `Trainer(regularizers=["mine.smooth_l1"])`',
    "diagnostic": '`Dominant`, a diagnostic: `bpkit.watch(model, diagnostics=["mine.dominant"])`',
    "rule": '`SignLinear`, a learning rule: `bpkit.convert(model, rule="mine.sign")`',
    "recipe": "`DIGITS`, a recipe: `bpkit train mine.digits`",
}
_PROVABLE = ("layer", "loss", "optimizer", "regularizer", "rule")
_ASSIGNMENT = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")  # a constant stands closer to the imports than a class does
_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?", re.IGNORECASE)  # PEP 508


def kinds(names: Iterable[str]) -> tuple[str, ...]:
    """The kinds called `names`, each once, in the order of `KINDS`.

    Raises:
        BpkitError: an unknown one, with the nearest; none at all.
    """
    wanted = [name.strip() for name in names]
    for name in wanted:
        if name not in KINDS:
            raise unknown_name("kind", name, KINDS)
    if not wanted:
        raise BpkitError(f"no kind is named; there are: {', '.join(KINDS)}")
    return tuple(kind for kind in KINDS if kind in wanted)


def module_name(name: str) -> str:
    """The module of the distribution `name`: hyphens and dots as underscores, in lower case.

    Raises:
        BpkitError: a name that no distribution can have, one that no module can, or one that is taken.
    """
    if not _NAME.fullmatch(name):
        raise BpkitError(
            f"{name!r} is no name for a distribution: letters, digits, '-', '_' and '.', such as bpkit-mine"
        )
    module = re.sub(r"[-.]", "_", name).lower()
    if not module.isidentifier() or keyword.iskeyword(module) or keyword.issoftkeyword(module):
        raise BpkitError(f"{name!r} would be imported as {module!r}, which Python cannot; take bpkit-{name}")
    if module in sys.stdlib_module_names or module in sys.builtin_module_names or _importable(module):
        raise BpkitError(f"{name!r} would be imported as {module!r}, which is there already; take another")
    canonical = _canonical(name)
    if any(_canonical(each) == canonical for each in _distributions()):
        raise BpkitError(f"a distribution called {name!r} is installed already; take another name")
    plugins = [*sources.BUILT_IN, *(source.name for source in sources.installed())]
    if canonical in map(_canonical, plugins):
        raise BpkitError(f"a plugin called {name!r} is there already; take another name")
    if module in PROVIDING:
        raise BpkitError(f"{name!r} would be imported as {module!r}, the name of a hook; take another name")
    return module


def files(name: str, chosen: Sequence[str]) -> dict[str, str]:
    """The text of every file of a new plugin, by its path in the distribution's directory."""
    module = module_name(name)
    mine = {"bpkit-mine": name, "bpkit_mine": module, "mine.": f"{module.removeprefix('bpkit_')}."}
    tests = ["common", *(["proof"] if set(chosen) & set(_PROVABLE) else []), *chosen]
    contents = "\n".join(f"- {KINDS[kind]};" for kind in chosen).removesuffix(";") + "."

    def text(path: str) -> str:
        return _replaced(_text(path), mine)

    title = f"{name}, a plugin of bpkit: {_listed(chosen)}."
    return {
        "pyproject.toml": text("pyproject.toml.in"),
        "README.md": Template(text("README.md.in")).substitute(
            contents=_replaced(contents, mine), guide=guide().rstrip()
        ),
        ".gitignore": text("gitignore.in"),
        ".github/workflows/ci.yml": text("ci.yml.in"),
        f"src/{module}/__init__.py": _joined(
            title, [text(f"{kind}.py") for kind in chosen], [] if len(chosen) == 1 else chosen, own=module
        ),
        f"src/{module}/py.typed": "",
        f"tests/test_{module}.py": _joined(
            f"The proof of {name}.", [text(f"tests/{each}.py.in") for each in tests], [], own=module
        ),
    }


def _text(path: str) -> str:
    return resources.files("bpkit.plugins").joinpath("template", *path.split("/")).read_text(encoding="utf-8")


def _replaced(text: str, names: Mapping[str, str]) -> str:
    return re.sub("|".join(rf"\b{re.escape(each)}" for each in names), lambda match: names[match[0]], text)


def _listed(chosen: Sequence[str]) -> str:
    articles = [f"an {kind}" if kind[0] in "aeiou" else f"a {kind}" for kind in chosen]
    return " and ".join(filter(None, (", ".join(articles[:-1]), articles[-1])))


def _joined(docstring: str, pieces: Sequence[str], banners: Sequence[str], *, own: str) -> str:
    """One module: the imports of all pieces, once each, and then their bodies, under banners.

    `own` is the module that is imported last, in a group of its own.
    """
    imports: dict[tuple[str, str], set[str]] = {}
    bodies = []
    for piece in pieces:
        statements = ast.parse(piece).body
        last = 0
        for statement in statements:
            if isinstance(statement, (ast.Import, ast.ImportFrom)):
                origin = statement.module or "" if isinstance(statement, ast.ImportFrom) else ""
                for alias in statement.names:
                    group = _group(origin or alias.name, origin, own)
                    imports.setdefault(group, set()).add(ast.unparse(alias))
                last = statement.end_lineno or last
        bodies.append("\n".join(piece.splitlines()[last:]).strip("\n"))
    for number, banner in enumerate(banners):
        bodies[number] = f"# --- {banner} {'-' * (90 - len(banner))}\n\n\n{bodies[number]}"
    head = "\n".join([f'"""{docstring}"""', "", *_import_lines(imports)])
    blank = "\n\n" if banners or bodies[0].startswith(_ASSIGNMENT) else "\n\n\n"
    return head + blank + "\n\n\n".join(bodies) + "\n"


def _group(module: str, origin: str, own: str) -> tuple[str, str]:
    """Where an import stands (`__future__`, the standard library, others, its own), and what it is from."""
    top = module.split(".")[0]
    place = "0" if top == "__future__" else "1" if top in sys.stdlib_module_names else "2"
    return "3" if top == own else place, origin


def _import_lines(imports: Mapping[tuple[str, str], set[str]]) -> list[str]:
    """The statements in the order in which isort puts them, a blank line between two groups."""
    lines: list[str] = []
    for place in ("0", "1", "2", "3"):
        here = {origin: names for (group, origin), names in imports.items() if group == place}
        plain = [f"import {name}" for name in sorted(here.pop("", set()))]
        given = []
        for origin, names in sorted(here.items()):
            renamed = {name for name in names if " as " in name}
            for each in (names - renamed, *({name} for name in sorted(renamed))):
                given += [_from(origin, each)] if each else []
        if plain or given:
            lines += [*([""] if lines else []), *plain, *given]
    return lines


def _from(origin: str, names: Iterable[str]) -> str:
    """`from origin import names`: constants, classes, functions; one a line where 120 columns do not do."""

    def key(name: str) -> tuple[int, str]:
        return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)

    each = sorted(names, key=key)
    line = f"from {origin} import {', '.join(each)}"
    if len(line) <= 120:
        return line
    return "\n    ".join([f"from {origin} import (", *(f"{name}," for name in each)]) + "\n)"


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return True


def _distributions() -> Iterable[str]:
    for each in importlib.metadata.distributions():
        try:
            name = each.name
        except Exception:  # a METADATA that is garbled
            continue
        if name:
            yield name


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
