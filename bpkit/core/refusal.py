"""Arguments that a hand-written function does not take: torch's own error for them, in torch's words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch

REMEDY = "leave the module to torch by bpkit.convert(model, exclude=...)"


def refuse(twin: Callable[..., Any], *args: Any, **kwargs: Any) -> NoReturn:
    """Raise the error that torch has for these arguments.

    Args:
        twin: torch's function; called without a graph, for what it raises.
        args: what it is called with.
        kwargs: likewise.

    Raises:
        Exception: torch's.
        NotImplementedError: torch takes these arguments and bpkit does not: never a detached result, and
            never torch's own backward in the place of ours.
    """
    with torch.no_grad():
        twin(*args, **kwargs)
    name = getattr(twin, "__name__", str(twin))
    raise NotImplementedError(f"bpkit's {name} does not take these arguments, which torch's does; {REMEDY}")


def refuse_unless_empty(twin: Callable[..., Any], input: torch.Tensor, *args: Any) -> None:
    """`refuse`, but for an `input` without elements, where torch decides whether there is an error."""
    if input.numel():
        refuse(twin, input, *args)
    with torch.no_grad():
        twin(input, *args)
