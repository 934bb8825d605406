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
    *("celu", "dropout", "log_softmax", "prelu", "relu", "selu"),
    *("sigmoid", "softmax", "tanh", "threshold", "max_pool1d", "max_pool2d", "max_pool3d"),
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


def _divided(self: Tensor, other: Any) -> Tensor:
    """`other / self`, with a number for `other`."""
    return ops.mul(ops.reciprocal(self), other)


def _cast(dtype: torch.dtype) -> Callable[..., Tensor]:
    return lambda self, **kwargs: ops.to(self, dtype, **kwargs)


def _type(self: Tensor, dtype: Any = None, **kwargs: Any) -> Any:
    return ops.to(self, dtype, **kwargs) if isinstance(dtype, torch.dtype) else self.type(dtype, **kwargs)


# Methods of Tensor that are an operator with its arguments in another place.
_METHODS: Mapping[str, Callable[..., Any]] = {
    "__rdiv__": _divided,
    "__rtruediv__": _divided,
    "__rpow__": lambda self, other: ops.pow(other, self),
    "__rmatmul__": lambda self, other: ops.matmul(other, self),
    "clamp_min": lambda self, min: ops.clamp(self, min),
    "clamp_max": lambda self, max: ops.clamp(self, None, max),
    "float": _cast(torch.float32),
    "double": _cast(torch.float64),
    "half": _cast(torch.float16),
    "bfloat16": _cast(torch.bfloat16),
    "type": _type,
    "type_as": lambda self, other: ops.to(self, other),
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
    for name in dir(ops):
        if not name.startswith("_") and callable(getattr(ops, name)) and name not in ("op", "getitem"):
            _everywhere(found, name, getattr(ops, name))
    for name, operator in _ALIASES.items():
        _everywhere(found, name, getattr(ops, operator))
    for name, method in _METHODS.items():
        found[getattr(Tensor, name)] = method
    found[torch.linalg.vector_norm] = ops.vector_norm
    found[torch._VF._pack_padded_sequence] = ops.pack_padded_sequence
    found[torch._VF._pad_packed_sequence] = ops.pad_packed_sequence
    return found


def _everywhere(found: dict[Any, Callable[..., Any]], name: str, own: Callable[..., Any]) -> None:
    """Torch's function of that name, the method, and the method that writes in place."""
    for home in (torch, Tensor):
        if hasattr(home, name):
            found[getattr(home, name)] = own
    inplace = getattr(Tensor, f"{name}_", None)
    if inplace is not None:
        found[inplace] = _inplace(own)


def _inplace(own: Callable[..., Any]) -> Callable[..., Tensor]:
    """The out-of-place result written in; what the backward reads of the input must outlive that."""
    keeps = getattr(own, "first", None) in getattr(own, "reads", {None})

    def inplace(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        kept = ops.clone(self) if keeps and torch.is_grad_enabled() else self
        return overwrite(self, own(kept, *args, **kwargs))

    return inplace


# Made once, on import: Dynamo looks through a dictionary, and not through what would make one.
REPLACEMENTS = _replacements()


class handwritten(TorchFunctionMode):  # noqa: N801 - used as a function: `with handwritten():`
    """Run torch's functions and tensor operators inside the block hand-written, where bpkit has them."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if "out" in kwargs and kwargs["out"] is None:
            kwargs = {key: value for key, value in kwargs.items() if key != "out"}
        own = REPLACEMENTS.get(func)
        if own is None or _inside_another():
            return func(*args, **kwargs)
        try:
            output = own(*args, **kwargs)
        except (UnboundError, NotImplementedError):
            return func(*args, **kwargs)
        except TypeError:
            if _binds(own, args, kwargs):
                raise
            return func(*args, **kwargs)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            _mark()
        return output


def _inside_another() -> bool:
    """Whether a second mode lies under this one, which answers in its place: one at a time."""
    return any(isinstance(each, handwritten) for each in _get_current_function_mode_stack())


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
