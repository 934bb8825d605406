"""The nearest name to a mistyped one."""

import pytest

from bpkit.core.errors import nearest

KNOWN = ["LSTM", "lstm", "AdamW", "adamw", "Linear"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("LSTN", "LSTM"),
        ("lstn", "lstm"),
        ("adamww", "adamw"),
        ("ADAMW", "AdamW"),
        ("linaer", "Linear"),
        ("convolution", None),
    ],
)
def test_case_tells_apart_only_what_nothing_else_does(name, expected):
    assert nearest(name, KNOWN) == expected
