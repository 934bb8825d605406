"""What importing bpkit, and asking its command line for help, may and may not do."""

from __future__ import annotations

import subprocess
import sys

import pytest

import bpkit


def run(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


HEAVY = "[n for n in ('torch', 'numpy', 'tensorboard', 'pluggy', 'rich', 'pydantic') if n in sys.modules]"


def test_importing_bpkit_imports_nothing_heavy() -> None:
    assert run(f"import bpkit, sys; print({HEAVY})") == "[]"


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_import_nothing_heavy(option: str) -> None:
    code = f"import sys; from bpkit.cli import main; main([{option!r}]); print({HEAVY})"
    assert run(code).splitlines()[-1] == "[]"


STATE = """
import logging, os, random, signal, sys, threading, warnings
import numpy, torch
def state():
    return (
        {number: signal.getsignal(number) for number in signal.valid_signals()},
        random.getstate(), numpy.random.get_state()[1].tobytes(), torch.get_rng_state().tolist(),
        torch.get_num_threads(), torch.get_num_interop_threads(), torch.get_default_dtype(),
        torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled(),
        torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark,
        warnings.filters[:], logging.root.handlers[:], logging.root.level,
        threading.active_count(), dict(os.environ), sys.excepthook, sys.path[:], os.getcwd(),
    )
before = state()
"""


def test_importing_bpkit_and_all_its_names_changes_no_global_state() -> None:
    names = "import bpkit\nfor name in bpkit.__all__: getattr(bpkit, name)\n"
    assert run(f"{STATE}{names}print([a == b for a, b in zip(before, state())].count(False))") == "0"


def test_importing_bpkit_and_all_its_names_loads_no_plugin() -> None:
    code = """
import sys, bpkit
for name in bpkit.__all__: getattr(bpkit, name)
from bpkit.plugins.sources import BUILT_IN
print(sys.modules["bpkit.plugins.registry"]._process._registry)
"""
    assert run(code) == "None"


@pytest.mark.parametrize("name", bpkit.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(bpkit, name) is not None
    assert name in dir(bpkit)


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'bpkit' has no attribute 'wach'"):
        bpkit.wach  # noqa: B018
