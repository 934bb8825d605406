"""A run as data: a TOML file, validated, every mistake told in one line with the nearest right key."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

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

    epochs: int | None = Field(None, ge=1)
    steps: int | None = Field(None, ge=1)
    batch_size: int = Field(64, ge=1)
    seed: int = Field(0, ge=-(2**63), lt=2**63)
    accumulate: int = Field(1, ge=1)
    clip: float | None = Field(None, gt=0)
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
    _place: Callable[..., str] | None = PrivateAttr(default=None)

    @contextmanager
    def at(self, *path: str | int) -> Iterator[None]:
        """Put before an error inside where `path` is set: the file and its line."""
        try:
            yield
        except BpkitError as error:
            if self._place is None:
                raise
            raise BpkitError(f"{self._place(*path)}: {error}") from error


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
    path = Path(name)
    if name not in recipes and (path.suffix == ".toml" or len(path.parts) != 1 or _is_there(path)):
        return path.stem, name, read(path)
    spec: RecipeSpec = recipes[name]
    return spec.name, f"recipe {spec.name}", spec.toml


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that no file can have
        return False


def parse(text: str, where: str, changes: Iterable[str] = ()) -> Run:
    """The run that `text` describes, with `key=value` changes applied.

    Raises:
        BpkitError: no TOML; an unknown or mistyped key or value, with its line.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        last = len(text.splitlines())
        reason = str(error).replace("end of document", f"the end, line {last}")
        raise BpkitError(f"{where}: no valid TOML: {reason}") from error
    changed: dict[tuple[str, ...], str] = {}
    for change in changes:
        path, value = _change(change)
        changed[path] = change
        _put(table, path, value, change)
    _replace_length(table, changed)
    place = partial(_place, text, where, changed)
    try:
        run = Run.model_validate(table)
    except ValidationError as error:
        raise BpkitError(_explained(error, place)) from None
    run._place = place
    return run


def _replace_length(table: dict[str, Any], changed: Mapping[tuple[str, ...], str]) -> None:
    """A length that is set takes the place of the one that the file has in the other unit."""
    for new, old in (("steps", "epochs"), ("epochs", "steps")):
        if ("train", new) in changed and ("train", old) not in changed:
            table["train"].pop(old, None)


def _place(text: str, where: str, changed: Mapping[tuple[str, ...], str], *path: str | int) -> str:
    """Where `path` is set: the `--set` that did so, or the file and its line."""
    for end in range(len(path), 0, -1):
        if (change := changed.get(tuple(map(str, path[:end])))) is not None:
            return f"--set {change}"
    line = line_of(text, path)
    return f"{where}, line {line}" if line else where


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


def _explained(error: ValidationError, place: Callable[..., str]) -> str:
    """The first mistake, in one line."""
    first = min(
        error.errors(), key=lambda each: each["type"] != "extra_forbidden"
    )  # what is missing may be there
    path = first["loc"]
    dotted = ".".join(map(str, path))
    if first["type"] == "extra_forbidden":
        known = _known(path)
        close = nearest(str(path[-1]), known)
        hint = f"did you mean {close!r}?" if close else f"there are: {', '.join(known)}"
        return f"{place(*path)}: unknown key {dotted!r}; {hint}"
    if first["type"] == "missing":
        return f"{place(*path)}: {dotted!r} is missing"
    message = first["msg"].removeprefix("Input ").removeprefix("Value error, ")
    if first["type"] == "model_type":
        message = "should be a table"
    return f"{place(*path)}: {dotted} {message}, not {first['input']!r}"


def _known(path: tuple[str | int, ...]) -> list[str]:
    """The keys of the table that `path` is in."""
    table: type[BaseModel] = Run
    for key in path[:-1]:
        field = table.model_fields.get(str(key))
        kinds = [field.annotation, *get_args(field.annotation)] if field else []
        table = next(
            (kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), table
        )
    return list(table.model_fields)


def line_of(text: str, path: tuple[str | int, ...]) -> int | None:
    """The line of the TOML text that sets what stands at `path`, or else opens the deepest table on the way.

    `tomllib` keeps no positions. So the text is read line after line, each time as far as it is TOML (an
    array in progress is closed): what `path` leads to is set by the line after which it is there.
    """
    lines, start, deepest, best = text.splitlines(), 0, 0, None
    for end in range(1, len(lines) + 1):
        part = "\n".join(lines[:end])
        table = next((read for tail in ("", "\n]", "\n]]") if (read := _read(part + tail)) is not None), None)
        if table is None:
            continue
        depth = _depth(table, path)
        if depth > deepest:
            deepest, best = depth, start + 1
        if depth == len(path):
            break
        start = end
    return best


def _read(text: str) -> dict[str, Any] | None:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return None


def _depth(table: Any, path: tuple[str | int, ...]) -> int:
    """How many keys and indices of `path` there are."""
    for depth, key in enumerate(path):
        try:
            table = table[key]
        except (KeyError, IndexError, TypeError):
            return depth
    return len(path)
