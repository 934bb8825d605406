"""Specs by name or alias, and what a catalog refuses to hold."""

from __future__ import annotations

import pytest
from torch import nn

from bpkit.core.errors import UnknownNameError
from bpkit.core.spec import LayerSpec, LossSpec, RecipeSpec
from bpkit.plugins import Catalog, PluginError, PluginInfo

OURS, THEIRS = PluginInfo("ours", "1.0"), PluginInfo("theirs", "2.0")


def recipe(name: str, *aliases: str) -> RecipeSpec:
    return RecipeSpec(name=name, aliases=aliases, toml="")


def layer(name: str, reference: type[nn.Module] | None = nn.Linear) -> LayerSpec:
    return LayerSpec(
        name=name,
        module=nn.Linear,
        reference=reference,
        samples=lambda: (),
        saves="",
        saved_bytes=lambda module, inputs, output: 0,
    )


@pytest.fixture
def catalog() -> Catalog[RecipeSpec]:
    return Catalog[RecipeSpec]("recipes").with_specs([recipe("small", "s"), recipe("large")], OURS)


def test_by_name_or_alias_in_order_with_the_owner(catalog: Catalog[RecipeSpec]) -> None:
    larger = catalog.with_specs([recipe("huge", "h")], THEIRS)
    assert larger["s"] is larger["small"] is catalog["small"]
    assert larger.names() == ("small", "large", "huge")
    assert [spec.name for spec in larger] == ["small", "large", "huge"]
    assert (larger.owner("h"), larger.owner("s")) == (THEIRS, OURS)
    assert "h" in larger
    assert "h" not in catalog
    assert (len(larger), len(catalog)) == (3, 2)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("smal", "unknown recipe 'smal': did you mean 'small'?"),
        ("LARGE", "unknown recipe 'LARGE': did you mean 'large'?"),
        ("xyz", "unknown recipe 'xyz': there are: large, s, small"),
    ],
)
def test_an_unknown_name_is_an_error_with_the_nearest(
    name: str, text: str, catalog: Catalog[RecipeSpec]
) -> None:
    for look in (catalog.__getitem__, catalog.owner):
        with pytest.raises(UnknownNameError) as caught:
            look(name)
        assert str(caught.value) == text


CLASHES = {
    "name": ([recipe("small")], "recipe 'small' is already registered by ours 1.0"),
    "alias that is a name": ([recipe("tiny", "large")], "recipe 'large' is already registered by ours 1.0"),
    "name that is an alias": ([recipe("s")], "recipe 's' is already registered by ours 1.0"),
    "alias that is an alias": ([recipe("tiny", "s")], "recipe 's' is already registered by ours 1.0"),
    "its own": ([recipe("tiny", "t"), recipe("t")], "recipe 't' is already registered by theirs 2.0"),
}


@pytest.mark.parametrize(("specs", "reason"), CLASHES.values(), ids=CLASHES)
def test_a_name_that_is_taken_is_refused_with_who_has_it(
    specs: list[RecipeSpec], reason: str, catalog: Catalog[RecipeSpec]
) -> None:
    with pytest.raises(PluginError) as caught:
        catalog.with_specs(specs, THEIRS)
    assert str(caught.value) == f"plugin theirs 2.0: {reason}"
    assert catalog.names() == ("small", "large")


def test_an_alias_that_repeats_the_specs_own_name_is_no_clash() -> None:
    assert Catalog[RecipeSpec]("recipes").with_specs([recipe("a", "a")], OURS)["a"].name == "a"


def test_torchs_class_has_one_twin() -> None:
    layers = Catalog[LayerSpec]("layers").with_specs([layer("Linear")], OURS)
    with pytest.raises(PluginError) as caught:
        layers.with_specs([layer("Faster")], THEIRS)
    assert str(caught.value) == (
        "plugin theirs 2.0: 'Faster' would be a second twin of torch's Linear, which ours 1.0 has; "
        "register a RuleSpec instead"
    )
    with pytest.raises(PluginError, match=r"which theirs 2\.0 has"):
        layers.with_specs([layer("One", nn.ReLU), layer("Two", nn.ReLU)], THEIRS)
    assert layers.with_specs([layer("One", None), layer("Two", None)], THEIRS).names()[1:] == ("One", "Two")


@pytest.mark.parametrize(("kind", "singular"), [("losses", "loss"), ("layers", "layer"), ("rules", "rule")])
def test_a_kind_in_an_error_is_in_the_singular(kind: str, singular: str) -> None:
    with pytest.raises(UnknownNameError, match=f"unknown {singular} 'a'"):
        Catalog[LossSpec](kind)["a"]
