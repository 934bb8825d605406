"""A run as data: a TOML file, validated, every mistake told in one line with the nearest right key."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from bpkit.core.errors import BpkitError, nearest
from bpkit.core.spec import RecipeSpec


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Named(_Table):
    """Something registered, with its settings beside its name."""

    model_config = ConfigDict(extra="allow", strict=True)
    name: str

    def part(self) -> tuple[str, dict[str, Any]]:
        """As `Trainer` takes it."""
        return self.name, dict(self.model_extra or {})


class Data(_Table):
    """`[data]`: which data, and the share of the training part that is held out for validation."""

    name: str = "digits"
    validation: float = 0.1


class Model(_Table):
    """`[model]`: layers in order, each `[name, argument, ..., {keyword = argument}]`.

    `nn` says whose classes they are; `init` draws the weights of linear and convolutional layers.
    """

    layers: list[list[Any]]
    nn: Literal["bpkit", "torch"] = "bpkit"
    init: Literal["default", "he", "glorot"] = "default"


class Train(_Table):
    """`[train]`: what is left of `Trainer`'s and `fit`'s arguments."""

    epochs: int | None = None
    steps: int | None = None
    batch_size: int = 64
    seed: int = 0
    accumulate: int = 1
    clip: float | None = None
    precision: str = "fp32"
    device: str = "auto"
    metrics: list[str] | None = None
    diagnostics: list[str] | None = None
    monitor: str = "loss"


class Run(_Table):
    """The whole file."""

    summary: str = ""
    data: Data = Data()
    model: Model
    loss: Named = Named(name="cross_entropy")
    optimizer: Named = Named(name="adamw")
    schedule: Named = Named(name="constant")
    regularizers: list[Named] = []
    train: Train


def read(path: Path) -> str:
    """The text of a run's file.

    Raises:
        BpkitError: no such file, a directory, an empty or a binary one.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BpkitError(f"no file {path}") from None
    except IsADirectoryError:
        raise BpkitError(f"{path} is a directory, not a TOML file") from None
    except UnicodeDecodeError:
        raise BpkitError(f"{path} is not a TOML file: it is not text") from None
    except OSError as error:
        raise BpkitError(f"{path} cannot be read: {error.strerror}") from error
    if "\0" in text:
        raise BpkitError(f"{path} is not a TOML file: it is not text")
    if not text.strip():
        raise BpkitError(f"{path} is empty")
    return text


def source(name: str, recipes: Any) -> tuple[str, str, str]:
    """`(run's name, where from, text)` of a recipe's name or of a file.

    Raises:
        BpkitError: neither a recipe nor a readable file.
    """
    if name.endswith(".toml") or "/" in name or Path(name).exists():
        return Path(name).stem, name, read(Path(name))
    spec: RecipeSpec = recipes[name]
    return spec.name, f"recipe {spec.name}", spec.toml


def parse(text: str, where: str, changes: Iterable[str] = ()) -> Run:
    """The run that `text` describes, with `key=value` changes applied.

    Raises:
        BpkitError: no TOML; an unknown or mistyped key or value, with its line.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BpkitError(f"{where}: no valid TOML: {error}") from error
    changed: dict[tuple[str, ...], str] = {}
    for change in changes:
        path, value = _change(change)
        changed[path] = change
        _put(table, path, value, change)
    try:
        return Run.model_validate(table)
    except ValidationError as error:
        raise BpkitError(_explained(error, text, where, changed)) from None


def _change(change: str) -> tuple[tuple[str, ...], Any]:
    key, equals, value = change.partition("=")
    if not equals or not key.strip():
        raise BpkitError(f"--set {change}: expected key=value, such as train.epochs=5")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()  # a bare word
    return tuple(part.strip() for part in key.split(".")), parsed


def _put(table: dict[str, Any], path: tuple[str, ...], value: Any, change: str) -> None:
    for key in path[:-1]:
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise BpkitError(f"--set {change}: {key} is not a table")
    table[path[-1]] = value


def _explained(error: ValidationError, text: str, where: str, changed: dict[tuple[str, ...], str]) -> str:
    """The first mistake, in one line."""
    first = error.errors()[0]
    path = tuple(str(part) for part in first["loc"])
    keys = tuple(part for part in path if not part.isdigit())
    known = _known(path)
    if keys in changed:
        place = f"--set {changed[keys]}"
    else:
        line = line_of(text, keys)
        place = f"{where}, line {line}" if line else where
    dotted = ".".join(path)
    if first["type"] == "extra_forbidden":
        close = nearest(path[-1], known)
        hint = f"did you mean {close!r}?" if close else f"there are: {', '.join(known)}"
        return f"{place}: unknown key {dotted!r}; {hint}"
    if first["type"] == "missing":
        return f"{place}: {dotted!r} is missing"
    message = first["msg"].removeprefix("Input ").removeprefix("Value error, ")
    return f"{place}: {dotted} {message}, not {first['input']!r}"


def _known(path: tuple[str, ...]) -> list[str]:
    """The keys of the table that `path` is in."""
    table: type[BaseModel] = Run
    for key in path[:-1]:
        field = table.model_fields.get(key)
        kinds = [field.annotation, *get_args(field.annotation)] if field else []
        table = next(
            (kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), table
        )
    return list(table.model_fields)


def line_of(text: str, keys: tuple[str, ...]) -> int | None:
    """The line of the TOML text that sets `keys`, or else opens the deepest table on the way."""
    table: tuple[str, ...] = ()
    best: tuple[int, int] | None = None
    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(r"\s*\[+\s*([\w.\-]+)\s*\]+", line)
        key = re.match(r"\s*([\w.\-]+)\s*=", line)
        if header:
            table = tuple(header[1].split("."))
            found = table
        elif key:
            found = (*table, *key[1].split("."))
        else:
            continue
        if keys[: len(found)] == found and (best is None or len(found) > best[0]):
            best = len(found), number
    return best[1] if best else None
