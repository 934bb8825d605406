"""What a hand-written backward may call, and how that is seen.

A backward is tensor algebra. It runs no autograd inside itself (`torch.autograd.grad`, `vjp`, `jvp`,
`enable_grad` and a second run), and no kernel with "backward" in its name: that would be torch's
derivation, not ours. `VENDOR_KERNELS` lists every exception; reports show each use by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode


@dataclass(frozen=True)
class VendorKernel:
    """A kernel with "backward" in its name that a hand-written backward may call.

    Attributes:
        op: its name in torch's dispatcher.
        allowed: tells from the call's arguments whether it is this use of it.
        purpose: the piece of the derivation that it computes.
        measurement: why the algebra alone does not do.
    """

    op: str
    allowed: Callable[[tuple[Any, ...]], bool]
    purpose: str
    measurement: str


VENDOR_KERNELS: tuple[VendorKernel, ...] = (
    VendorKernel(
        op="aten::convolution_backward",
        allowed=lambda args: list(args[10]) == [False, True, False],
        purpose="correlation of input and grad_output, the weight gradient of a convolution",
        measurement=(
            "forward and backward against torch's own, 3x3 to 7x7, batch 8 to 32: by swapping batch and "
            "channel axes 1.4 to 2.0, by unfold and a matrix product 1.9 to 5.6, by taps 1.1 to 4.5"
        ),
    ),
)

# Calls that run autograd: seen by a TorchFunctionMode, whatever kernels they end in.
_AUTOGRAD = frozenset({"grad", "backward", "vjp", "jvp"})


def correlate_weight(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
) -> Tensor:
    """Σ over batch and positions of `grad_output` times the input's window: shape of `weight`.

    The vendor kernel of `VENDOR_KERNELS`; `weight` lends its shape and layout, its values are not
    read. No graph is recorded: whoever wants one takes the algebraic path.
    """
    _, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad_output,
        input,
        weight,
        None,
        stride,
        padding,
        dilation,
        False,
        [0] * len(stride),
        groups,
        [False, True, False],
    )
    return grad_weight


@dataclass
class Audit:
    """What ran: kernels by name with their count, breaches of the rule, vendor kernels used."""

    kernels: dict[str, int] = field(default_factory=dict)
    breaches: list[str] = field(default_factory=list)
    vendor: list[VendorKernel] = field(default_factory=list)


@contextmanager
def audit() -> Iterator[Audit]:
    """Watch what a backward calls: put it around the raw backward, or around `run_backward`."""
    found = Audit()
    with _Functions(found), _Kernels(found):
        yield found


def run_backward(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], grad_outputs: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    """`torch.autograd.grad`, entered below the level where `audit` would count it as a breach."""
    gradients: tuple[Tensor | None, ...] = torch.autograd.graph._engine_run_backward(
        tuple(outputs),
        tuple(grad_outputs),
        True,  # keep the graph
        False,  # record none
        tuple(inputs),
        allow_unreachable=True,
        accumulate_grad=False,
    )
    return gradients


class _Kernels(TorchDispatchMode):
    """Every kernel that runs, by name."""

    def __init__(self, found: Audit) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = found

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.name().split(".")[0]
        self.found.kernels[name] = self.found.kernels.get(name, 0) + 1
        if "backward" in name:  # not "_backward" at the end: 11 of torch's 154 have it elsewhere
            vendor = next((each for each in VENDOR_KERNELS if each.op == name and each.allowed(args)), None)
            if vendor is None:
                self.found.breaches.append(f"calls the kernel {name}")
            elif vendor not in self.found.vendor:
                self.found.vendor.append(vendor)
        return func(*args, **(kwargs or {}))


class _Functions(TorchFunctionMode):
    """Every call into autograd, and every switch of grad mode from off to on."""

    def __init__(self, found: Audit) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in _AUTOGRAD:
            self.found.breaches.append(f"runs autograd ({name})")
        if name == "_set_grad_enabled" and args[0] and not torch.is_grad_enabled():
            self.found.breaches.append("switches grad mode on")
        return func(*args, **(kwargs or {}))
