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
from collections.abc import Callable
from typing import Any

import torch
from torch._C import _are_functorch_transforms_active

from bpkit.core.code import own_code

logger = logging.getLogger("bpkit")

# Below this many elements the call of a compiled formula costs what it saves: at 8,192 a step of LayerNorm or
# GELU gains 40 µs, one of ReLU loses 20.
MIN_NUMEL = 1 << 13


class _State(threading.local):
    active = False
    tracing = False


_state = _State()
_building = threading.Lock()


def active() -> bool:
    """Whether formulas that start now on this thread may run compiled."""
    return not torch.compiler.is_compiling() and _state.active


def tracing() -> bool:
    """Whether what runs now is being compiled, by a formula or by somebody's `torch.compile`."""
    return torch.compiler.is_compiling() or _state.tracing


def was_active(ctx: Any) -> bool:
    """Whether the forward that filled `ctx` ran inside `fuse()`."""
    return not torch.compiler.is_compiling() and getattr(ctx, "fused", False)


class fuse(contextlib.ContextDecorator):  # noqa: N801 - a class: @contextmanager costs 5 µs a block more
    """Run formulas compiled (or, with `enabled=False`, eagerly) inside the block.

    Without a C++ compiler, which `torch.compile` needs on CPU, formulas stay eager and one line of
    the `bpkit` logger says so.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled

    def __enter__(self) -> None:
        self.before = _state.active
        _state.active = self.enabled and compiler_available()

    def __exit__(self, *_: object) -> None:
        _state.active = self.before


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
            if not torch.is_grad_enabled():  # as in every ordinary backward
                return _compiled(own)(*args)
            with torch.no_grad():
                return _compiled(own)(*args)
        return own(*args)

    return run


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` compiled, its sizes left symbolic so that a new batch size builds nothing new.

    `torch.compile` on it would do the same; but its call, which tests Dynamo's guards, takes 78 µs here
    and this one 11 (ReLU's rule; a step of ReLU at 1024 x 1024: 1.29 times torch's, and 1.05).
    Arguments choose the kernels by all that they were built on: once by Inductor's guards on sizes and
    strides, and from then on by the exact layout.
    """
    exact: dict[Any, Callable[..., Any]] = {}
    built: dict[Any, list[_Kernels]] = {}

    def run(*args: Any) -> Any:
        layout = (torch.get_num_threads(), *map(_layout, args))
        kernels = exact.get(layout)
        if kernels is None:
            with _building:
                alike = built.setdefault((layout[0], *map(_kind, args)), [])
                kernels = next((each for each in alike if each.fits(args)), None)
                if kernels is None:
                    kernels = _Kernels(function, args)
                    alike.append(kernels)
                exact[layout] = kernels
        return kernels(*args)

    return run


def _layout(arg: Any) -> Any:
    """All of an argument that kernels may depend on."""
    if isinstance(arg, torch.Tensor):
        return arg.dtype, arg.device, arg.shape, arg.stride()
    return (list, *arg) if isinstance(arg, list) else (type(arg), arg)


def _kind(arg: Any) -> Any:
    """The part of `_layout` that is never left symbolic."""
    return (arg.dtype, arg.device, arg.dim()) if isinstance(arg, torch.Tensor) else _layout(arg)


class _Kernels:
    """A function of tensors and constants, compiled for all sizes that Inductor's guards admit."""

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        import torch._inductor
        from torch.fx.experimental.proxy_tensor import make_fx

        tensors: list[Any] = [arg for arg in args if isinstance(arg, torch.Tensor)]

        def of_tensors(*given: torch.Tensor) -> list[torch.Tensor]:
            rest = iter(given)
            result = function(*(next(rest) if isinstance(arg, torch.Tensor) else arg for arg in args))
            self.single = isinstance(result, torch.Tensor)
            results = (result,) if self.single else result
            self.present = [each is not None for each in results]
            return [each for each in results if each is not None]

        _state.tracing = True
        try:
            graph = make_fx(of_tensors, tracing_mode="symbolic")(*tensors)
            self.run = torch._inductor.standalone_compile(graph, tensors, dynamic_shapes="from_graph")
        finally:
            _state.tracing = False
        fakes = [node.meta["val"] for node in graph.graph.nodes if node.op == "placeholder"]
        self.numbers = [number for fake in fakes for number in (*fake.shape, *fake.stride())]
        symbols = [number for number in self.numbers if isinstance(number, torch.SymInt)]
        self.environment: Any = symbols[0].node.shape_env if symbols else None
        self.guards = (
            None if self.environment is None else self.environment.produce_guards_expression(symbols)
        )

    def fits(self, args: tuple[Any, ...]) -> bool:
        """Whether the sizes and strides of `args` are those the kernels were built on, or admit."""
        tensors = (arg for arg in args if isinstance(arg, torch.Tensor))
        given = [number for tensor in tensors for number in (*tensor.shape, *tensor.stride())]
        pairs = list(zip(self.numbers, given, strict=True))
        if any(own != number for own, number in pairs if not isinstance(own, torch.SymInt)):
            return False
        free = [number for own, number in pairs if isinstance(own, torch.SymInt)]
        return self.guards is None or bool(self.environment.evaluate_guards_expression(self.guards, free))

    def __call__(self, *args: Any) -> Any:
        results = self.run(*(arg for arg in args if isinstance(arg, torch.Tensor)))
        if self.single:
            return results[0]
        rest = iter(results)
        return tuple(next(rest) if each else None for each in self.present)


def _fits(args: tuple[Any, ...]) -> bool:
    tensors = [arg for arg in args if isinstance(arg, torch.Tensor)]
    return (
        max((tensor.numel() for tensor in tensors), default=0) >= MIN_NUMEL
        and all(type(tensor) in (torch.Tensor, torch.nn.Parameter) for tensor in tensors)
        and not _are_functorch_transforms_active()
        and not torch._C._len_torch_dispatch_stack()  # someone watches kernels, which have no ops any more
        and not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))
    )
