"""The hook set: complete, documented, typed."""

from __future__ import annotations

import inspect
import re

import pytest

from bpkit.plugins import hookspecs
from bpkit.plugins.manager import HOOKS


def test_every_hook_provides_or_is_an_event() -> None:
    assert set(HOOKS) == {*hookspecs.PROVIDING, *hookspecs.EVENTS}
    assert len(HOOKS) == len(hookspecs.PROVIDING) + len(hookspecs.EVENTS)
    assert re.fullmatch(r"\d+\.\d+", hookspecs.VERSION)


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_documented_and_typed(hook: str) -> None:
    specification = getattr(hookspecs, hook)
    assert len(inspect.getdoc(specification) or "") > 20
    signature = inspect.signature(specification)
    annotations = [parameter.annotation for parameter in signature.parameters.values()]
    assert inspect.Signature.empty not in (*annotations, signature.return_annotation)


@pytest.mark.parametrize("hook", hookspecs.EVENTS)
def test_every_training_event_is_given_the_trainer_first(hook: str) -> None:
    assert HOOKS[hook].arguments[0] == "trainer"
