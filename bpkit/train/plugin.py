"""The built-in recipes, handed in through the hook that every plugin uses."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from importlib import resources

from bpkit.core.spec import RecipeSpec
from bpkit.plugins.hookspecs import hookimpl


@hookimpl
def bpkit_recipes() -> Iterable[RecipeSpec]:
    """One for each file of `recipes/`, its `summary` the file's own."""
    files = sorted(resources.files("bpkit.train").joinpath("recipes").iterdir(), key=lambda file: file.name)
    texts = {
        file.name.removesuffix(".toml"): file.read_text() for file in files if file.name.endswith(".toml")
    }
    return [
        RecipeSpec(name=name, summary=tomllib.loads(text)["summary"], toml=text)
        for name, text in texts.items()
    ]
