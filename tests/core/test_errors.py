"""The nearest name to a mistyped one."""

import pytest

from bpkit.core.errors import nearest, unknown_name

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


def test_a_long_list_of_names_is_cut():
    known = [f"kind{i:03}" for i in range(300)]
    message = str(unknown_name("layer", "xyz", known))
    assert message.endswith("kind023 and 276 more; `bpkit plugins` lists them")
    assert len(message) < 400
