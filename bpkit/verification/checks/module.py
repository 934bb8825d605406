"""A module as an object: copied, pickled, saved, loaded, built without memory."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bpkit.core.structure import tensors
from bpkit.verification.case import seed
from bpkit.verification.check import Check, Failed, one_line
from bpkit.verification.compare import same_bytes
from bpkit.verification.subjects import ModuleCase


def run(case: ModuleCase) -> str:
    """Deepcopy and pickle give an equal, independent module; the state loads into the twin and back."""
    module = case.make()
    ways: dict[str, Callable[[nn.Module], nn.Module]] = {"deepcopy": copy.deepcopy, "pickle": _through_pickle}
    copies: dict[str, nn.Module] = {}
    for name, copied in ways.items():
        try:
            copies[name] = copied(module)
        except Exception as error:
            raise Failed(f"{name}: {one_line(error)}") from error
        _require_independent(name, module, copies[name])
    before = _output(module, case.inputs)  # a call may change its state: what is copied is copied already
    for name, other in copies.items():
        _require_same(f"after {name}, ", _output(other, case.inputs), before)
    tried = ["deepcopy", "pickle"]
    if case.reference is not None:
        _require_exchange(module, case.reference())
        tried.append("state_dict both ways")
    if case.constructs:
        _require_meta(case, module)
        tried.append("meta")
    return ", ".join(tried)


def _output(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Tensor, ...]:
    seed()
    with torch.no_grad():
        return tensors(module(*copy.deepcopy(inputs)))


def _through_pickle(module: nn.Module) -> nn.Module:
    restored: nn.Module = pickle.loads(pickle.dumps(module))
    return restored


def _require_independent(name: str, module: nn.Module, other: nn.Module) -> None:
    if type(other) is not type(module):
        raise Failed(f"{name} gives a {type(other).__qualname__}, not a {type(module).__qualname__}")
    state = other.state_dict()
    for key, tensor in module.state_dict().items():
        if tensor.numel() and state[key].data_ptr() == tensor.data_ptr():
            raise Failed(f"after {name}, {key} is the same memory in both")


def _require_same(where: str, actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for index, (a, b) in enumerate(zip(actual, expected, strict=True)):
        if not same_bytes(a, b):
            raise Failed(f"{where}output {index} is another")


def _require_exchange(module: nn.Module, twin: nn.Module) -> None:
    """Names, shapes and values go from the module to the reference and back."""
    state = module.state_dict()
    try:
        twin.load_state_dict(state)
        module.load_state_dict(twin.state_dict())
    except RuntimeError as error:
        raise Failed(f"state_dict: {' '.join(str(error).split())}") from error
    for key, tensor in module.state_dict().items():
        if not same_bytes(tensor, state[key]):
            raise Failed(f"{key} is another after load_state_dict")


def _require_meta(case: ModuleCase, module: nn.Module) -> None:
    try:
        with torch.device("meta"):
            twin = None if case.reference is None else case.reference()
    except Exception:  # the reference cannot be made there either
        return
    try:
        with torch.device("meta"):
            made = case.make()
    except Exception as error:
        raise Failed(f"under torch.device('meta'), {one_line(error)}") from error
    like = module if twin is None else twin
    for key, tensor in made.state_dict().items():
        wanted = like.state_dict()[key]
        device = "meta" if twin is None else wanted.device.type  # what is passed in stays where it is
        if tensor.device.type != device or tensor.shape != wanted.shape:
            raise Failed(
                f"under torch.device('meta'), {key} is {list(tensor.shape)} on {tensor.device.type}, "
                f"not {list(wanted.shape)} on {device}"
            )


CHECK = Check(
    name="module",
    harm="Checkpoints, ensembles, worker processes or large models built on the meta device break with this.",
    remedy="Register parameters and buffers in __init__, make them on no fixed device, and keep no lambda or "
    "open resource as an attribute.",
    run=run,
    subject=ModuleCase,
)
