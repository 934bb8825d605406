from __future__ import annotations

import importlib
import sys

import pytest

from bpkit.core.errors import BpkitError


@pytest.mark.parametrize(
    ("name", "packages"),
    [
        ("lightning", ["lightning", "lightning.pytorch", "pytorch_lightning"]),
        ("transformers", ["transformers"]),
        ("ignite", ["ignite", "ignite.engine"]),
    ],
)
def test_without_its_library_an_integration_says_what_to_install(monkeypatch, name, packages):
    for package in packages:
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"bpkit.integrations.{name}", raising=False)
    with pytest.raises(BpkitError, match=rf"pip install 'bpkit\[{name}\]'") as caught:
        importlib.import_module(f"bpkit.integrations.{name}")
    assert isinstance(caught.value, ImportError)
    assert "\n" not in str(caught.value)
