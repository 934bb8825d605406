"""Which module is the model: told from what was called and from what the optimizer holds."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from bpkit.diagnostics.network import unwrapped


def model_of(optimizer: Optimizer, called: Iterable[nn.Module]) -> nn.Module | None:
    """The module that `optimizer` trains, None where nothing of it was called.

    The outermost of the called modules that hold some of its parameters. Where a script calls only parts
    of a model (`model.features(x)`), or where the optimizer has gradients in parameters beside it, the
    smallest module that holds all of these; a group of the parts where there is none.
    """
    mine = trainable(optimizer)
    roots = outermost([module for module in called if _ids(module) & mine])
    if not roots:
        return None
    beside = _with_gradient(optimizer) - {each for root in roots for each in _ids(root)}
    if len(roots) == 1 and not beside:
        return roots[0]
    return owner(beside, roots) or (roots[0] if len(roots) == 1 else _group(roots))


def trainable(optimizer: Optimizer) -> set[int]:
    """Ids of the parameters that it trains."""
    return {id(each) for group in optimizer.param_groups for each in group["params"] if each.requires_grad}


def receiver(optimizer: Optimizer) -> nn.Parameter | None:
    """One of its parameters that has a gradient, close to the output."""
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    return next((each for each in reversed(parameters) if each.grad is not None), None)


def outermost(modules: Sequence[nn.Module]) -> list[nn.Module]:
    """Those that are inside no other of them."""
    inner = {id(part) for module in modules for part in module.modules() if part is not module}
    return [module for module in modules if id(module) not in inner]


def owner(parameters: set[int], parts: Sequence[nn.Module] = ()) -> nn.Module | None:
    """The smallest module there is that holds these parameters and parts.

    It looks through all objects of the process, which takes a fraction of a second: once a model.
    """
    return smallest(_alive(), parameters, parts)


def smallest(
    modules: Iterable[nn.Module], parameters: set[int], parts: Sequence[nn.Module] = ()
) -> nn.Module | None:
    """Of these modules the smallest that holds the parameters and parts, the first of equal ones."""
    within = {id(part) for part in parts}
    found: nn.Module | None = None
    size = 0
    for module in modules:
        held = [id(each) for each in module.modules()]
        if (found is None or len(held) < size) and within <= set(held) and parameters <= _ids(module):
            found, size = module, len(held)
    return found


def named(model: nn.Module) -> str:
    """A name for people: the class's, or of a class of torch's own the variable that the script has it in."""
    inner = unwrapped(model)
    kind = type(inner)
    if kind.__module__.partition(".")[0] != "torch":
        return kind.__name__
    return _variable(model) or _variable(inner) or kind.__name__


def _alive() -> list[nn.Module]:
    """By type, not by isinstance, which runs code of a stranger's proxy objects; whole ones only."""
    return [
        each
        for each in gc.get_objects()
        if issubclass(type(each), nn.Module) and {"_modules", "_parameters"} <= vars(each).keys()
    ]


def _ids(module: nn.Module) -> set[int]:
    return {id(parameter) for parameter in module.parameters()}


def _with_gradient(optimizer: Optimizer) -> set[int]:
    return {id(each) for group in optimizer.param_groups for each in group["params"] if each.grad is not None}


def _group(parts: Sequence[nn.Module]) -> nn.ModuleDict:
    group = nn.ModuleDict()
    for part in parts:
        name = named(part).replace(".", "_")
        group[free(name, [*group, *dir(group)])] = part
    return group


def free(name: str, taken: Iterable[str]) -> str:
    """The name, or the first of name-2, name-3, … that is not taken."""
    held, number, candidate = set(taken), 1, name
    while candidate in held:
        number += 1
        candidate = f"{name}-{number}"
    return candidate


def _variable(module: nn.Module) -> str | None:
    """The variable, or the attribute of an object in one, by which the running frames know the module."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        if not str(frame.f_globals.get("__name__")).startswith(("bpkit.", "torch.")):
            for holder in (
                frame.f_locals,
                frame.f_globals,
                getattr(frame.f_locals.get("self"), "__dict__", {}),
            ):
                for name, value in list(holder.items()):
                    if value is module:
                        return str(name)
        frame = frame.f_back
    return None
