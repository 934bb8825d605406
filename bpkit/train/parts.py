"""From what a user names to objects: losses, optimizers, regularizers, metrics, device, precision."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from bpkit.core.errors import BpkitError, unknown_name
from bpkit.plugins.registry import Registry
from bpkit.regularizers import Regularizer
from bpkit.train.metrics import METRICS, Metric
from bpkit.train.schedules import DECAYS, schedule

Named = str | tuple[str, Mapping[str, Any]]

_PRECISIONS: Mapping[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


_WHOLE, _REAL = (int, np.integer), (int, float, np.integer, np.floating)
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def check_numbers(accumulate: Any, batch_size: Any, log_every: Any, clip: Any, seed: Any) -> None:
    """Raise a `BpkitError` for a setting of the Trainer that cannot be."""
    for name, value in (("accumulate", accumulate), ("batch_size", batch_size), ("log_every", log_every)):
        _check_whole(name, value)
    if clip is not None and not (isinstance(clip, _REAL) and clip > 0):
        raise BpkitError(f"clip must be greater than 0, not {clip!r}")
    if seed is not None and not (isinstance(seed, _WHOLE) and -(2**63) <= seed < 2**63):
        raise BpkitError(f"seed must be a whole number of 64 bits or None, not {seed!r}")


def check_length(epochs: int | None, steps: int | None) -> None:
    """Raise a `BpkitError` unless one of the two says how long to train."""
    if (epochs is None) == (steps is None):
        raise BpkitError("fit: give epochs or steps, one of them")
    name, value = ("epochs", epochs) if steps is None else ("steps", steps)
    _check_whole(f"fit: {name}", value)


def _check_whole(name: str, value: Any) -> None:
    if not isinstance(value, _WHOLE) or isinstance(value, bool):
        raise BpkitError(f"{name} must be a whole number, not {value!r}")
    if value < 1:
        raise BpkitError(f"{name} must be at least 1, not {value}")


def listed(kind: str, given: Any) -> list[Any]:
    """The entries of an argument that takes several; one alone, a string above all, is a mistake."""
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise BpkitError(f"{kind} must be a list, such as [{given!r}], not {given!r}")
    return list(given)


def logdir(given: Any) -> Path | None:
    """A path, or None.

    Raises:
        BpkitError: something else.
    """
    if given is None:
        return None
    if not isinstance(given, (str, Path)):
        raise BpkitError(f"logdir must be a path, not {given!r}")
    path = Path(given)
    try:
        path.exists()
    except (OSError, ValueError) as error:  # too long, or a null byte in it
        raise BpkitError(f"logdir cannot be {str(given)[:80]!r}: {error}"[:200]) from error
    return path


def device(name: str | torch.device) -> torch.device:
    """The device called `name`; `"auto"` is the accelerator if there is one.

    Raises:
        BpkitError: no such device, or none here.
    """
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of kinds of device that it gives up
            chosen = torch.device(name)
            torch.zeros(1, device=chosen).item()
    except Exception as error:  # each backend that is not there raises a type of its own
        reason = str(error).splitlines()[0].split(". ")[0].rstrip(".")[:120]
        raise BpkitError(
            f"device {str(name)!r} cannot be used here: {reason}; 'auto' takes what there is"
        ) from error
    return chosen


def precision(name: str, on: torch.device) -> torch.dtype | None:
    """The autocast dtype for `"fp32"` (None), `"bf16"` or `"fp16"`.

    Raises:
        BpkitError: another name; fp16 without an accelerator, which has no scaled training there.
    """
    if not isinstance(name, str) or name not in _PRECISIONS:
        raise unknown_name("precision", str(name), _PRECISIONS)
    if name == "fp16" and on.type == "cpu":
        raise BpkitError("precision 'fp16' needs an accelerator; on the CPU use 'bf16'")
    return _PRECISIONS[name]


def loss(given: Named | Callable[..., torch.Tensor], registry: Registry) -> Callable[..., torch.Tensor]:
    """A registered loss by name (with settings), or any callable `(output, target) -> scalar`."""
    if isinstance(given, (str, tuple)):
        name, settings = _named(given)
        spec = registry.losses[name]
        return _made("loss", name, spec.module, settings)
    _refuse_class("loss", given)
    if not callable(given):
        raise BpkitError(f"loss must be a name or a callable, not {given!r}")
    return given


def optimizer(given: Any, model: nn.Module, registry: Registry) -> torch.optim.Optimizer:
    """A registered optimizer by name (with settings), a factory `(parameters) -> optimizer`, or one made.

    Raises:
        BpkitError: none of these; a model with nothing to train; an optimizer of something else, or one
            that has to call the model itself.
    """
    made = given if isinstance(given, torch.optim.Optimizer) else _new_optimizer(given, model, registry)
    if not isinstance(made, torch.optim.Optimizer):
        raise BpkitError(f"optimizer: the factory must give a torch.optim.Optimizer, not {made!r}")
    own = {id(parameter) for parameter in model.parameters()}
    if not any(id(each) in own for group in made.param_groups for each in group["params"]):
        raise BpkitError("the optimizer holds no parameter of the model; make it from model.parameters()")
    closure = inspect.signature(type(made).step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise BpkitError(
            f"optimizer {type(made).__name__} calls the model several times a step, which the Trainer does "
            "not do; use it in a loop of your own, with bpkit.watch"
        )
    return made


def _new_optimizer(given: Any, model: nn.Module, registry: Registry) -> Any:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise BpkitError("the model has no parameter that requires a gradient; there is nothing to train")
    if isinstance(given, (str, tuple)):
        name, settings = _named(given)
        return _made("optimizer", name, registry.optimizers[name].optimizer, settings, trained)
    if not callable(given):
        raise BpkitError(f"optimizer must be a name, a factory or a torch.optim.Optimizer, not {given!r}")
    return _called("optimizer", given, trained)


def regularizers(given: Iterable[Any], registry: Registry) -> list[Regularizer]:
    """Registered ones by name (with settings), or objects."""
    found = []
    for each in listed("regularizers", given):
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
    for each in listed("metrics", given):
        if isinstance(each, str):
            if each not in METRICS:
                raise unknown_name("metric", each, METRICS)
            found[each] = METRICS[each]
        else:
            _refuse_class("metric", each)
            if not callable(each):
                raise BpkitError(f"a metric must be a name or a function (output, target), not {each!r}")
            found[getattr(each, "__name__", type(each).__name__)] = each
    return found


def scheduler(given: Any, optimizer: torch.optim.Optimizer, total: int | None) -> Any:
    """A schedule by name (with settings), a factory `(optimizer) -> scheduler`, one made, or None.

    A fixed rate needs no scheduler, whose step would take 15 µs.

    Raises:
        BpkitError: none of these; a scheduler of another optimizer, or one that steps on a metric.
    """
    if given is None or given == "constant":
        return None
    if isinstance(given, (str, tuple)):
        name, settings = _named(given)
        return _made("schedule", name, schedule_named(name), settings, name, optimizer, total)
    if not callable(given) and not isinstance(given, LRScheduler):
        raise BpkitError(f"schedule must be a name, a factory or a scheduler, not {given!r}")
    made = given if isinstance(given, LRScheduler) else _called("schedule", given, optimizer)
    if isinstance(made, ReduceLROnPlateau) or not isinstance(made, LRScheduler):
        raise BpkitError(f"schedule: needs a torch scheduler that goes by the step's number, not {made!r}")
    if made.optimizer is not optimizer:
        raise BpkitError("schedule: the scheduler is of another optimizer than the Trainer's")
    return made


def schedule_named(name: str) -> Callable[..., LRScheduler]:
    """What makes the schedule of that name."""
    if name not in DECAYS:
        raise unknown_name("schedule", name, DECAYS)
    return schedule


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
        raise misfit(f"{kind} {name!r}", make, settings, error) from error


def keywords(make: Callable[..., Any]) -> set[str]:
    """Names of the arguments of a class or function; those that `**settings` hands on to a base too."""
    known: set[str] = set()
    for each in (
        [vars(base)["__init__"] for base in inspect.getmro(make) if "__init__" in vars(base)]
        if isinstance(make, type)
        else [make]
    ):
        parameters = inspect.signature(each).parameters.values()
        known |= {parameter.name for parameter in parameters if parameter.kind in _NAMED}
        if all(parameter.kind is not inspect.Parameter.VAR_KEYWORD for parameter in parameters):
            break
    return known - {"self"}


def misfit(what: str, make: Callable[..., Any], settings: Mapping[str, Any], error: Exception) -> BpkitError:
    """The error of `make(..., **settings)` as one line: a keyword it does not have, with the nearest."""
    known = keywords(make)
    for key in settings if isinstance(error, TypeError) else ():
        if key not in known:
            return unknown_name(f"setting of {what}", key, known)
    return BpkitError(f"{what} cannot take {dict(settings)}: {error}")


def _called(kind: str, factory: Callable[..., Any], argument: Any) -> Any:
    try:
        return factory(argument)
    except (TypeError, ValueError) as error:
        raise BpkitError(f"{kind}: the factory raised {type(error).__name__}: {error}") from error


def _refuse_class(kind: str, given: Any) -> None:
    if isinstance(given, type):
        raise BpkitError(f"{kind}: {given.__name__} is a class; give an object, such as {given.__name__}()")
