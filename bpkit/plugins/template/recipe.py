"""The example of a recipe that `bpkit new-plugin` writes."""

from __future__ import annotations

from collections.abc import Iterable

from bpkit import RecipeSpec, hookimpl

DIGITS = """\
summary = "Handwritten digits with a small multilayer perceptron"

[model]
init = "he"
layers = [
    ["Flatten"],
    ["Linear", 64, 32],
    ["ReLU"],
    ["Linear", 32, 10],
]

[optimizer]
name = "adamw"
lr = 0.01

[train]
epochs = 10
"""


@hookimpl
def bpkit_recipes() -> Iterable[RecipeSpec]:
    """The recipes, for `bpkit train NAME`."""
    return [RecipeSpec(name="mine.digits", toml=DIGITS, summary="digits with a small perceptron")]
