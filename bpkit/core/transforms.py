"""What looks on while a Function runs: `torch.func`'s transforms, either `vmap`, a recorded backward."""

from __future__ import annotations

import torch
from torch._C import _are_functorch_transforms_active, _dispatch_tls_is_dispatch_key_included


def transformed() -> bool:
    """Whether `torch.func` or a `vmap` looks on: no place for torch's kernels and in-place writes.

    `torch.autograd.grad(is_grads_batched=True)` runs under torch's older vmap, which shows by its
    dispatch key alone.
    """
    if torch.compiler.is_compiling():
        return False
    return _are_functorch_transforms_active() or _dispatch_tls_is_dispatch_key_included("VmapMode")


def unseen() -> bool:
    """Whether values cannot be looked at: a graph is traced, or they stand for many."""
    return torch.compiler.is_compiling() or transformed()


def may_write() -> bool:
    """Whether a backward may write into tensors that it made itself: nothing is recorded or batched."""
    return not (torch.is_grad_enabled() or unseen())
