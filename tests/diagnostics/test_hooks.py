"""What a copy of a watched model has in the place of hooks."""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn

import bpkit
from tests.diagnostics.by_hand import network

pytestmark = pytest.mark.cpu


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_says_nothing(
    copied: Callable[[nn.Module], nn.Module],
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    model = network()
    with bpkit.watch(model, torch.optim.SGD(model.parameters(), 0.1)):
        twin = copied(model)
    assert any(module._forward_hooks for module in twin.modules())
    caplog.set_level(logging.DEBUG)
    x = torch.randn(2, 6)
    assert torch.equal(twin(x), model(x))
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def test_a_pickle_needs_no_bpkit() -> None:
    model = network()
    with bpkit.watch(model, torch.optim.SGD(model.parameters(), 0.1)):
        assert b"bpkit" not in pickle.dumps(model)
