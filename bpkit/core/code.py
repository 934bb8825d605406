"""Functions made by a factory, each over a code object of its own."""

from __future__ import annotations

import itertools
import types
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

_serial = itertools.count()


def own_code(function: F) -> F:
    """`function` over a code object that nothing else shares.

    Dynamo allows a code object eight variants (`recompile_limit`). Closures made by one factory share
    theirs, and would use the eight up among them: the ninth would run eagerly, or, under `fullgraph`,
    raise.
    """
    code = function.__code__
    own = types.FunctionType(
        code.replace(co_name=f"{code.co_name}_{next(_serial)}"),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    own.__kwdefaults__ = function.__kwdefaults__
    own.__dict__.update(function.__dict__)
    own.__doc__, own.__qualname__, own.__module__ = (
        function.__doc__,
        function.__qualname__,
        function.__module__,
    )
    return own  # type: ignore[return-value]
