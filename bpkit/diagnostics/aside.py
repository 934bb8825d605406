"""To run a model, or a copy of a part of it, beside the training, which finds everything as it was."""

from __future__ import annotations

import copy
import random
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree

_MOST = 256  # objects that are looked into: of a larger structure not all tensors are known
_NUMBERS = (bool, int, float, complex, np.ndarray, np.generic)
_NAMES = (type(None), str, bytes, type, torch.dtype, torch.device, torch.layout, torch.memory_format)
_PLAIN = (*_NUMBERS, *_NAMES)  # in which there is no tensor
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


@contextmanager
def generators_kept(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Random numbers that are drawn inside are drawn again outside: torch's, Python's and NumPy's.

    Args:
        tensors: those whose devices' generators are meant, beside the CPU's.
    """
    devices = {each.device for each in tensors if each.device.type == "cuda"}
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Run `model` inside, recording graphs: its buffers and all generators are as before afterwards.

    The modules hold copies of their buffers meanwhile. What a forward writes elsewhere stays written.
    """
    held = [(module, dict(module._buffers)) for module in model.modules() if module._buffers]
    for module, buffers in held:
        for name, buffer in buffers.items():
            module._buffers[name] = None if buffer is None else buffer.clone()
    try:
        with ExitStack() as stack:
            stack.enter_context(generators_kept(model.parameters()))
            stack.enter_context(torch.enable_grad())
            for module in model.modules():
                if isinstance(module, nn.parallel.DistributedDataParallel):
                    # Its reducer would wait for the backward that only reads gradients out.
                    stack.enter_context(module.no_sync())
            yield
    finally:
        for module, buffers in held:
            module._buffers.update(buffers)


def side_copy(module: nn.Module) -> nn.Module:
    """A copy with parameters, buffers and settings of its own, and none of the hooks people put on it.

    Torch's own hooks stay that compute a weight before the forward (`torch.nn.utils`). Hooks are kept out
    before the copying: those that are methods would bring the objects they belong to.
    """
    memo: dict[int, Any] = {}
    for each in module.modules():
        pre = {
            key: hook
            for key, hook in each._forward_pre_hooks.items()
            if type(hook).__module__.startswith("torch.nn.utils.")
        }
        for name in _HOOKS:
            held = each.__dict__.get(name)
            if held is not None:
                memo[id(held)] = OrderedDict(pre) if name == "_forward_pre_hooks" else OrderedDict()
        for value in each.__dict__.values():
            if isinstance(value, Tensor) and not value.is_leaf:  # a weight that a hook computes
                memo[id(value)] = value.detach().clone()
    for parameter in module.parameters():
        memo[id(parameter)] = _alone(parameter)
    return copy.deepcopy(module, memo)


def _alone(parameter: nn.Parameter) -> nn.Parameter:
    """The parameter's values without its gradient and hooks."""
    if isinstance(parameter, nn.UninitializedParameter):
        return parameter
    return nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)


def tensors_within(given: Any) -> list[Tensor] | None:
    """The tensors in what a module is given, inside objects as well; None where not all can be told.

    Of an object that is looked at which a copy would be made of.
    """
    found: list[Tensor] = []
    seen: dict[int, Any] = {}  # with the objects: some live as long as they are looked at
    left = _pytree.tree_leaves(given)
    while left:
        each = left.pop()
        if isinstance(each, _PLAIN) or id(each) in seen:
            continue
        seen[id(each)] = each
        if isinstance(each, Tensor):
            found.append(each)
            continue
        if isinstance(each, nn.Module) or len(seen) - len(found) > _MOST:
            return None
        try:
            _, arguments, *state = each.__reduce_ex__(4)
            left += _pytree.tree_leaves([arguments, *state[:1], *map(list, filter(None, state[1:3]))])
        except Exception:  # it cannot be copied
            return None
    return found


def own_copy(given: Any) -> Any:
    """What a module is given once more, to be written into: tensors without graphs, objects as well."""
    memo: dict[int, Any] = {id(each): each.detach().clone() for each in tensors_within(given) or ()}
    return copy.deepcopy(given, memo)
