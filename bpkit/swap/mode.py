"""`handwritten`: inside it, torch's functions and tensor operators run hand-written too.

`convert` swaps modules; what a model does between them (a residual add, an attention spelt out, a mean)
is torch's. Inside this mode those calls are answered by the functions of bpkit.functional and bpkit.ops:

    with bpkit.handwritten():
        loss = model(batch).loss
    loss.backward()             # the backwards were chosen in the forward; outside the mode is fine

Views stay torch's; a call that has no hand-written twin, or uses an argument that it does not take
(`out=`), runs as torch's own. `bpkit.coverage(loss)` tells how much of a graph is which.

Under activation checkpointing the forward is run a second time, outside any mode that was on: torch
would then save other tensors than it expects, and might take them for the right ones. A mark is saved with
every call, so that this raises torch's CheckpointError. The way to do it right:

    checkpoint(block, x, use_reentrant=False,
               context_fn=lambda: (bpkit.handwritten(), bpkit.handwritten()))
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import ContextDecorator
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from bpkit import ops
from bpkit.core.inplace import overwrite
from bpkit.nn import functional as ours
from bpkit.ops.op import UnboundError

# Functionals that torch has under its own name, or as a method of Tensor, with the same arguments.
_FUNCTIONALS = (
    *("celu", "dropout", "prelu", "relu", "selu"),
    *("sigmoid", "tanh", "threshold", "max_pool1d", "max_pool2d", "max_pool3d"),
)
# Other names of operators, and of those that are spelt in Python.
_ALIASES: Mapping[str, str] = {
    "__getitem__": "getitem",
    "__pow__": "pow",
    "__matmul__": "matmul",
    "__rsub__": "rsub",
    "absolute": "abs",
    "clip": "clamp",
    "concat": "cat",
    "concatenate": "cat",
    "divide": "div",
    "multiply": "mul",
    "negative": "neg",
    "subtract": "sub",
    "true_divide": "div",
}


# Numpy's names of arguments, which torch takes as well.
_NUMPY: Mapping[str, str] = {"axis": "dim", "keepdims": "keepdim"}


def _divided(self: Tensor, other: Any) -> Tensor:
    """`other / self`, with a number for `other`."""
    return ops.mul(ops.reciprocal(self), other)


def _sizes(given: tuple[Any, ...]) -> Any:
    """`f(1, 2)` as `f((1, 2))`."""
    return given[0] if len(given) == 1 and not isinstance(given[0], int) else given


def _cast(dtype: torch.dtype) -> Callable[..., Tensor]:
    return lambda self, **kwargs: ops.to(self, dtype, **kwargs)


def _type(self: Tensor, dtype: Any = None, **kwargs: Any) -> Any:
    return ops.to(self, dtype, **kwargs) if isinstance(dtype, torch.dtype) else self.type(dtype, **kwargs)


def _softmax(name: str) -> Callable[..., Tensor]:
    """Torch's own function and method have no `_stacklevel` before the dtype, as the functional has."""
    functional = getattr(ours, name)
    return lambda input, dim, dtype=None: functional(input, dim, dtype=dtype)


# Methods of Tensor that are an operator with its arguments in another place.
_METHODS: Mapping[str, Callable[..., Any]] = {
    "__rdiv__": _divided,
    "__rtruediv__": _divided,
    "__rpow__": lambda self, other: ops.pow(other, self),
    "__rmatmul__": lambda self, other: ops.matmul(other, self),
    "clamp_min": lambda self, min: ops.clamp(self, min),
    "clamp_max": lambda self, max: ops.clamp(self, None, max),
    "flip": lambda self, *dims: ops.flip(self, _sizes(dims)),
    "float": _cast(torch.float32),
    "double": _cast(torch.float64),
    "half": _cast(torch.float16),
    "ravel": lambda self: ops.reshape(ops.contiguous(self), -1),
    "reshape_as": lambda self, other: ops.reshape(self, other.shape),
    "bfloat16": _cast(torch.bfloat16),
    "type": _type,
    # A view as ever; of torch's method Dynamo cannot read the super() inside a mode.
    "unflatten": lambda self, dim, sizes: torch.unflatten(self, dim, sizes),
    "type_as": lambda self, other: ops.to(self, other),
    "where": lambda self, condition, other: ops.where(condition, self, other),
}


