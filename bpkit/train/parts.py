"""From what a user names to objects: losses, optimizers, regularizers, metrics, device, precision."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from bpkit.core.errors import BpkitError, unknown_name
from bpkit.plugins.registry import Registry
from bpkit.regularizers import Regularizer
from bpkit.train.metrics import METRICS, Metric
from bpkit.train.schedules import DECAYS, schedule

Named = str | tuple[str, Mapping[str, Any]]

_PRECISIONS: Mapping[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def check_numbers(accumulate: int, batch_size: int, log_every: int, clip: float | None) -> None:
    """Raise a `BpkitError` for a setting of the Trainer that cannot be."""
    for name, value in (("accumulate", accumulate), ("batch_size", batch_size), ("log_every", log_every)):
        if value < 1:
            raise BpkitError(f"{name} must be at least 1, not {value}")
    if clip is not None and not clip > 0:
        raise BpkitError(f"clip must be greater than 0, not {clip}")


def check_length(epochs: int | None, steps: int | None) -> None:
    """Raise a `BpkitError` unless one of the two says how long to train."""
    if (epochs is None) == (steps is None):
        raise BpkitError("fit: give epochs or steps, one of them")
    if (epochs or steps or 0) < 1:
        raise BpkitError(f"fit: epochs or steps must be at least 1, not {epochs or steps}")


def device(name: str | torch.device) -> torch.device:
    """The device called `name`; `"auto"` is the accelerator if there is one.

    Raises:
        BpkitError: no such device, or none here.
    """
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        chosen = torch.device(name)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise BpkitError(
            f"device {str(name)!r} cannot be used here: {reason}; 'auto' takes what there is"
        ) from error
    return chosen


def precision(name: str, on: torch.device) -> torch.dtype | None:
    """The autocast dtype for `"fp32"` (None), `"bf16"` or `"fp16"`.

    Raises:
        BpkitError: another name; fp16 without an accelerator, which has no scaled training there.
    """
    if name not in _PRECISIONS:
        raise unknown_name("precision", name, _PRECISIONS)
    if name == "fp16" and on.type == "cpu":
        raise BpkitError("precision 'fp16' needs an accelerator; on the CPU use 'bf16'")
    return _PRECISIONS[name]


def loss(given: Named | Callable[..., torch.Tensor], registry: Registry) -> Callable[..., torch.Tensor]:
    """A registered loss by name (with settings), or any callable `(output, target) -> scalar`."""
    if isinstance(given, (str, tuple)):
        name, settings = _named(given)
        spec = registry.losses[name]
        return _made("loss", name, spec.module, settings)
    if not callable(given):
        raise BpkitError(f"loss must be a name or a callable, not {given!r}")
    return given


def optimizer(given: Any, model: nn.Module, registry: Registry) -> torch.optim.Optimizer:
    """A registered optimizer by name (with settings), a factory `(parameters) -> optimizer`, or one made."""
    if isinstance(given, torch.optim.Optimizer):
        return given
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise BpkitError("the model has no parameter that requires a gradient; there is nothing to train")
    if isinstance(given, (str, tuple)):
        name, settings = _named(given)
        return _made("optimizer", name, registry.optimizers[name].optimizer, settings, trained)
    if not callable(given):
        raise BpkitError(f"optimizer must be a name, a factory or a torch.optim.Optimizer, not {given!r}")
    return given(trained)


def regularizers(given: Iterable[Any], registry: Registry) -> list[Regularizer]:
    """Registered ones by name (with settings), or objects."""
    found = []
    for each in given:
        if isinstance(each, (str, tuple)):
            name, settings = _named(each)
            each = _made("regularizer", name, registry.regularizers[name].regularizer, settings)
        if not callable(getattr(each, "add_gradient_", None)):
            raise BpkitError(
                f"a regularizer must be a name or a bpkit.regularizers.Regularizer, not {each!r}"
            )
        found.append(each)
    return found


def metrics(given: Iterable[str | Metric]) -> dict[str, Metric]:
    """Metrics by name, or functions `(output, target) -> 0-d tensor` under their own."""
    found = {}
    for each in given:
        if isinstance(each, str):
            if each not in METRICS:
                raise unknown_name("metric", each, METRICS)
            found[each] = METRICS[each]
        else:
            found[getattr(each, "__name__", type(each).__name__)] = each
    return found


def scheduler(given: Any, optimizer: torch.optim.Optimizer, total: int | None) -> Any:
    """A schedule by name (with settings), a factory `(optimizer) -> scheduler`, or None for a fixed rate.

    A fixed rate needs no scheduler, whose step would take 15 µs.
    """
    if given is None or given == "constant":
        return None
    if isinstance(given, (str, tuple)):
        name, settings = _named(given)
        if name not in DECAYS:
            raise unknown_name("schedule", name, DECAYS)
        return _made("schedule", name, schedule, settings, name, optimizer, total)
    if not callable(given):
        raise BpkitError(f"schedule must be a name or a factory, not {given!r}")
    return given(optimizer)


def _named(given: Named) -> tuple[str, dict[str, Any]]:
    if isinstance(given, str):
        return given, {}
    if len(given) == 2 and isinstance(given[0], str) and isinstance(given[1], Mapping):
        return given[0], dict(given[1])
    raise BpkitError(f"expected a name or (name, settings), not {given!r}")


def _made(kind: str, name: str, make: Callable[..., Any], settings: Mapping[str, Any], *args: Any) -> Any:
    try:
        return make(*args, **settings)
    except (TypeError, ValueError) as error:
        raise BpkitError(f"{kind} {name!r} cannot take {dict(settings)}: {error}") from error
