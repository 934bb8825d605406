"""`bpkit.nn` and `bpkit.functional`: every name of torch's, bpkit's own wherever there is one."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

import bpkit.functional
import bpkit.nn as nn
from bpkit.plugins.registry import registry

MODULES = [
    spec.module.__name__
    for spec in (*registry().layers, *registry().losses)
    if spec.reference is not None and hasattr(torch.nn, spec.reference.__name__)
]
# What bpkit.nn.functional has of torch's own: no gradient passes through it, or no layer of torch.nn uses it.
NATIVE = {"conv_tbc", "grouped_mm", "native_channel_shuffle", "one_hot", "scaled_grouped_mm", "scaled_mm"}
HELPERS = {"assert_int_or_pair", "boolean_dispatch"}
FUNCTIONS = [
    name
    for name in dir(F)
    if callable(getattr(F, name))
    and not isinstance(getattr(F, name), type)
    and getattr(getattr(F, name), "__module__", None) != "typing"
    and not name.startswith(("_", "has_torch_function", "handle_torch_function"))
    and name not in NATIVE | HELPERS
]
CONTAINERS = {
    *("Container", "DataParallel", "Module", "ModuleDict", "ModuleList", "ParameterDict", "ParameterList"),
    *("RNNBase", "RNNCellBase", "Sequential"),
}


@pytest.mark.parametrize("name", MODULES)
def test_a_hand_written_module_is_in_the_place_of_torchs(name: str) -> None:
    module = getattr(nn, name)
    assert module.__module__.startswith("bpkit.")
    assert issubclass(module, getattr(torch.nn, name))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_hand_written_function_is_in_the_place_of_torchs(name: str) -> None:
    assert getattr(nn.functional, name) is not getattr(F, name)
    assert getattr(nn.functional, name).__module__.startswith("bpkit.")


def test_the_functional_namespace_has_three_paths_and_one_module() -> None:
    assert nn.functional is bpkit.functional
    assert nn.functional is importlib.import_module("bpkit.nn.functional")
    assert nn.functional is importlib.import_module("bpkit.functional")


@pytest.mark.parametrize(("theirs", "ours"), [(torch.nn, nn), (F, nn.functional)], ids=["nn", "functional"])
def test_no_public_name_of_torchs_is_missing(theirs: object, ours: object) -> None:
    missing = [name for name in dir(theirs) if not name.startswith("_") and not hasattr(ours, name)]
    assert missing == []


def test_every_module_of_torch_nn_but_the_containers_is_hand_written() -> None:
    theirs = {
        name
        for name, each in vars(torch.nn).items()
        if isinstance(each, type) and issubclass(each, torch.nn.Module) and getattr(nn, name) is each
    }
    assert theirs == CONTAINERS


@pytest.mark.parametrize("name", sorted(NATIVE))
def test_what_has_no_hand_written_twin_is_torchs_own_object(name: str) -> None:
    if hasattr(F, name):  # an older torch lacks some
        assert getattr(nn.functional, name) is getattr(F, name)


def test_containers_init_parallel_and_utils_are_torchs() -> None:
    for name in (*CONTAINERS, "Parameter", "init", "parallel", "utils", "attention"):
        assert getattr(nn, name) is getattr(torch.nn, name)


def test_a_name_that_an_older_torch_lacks_is_absent_and_breaks_nothing() -> None:
    code = (
        "import torch.nn, torch.nn.functional as F, torch.nn.modules.loss\n"
        "del torch.nn.LinearCrossEntropyLoss, torch.nn.modules.loss.LinearCrossEntropyLoss\n"
        "del torch.nn.LinearCrossEntropyOptions, F.linear_cross_entropy\n"
        "import bpkit, bpkit.nn\n"
        "from bpkit.plugins import registry\n"
        "assert not hasattr(bpkit.nn, 'LinearCrossEntropyLoss')\n"
        "assert not hasattr(bpkit.functional, 'linear_cross_entropy')\n"
        "assert 'cross_entropy' in registry().losses and 'linear_cross_entropy' not in registry().losses\n"
        "with bpkit.handwritten(): pass\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