def _replacements() -> Mapping[Any, Callable[..., Any]]:
    """By torch's function or method, the hand-written one that answers for it."""
    found: dict[Any, Callable[..., Any]] = {}
    for name in dir(F):
        theirs = getattr(F, name)
        own = getattr(ours, name, theirs)
        if callable(own) and own is not theirs:
            found[theirs] = own
    for name in _FUNCTIONALS:
        _everywhere(found, name, getattr(ours, name))
    for name in ("softmax", "log_softmax"):
        _everywhere(found, name, _softmax(name))
    for name in dir(ops):
        if not name.startswith("_") and callable(getattr(ops, name)) and name not in ("op", "getitem"):
            _everywhere(found, name, getattr(ops, name))
    for name, operator in _ALIASES.items():
        _everywhere(found, name, getattr(ops, operator))
    for name, method in _METHODS.items():
        found[getattr(Tensor, name)] = method
    for name in ("clamp_min", "clamp_max"):
        _everywhere(found, name, _METHODS[name])
    found[torch.ravel] = _METHODS["ravel"]
    found[torch.linalg.vector_norm] = ops.vector_norm
    found[torch._VF._pack_padded_sequence] = ops.pack_padded_sequence
    found[torch._VF._pad_packed_sequence] = ops.pad_packed_sequence
    return found


def _everywhere(found: dict[Any, Callable[..., Any]], name: str, own: Callable[..., Any]) -> None:
    """Torch's function of that name, the method, and the method that writes in place."""
    for home in (torch, Tensor):
        if hasattr(home, name):
            found[getattr(home, name)] = own
    for home in (torch, Tensor):
        inplace = getattr(home, f"{name}_", None)
        if inplace is not None and inplace not in found:
            found[inplace] = _inplace(own, inplace)


def _inplace(own: Callable[..., Any], theirs: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The out-of-place result written in; what the backward reads of the input must outlive that."""
    keeps = getattr(own, "first", None) in getattr(own, "reads", {None})

    def inplace(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        kept = ops.clone(self) if keeps and torch.is_grad_enabled() else self
        value = own(kept, *args, **kwargs)
        if value.dtype != self.dtype and not torch.can_cast(value.dtype, self.dtype):
            return theirs(self, *args, **kwargs)  # raises, in torch's words
        return overwrite(self, value)

    return inplace


def _spelt(theirs: Any) -> bool:
    """Whether a method of Tensor is written in Python."""
    plain = isinstance(theirs, FunctionType) and getattr(Tensor, theirs.__name__, None) is theirs
    return plain or hasattr(theirs, "__wrapped__")


# Made once, on import: Dynamo looks through a dictionary, not through what would make one. What torch has in
# Python (`1 - x`, `x ** 2`, `x.norm()`) is one function to Dynamo and another to its guards: by name.
_FOUND = _replacements()
SPELT = {theirs.__name__: own for theirs, own in _FOUND.items() if _spelt(theirs)}
REPLACEMENTS = {theirs: own for theirs, own in _FOUND.items() if not _spelt(theirs)}


class handwritten(TorchFunctionMode, ContextDecorator):  # noqa: N801 - `with handwritten():`, a decorator
    """Run torch's functions and tensor operators inside the block hand-written, where bpkit has them."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        # Where nothing is recorded torch's own is as good: so it is inside a forward of ours, too.
        own = None
        if torch.is_grad_enabled():
            own = REPLACEMENTS.get(func) or SPELT.get(getattr(func, "__name__", ""))
        if own is None or _inside_another() or _sparse(args):
            return func(*args, **kwargs)
        if "out" in kwargs and kwargs["out"] is None:
            kwargs = {key: value for key, value in kwargs.items() if key != "out"}
        given = {_NUMPY.get(key, key): value for key, value in kwargs.items()}
        try:
            output = own(*args, **given)
        except (UnboundError, NotImplementedError):
            return func(*args, **kwargs)
        except TypeError:
            if _binds(own, args, given):
                raise
            return func(*args, **kwargs)
        if not torch.compiler.is_compiling():
            _mark()
        return output


def _inside_another() -> bool:
    """Whether a second mode lies under this one, which answers in its place: one at a time."""
    return any(isinstance(each, handwritten) for each in _get_current_function_mode_stack())


def _sparse(args: tuple[Any, ...]) -> bool:
    """Whether a tensor is sparse or nested, which no rule is written for; Dynamo lets nobody ask."""
    return not torch.compiler.is_compiling() and any(
        isinstance(each, Tensor) and (each.layout is not torch.strided or each.is_nested) for each in args
    )


def _binds(own: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether `own` takes these arguments at all."""
    try:
        inspect.signature(own).bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def _mark() -> None:
    """Under saved-tensor hooks, which a checkpoint sets, save a tensor as no operation would."""
    if torch._C._autograd._top_saved_tensors_default_hooks(True):
        marker = torch.empty(0, 7, 13, requires_grad=True)
        torch.mul(marker, marker)
