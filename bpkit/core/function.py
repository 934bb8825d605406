"""`Function`, the base of every hand-written backward: pure, twice differentiable, cheap to call.

A subclass states three static methods and nothing else:

    class Square(Function):
        @staticmethod
        def forward(input): return input * input
        @staticmethod
        def setup_context(ctx, inputs, output): ctx.save_for_backward(inputs[0])
        @staticmethod
        def backward(ctx, grad_output): return 2 * ctx.saved_tensors[0] * grad_output

    Square.call(x)

and gets from this file what `torch.autograd.Function` leaves to its author: `vmap`, autocast by
torch's own rules for forward *and* backward, and a call that costs a third of torch's own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch._C import _are_functorch_transforms_active, _functorch as functorch, _is_any_autocast_enabled
from torch._C._dynamo import eval_frame as dynamo
from torch._functorch.utils import unwrap_dead_wrappers

from bpkit.core import fuse
from bpkit.core.code import own_code
from bpkit.core.refusal import REMEDY

CastPolicy = Literal["lower", "fp32", "promote"]

_TorchFunction = torch.autograd.Function


class Function(torch.autograd.Function):
    """Base class of hand-written Functions (`forward`, `setup_context`, `backward`).

    Call a subclass by `call(*args)`. `apply` works as well; the one difference is that
    `torch.compile` looks through an overridden `apply`, so only `call` is cast by autocast there.

    Class attributes:
        autocast: what autocast does to floating-point arguments, by device type, as torch's op
            lists have it: `"lower"` casts to the autocast dtype, `"fp32"` to float32, `"promote"`
            to the widest dtype among them. A device that is not listed keeps its dtypes. See
            https://docs.pytorch.org/docs/stable/amp.html, "Autocast Op Reference".

    Raises:
        TypeError: on defining a subclass with `forward` but without `setup_context`: the older
            style, with `ctx` in `forward`, cannot be differentiated by `torch.func`.
    """

    generate_vmap_rule = True
    autocast: ClassVar[Mapping[str, CastPolicy]] = {}
    call: ClassVar[Callable[..., Any]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = cls.__dict__
        if "vmap" in own and "generate_vmap_rule" not in own:
            cls.generate_vmap_rule = False  # torch refuses a class that has both
        if "forward" in own and cls.setup_context is _TorchFunction.setup_context:
            raise TypeError(
                f"{cls.__name__} defines forward without setup_context; write forward(*inputs) and "
                "setup_context(ctx, inputs, output)"
            )
        if "setup_context" in own:
            cls.setup_context = staticmethod(_remember_fusion(cls.setup_context))  # type: ignore[method-assign]
        if "backward" in own:
            cls.backward = staticmethod(_as_in_forward(cls.backward))  # type: ignore[method-assign]
        cls.call = staticmethod(_caller(cls))

    @classmethod
    def apply(cls, *args: Any, **kwargs: Any) -> Any:
        """`torch.autograd.Function.apply` without its `inspect.signature` on every call.

        13 µs a call become 4 (a native op: 1). Written without zero-argument `super()`, which turns
        a graph break under `torch.compile` into an internal error of Dynamo's.
        """
        if kwargs or _are_functorch_transforms_active():
            return _TorchFunction.apply.__func__(_writable(cls), *args, **kwargs)  # type: ignore[attr-defined]
        if _is_any_autocast_enabled() and autocasts(_device_type(args)):
            return cls.call(*args)
        arity = cls.forward.__code__.co_argcount
        if len(args) < arity:
            args = _with_defaults(args, arity, cls.forward.__defaults__)
        return super(_TorchFunction, cls).apply(*unwrap_dead_wrappers(args))  # type: ignore[misc]


# In a graph Dynamo answers for `apply` itself. After a graph break inside of it, it would compile the rest as
# a function of its own, and knows no Function class as a value.
# (This is `torch._dynamo.eval_frame.skip_code`, which takes a second to import.)
dynamo.set_code_exec_strategy(
    Function.apply.__func__.__code__,  # type: ignore[attr-defined]
    dynamo._FrameExecStrategy(dynamo._FrameAction.SKIP, dynamo._FrameAction.DEFAULT),
)


def _caller(cls: type[Function]) -> Callable[..., Any]:
    """`cls.call`: a closure, because Dynamo reads no attributes off a Function class."""
    forward = cls.forward
    arity, defaults = forward.__code__.co_argcount, forward.__defaults__
    policies = dict(cls.autocast)
    run = super(_TorchFunction, cls).apply  # type: ignore[misc]

    def call(*args: Any) -> Any:
        """Run the Function on `args` (forward's, by position), under autocast's rules."""
        if args and isinstance(args[0], torch.Tensor) and args[0].is_nested:
            raise NotImplementedError(f"{cls.__name__} takes no nested tensors; {REMEDY}")
        if len(args) < arity:
            args = _with_defaults(args, arity, defaults)  # Dynamo, too, leaves them out
        if _is_any_autocast_enabled():
            device = _device_type(args)
            if autocasts(device):
                args = _cast(args, policies.get(device), device)
                with torch.autocast(device, enabled=False):
                    return forward(*args) if _traced_as_constant(args) else cls.apply(*args)
        if torch.compiler.is_compiling() or _are_functorch_transforms_active():
            return forward(*args) if _traced_as_constant(args) else cls.apply(*args)
        return run(*unwrap_dead_wrappers(args))  # without a second look at what was seen above

    return own_code(call)


def _traced_as_constant(args: tuple[Any, ...]) -> bool:
    """Whether a graph is traced in which these want no gradient: Dynamo cannot trace a Function of such."""
    if not torch.compiler.is_compiling() or _are_functorch_transforms_active():
        return False
    return not any(isinstance(arg, torch.Tensor) and arg.requires_grad for arg in args)


@functools.cache
def _writable(cls: type[Function]) -> type[Function]:
    """`cls` for `torch.func`, with outputs that a later in-place operator may write to.

    Under `vmap` many a kernel's result is a reshape of another tensor. As the output of a Function such a
    view may not be written to: torch fears for the Function's backward. It is a view of nothing else.
    """
    if not cls.generate_vmap_rule:
        return cls

    @functools.wraps(cls.forward)
    def forward(*args: Any) -> Any:
        output = cls.forward(*args)
        return tuple(map(_whole, output)) if isinstance(output, tuple) else _whole(output)

    body = {"forward": staticmethod(forward), "__module__": cls.__module__, "__qualname__": cls.__qualname__}
    return type(cls.__name__, (cls,), body)


def _whole(output: Any) -> Any:
    """`output` as no view of anything, at every level of `vmap`; its memory stays."""
    if not isinstance(output, torch.Tensor):
        return output
    if functorch.is_batchedtensor(output):
        inner = functorch.get_unwrapped(output)
        whole = _whole(inner)
        if whole is inner:
            return output
        level, axis = functorch.maybe_get_level(output), functorch.maybe_get_bdim(output)
        return functorch._add_batch_dim(whole, axis, level)
    return output.data if output._is_view() else output


def _with_defaults(args: tuple[Any, ...], arity: int, defaults: tuple[Any, ...] | None) -> tuple[Any, ...]:
    """`args` completed by forward's defaults, so that setup_context always sees every argument."""
    missing = arity - len(args)
    return args + defaults[-missing:] if defaults and missing <= len(defaults) else args


def autocasts(device: str) -> bool:
    """Whether autocast is on for tensors of this device type; of the meta device torch refuses to say."""
    return device != "meta" and torch.is_autocast_enabled(device)


def _device_type(args: tuple[Any, ...]) -> str:
    return next((arg.device.type for arg in args if isinstance(arg, torch.Tensor)), "cpu")


def _cast(args: tuple[Any, ...], policy: CastPolicy | None, device: str) -> tuple[Any, ...]:
    """`args` with their floating-point tensors cast as torch's autocast would (float64 is left)."""
    if policy is None:
        return args

    def eligible(arg: Any) -> bool:
        return (
            isinstance(arg, torch.Tensor)
            and arg.is_floating_point()
            and arg.dtype is not torch.float64
            and arg.device.type == device
        )

    if policy == "lower":
        dtype = torch.get_autocast_dtype(device)
    elif policy == "fp32" or any(arg.dtype is torch.float32 for arg in args if eligible(arg)):
        dtype = torch.float32
    else:
        return args
    return tuple(arg.to(dtype) if eligible(arg) else arg for arg in args)


def _remember_fusion(setup_context: Callable[..., None]) -> Callable[..., None]:
    """Note on ctx that the forward ran fused: its backward may come after the switch is back."""

    @functools.wraps(setup_context)
    def remembering(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        if fuse.active():
            ctx.fused = True
        setup_context(ctx, inputs, output)

    return own_code(remembering)


def _as_in_forward(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Run `backward` with autocast off and fusion as it was in the forward.

    The arguments were cast on the way in, so the algebra must run in their dtypes; a caller who is
    still inside `torch.autocast` would have it cast a second time and mix dtypes.
    """

    @functools.wraps(backward)
    def as_in_forward(ctx: Any, *grad_outputs: Any) -> Any:
        if _is_any_autocast_enabled():
            with torch.autocast(_device_type(grad_outputs), enabled=False):
                return backward(ctx, *grad_outputs)
        if fuse.was_active(ctx):
            with fuse.fuse():
                return backward(ctx, *grad_outputs)
        return backward(ctx, *grad_outputs)

    return own_code(as_in_forward)
