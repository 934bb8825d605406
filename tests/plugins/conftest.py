"""Distributions that exist for one test: metadata and a module on `sys.path`, as pip would leave them."""

from __future__ import annotations

import importlib
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Install = Callable[..., Path]

VARIABLES = ("BPKIT_PLUGINS", "BPKIT_BLOCK", "BPKIT_ASK", "BPKIT_AUTOLOAD", "BPKIT_TRACE")


@pytest.fixture(autouse=True)
def _no_options(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        monkeypatch.setenv(variable, "")  # so that what a test sets is taken back
        monkeypatch.delenv(variable)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """`install(distribution, point, body, version="1.0")`: an entry point to a module with that body."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)

    def install(distribution: str, point: str, body: str, version: str = "1.0") -> Path:
        module = f"module_of_{distribution.replace('-', '_').lower()}_{point}"
        tmp_path.joinpath(f"{module}.py").write_text(textwrap.dedent(body))
        metadata = tmp_path / f"{distribution.replace('-', '_')}-{version}.dist-info"
        metadata.mkdir(exist_ok=True)
        metadata.joinpath("METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
        )
        with metadata.joinpath("entry_points.txt").open("a") as points:
            points.write(f"[bpkit]\n{point} = {module}\n")
        importlib.invalidate_caches()
        return metadata

    yield install
    for name in set(sys.modules) - before:
        if name.startswith("module_of_"):
            del sys.modules[name]
