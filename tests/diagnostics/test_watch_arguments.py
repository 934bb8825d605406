"""What `watch` refuses, in one line."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import bpkit
from bpkit.core.errors import BpkitError
from tests.diagnostics.watched import network


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": torch.zeros(1)}, "model must be a torch.nn.Module, not Tensor"),
        ({"optimizer": "adam"}, "optimizer must be a torch.optim.Optimizer or hold one, not 'adam'"),
        ({"every": 0}, "^watch: every must be a whole number of steps, at least 1, not 0$"),
        ({"budget": 0}, "^watch: budget must be a share of the time, above 0 and at most 1, not 0$"),
        ({"every": 0, "budget": 2}, "every must be .*, not 0; budget must be .*, not 2$"),
        ({"diagnostics": ["vanish"]}, "unknown diagnostic 'vanish': did you mean 'vanishing'"),
        ({"diagnostics": [3]}, "diagnostics must be names or bpkit.diagnostics.Diagnostic objects, not 3"),
        ({"logdir": "a", "writer": object()}, "logdir or writer, not both"),
    ],
)
def test_bad_arguments_get_one_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(BpkitError, match=message):
        bpkit.watch(**{"model": network(), **arguments})


MISTAKES = {
    "every": ({"every": 2.5}, "every must be a whole number of steps, at least 1, not 2.5$"),
    "budget": ({"budget": "a"}, "watch: budget must be a share .* not 'a'$"),
    "diagnostics": ({"diagnostics": "vanishing"}, "diagnostics must be a list"),
    "writer": ({"writer": 3}, "writer must be"),
    "scaler": ({"scaler": 3}, "scaler must be"),
    "logdir": ({"logdir": 3}, "logdir must be a path"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_an_argument_of_the_wrong_kind_is_one_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(BpkitError, match=message):
        bpkit.watch(network(), **arguments)
