"""`bpkit.nn` and `bpkit.functional`: every name of torch's, bpkit's own wherever there is one."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch.nn import functional as F

import bpkit.functional
import bpkit.nn as nn
from bpkit.plugins.registry import registry

MODULES = [spec.name for spec in registry().layers] + [spec.module.__name__ for spec in registry().losses]
FUNCTIONS = [
    "relu",
    "leaky_relu",
    "elu",
    "selu",
    "gelu",
    "silu",
    "sigmoid",
    "tanh",
    "softplus",
    "softmax",
    "log_softmax",
    "linear",
    "conv2d",
    "max_pool2d",
    "avg_pool2d",
    "batch_norm",
    "layer_norm",
    "embedding",
    "dropout",
    "mse_loss",
    "l1_loss",
    "cross_entropy",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
]


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


def test_what_has_no_hand_written_twin_is_torchs_own_object() -> None:
    assert nn.Module is torch.nn.Module
    assert nn.Transformer is torch.nn.Transformer
    assert nn.functional.pad is F.pad
