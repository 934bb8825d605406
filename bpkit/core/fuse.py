"""One formula, run eagerly or compiled.

A backward made of elementwise steps reads memory once a step when run eagerly; compiled, once in
all. `@formula` marks a function of tensors that may be compiled; `bpkit.fuse()` switches that on:

    with bpkit.fuse():
        loss = model(x).sum()       # the backwards of this forward run fused as well
    loss.backward()

Eager is the default. Inside `fuse()` the choice depends on formula, dtype, layout and size alone,
never on the clock, so the same call always gives the same bits.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch._C import _are_functorch_transforms_active

from bpkit.core.code import own_code

logger = logging.getLogger("bpkit")

# Below this many elements the call of a compiled formula (14-37 µs) costs more than it saves.
MIN_NUMEL = 1 << 16


class _State(threading.local):
    active = False


_state = _State()


def active() -> bool:
    """Whether formulas that start now on this thread may run compiled."""
    return not torch.compiler.is_compiling() and _state.active


def was_active(ctx: Any) -> bool:
    """Whether the forward that filled `ctx` ran inside `fuse()`."""
    return not torch.compiler.is_compiling() and getattr(ctx, "fused", False)


@contextlib.contextmanager
def fuse(enabled: bool = True) -> Iterator[None]:
    """Run formulas compiled (or, with `enabled=False`, eagerly) inside the block.

    Without a C++ compiler, which `torch.compile` needs on CPU, formulas stay eager and one line of
    the `bpkit` logger says so.
    """
    before = _state.active
    _state.active = enabled and compiler_available()
    try:
        yield
    finally:
        _state.active = before


@functools.cache
def compiler_available() -> bool:
    """Whether `torch.compile` can build kernels here; looked up once a process."""
    if torch.cuda.is_available():
        return True
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except (exc.InvalidCxxCompiler, RuntimeError, OSError):
        logger.warning("bpkit: no C++ compiler found, so formulas run eagerly; install g++ to fuse them")
        return False
    return True


def formula(function: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a function of tensors and numbers that runs eagerly or, inside `fuse()`, compiled.

    It must be pure, and made of elementwise operations and reductions. It runs eagerly wherever a
    graph of it is wanted: under `create_graph`, `torch.func` or an outer `torch.compile`.
    """
    own = own_code(function)

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        if active() and _fits(args):
            with torch.no_grad():
                return _compiled(own)(*args)
        return own(*args)

    return run


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` compiled, its sizes left symbolic so that a new batch size builds nothing new."""
    return torch.compile(function, dynamic=True, fullgraph=True)


def _fits(args: tuple[Any, ...]) -> bool:
    tensors = [arg for arg in args if isinstance(arg, torch.Tensor)]
    return (
        max((tensor.numel() for tensor in tensors), default=0) >= MIN_NUMEL
        and all(type(tensor) in (torch.Tensor, torch.nn.Parameter) for tensor in tensors)
        and not _are_functorch_transforms_active()
        and not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))
    )
