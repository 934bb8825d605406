"""What went wrong in a training step, as one line: which module or loss, what it got, and what it is."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bpkit.core.errors import BpkitError
from bpkit.diagnostics import Finding

USER_ERRORS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError)


@contextmanager
def warnings_held() -> Iterator[None]:
    """Give the warnings inside afterwards; none if it raises, whose one line says what is wrong."""
    with warnings.catch_warnings(record=True) as held:
        warnings.simplefilter("always")  # the user's filters have their say afterwards
        yield
    for each in held:
        warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)


def forward_error(model: nn.Module, inputs: Any, error: Exception) -> BpkitError:
    """The error of `model(inputs)` as one line that names the innermost module it came from.

    The forward is run once more under hooks; what it changes does not matter, for it fails.
    """
    entered: list[tuple[nn.Module, tuple[Any, ...]]] = []

    def leave(module: nn.Module, args: Any, output: Any) -> None:  # what a hook returns replaces the output
        entered.pop()

    handles = []
    for module in model.modules():
        handles.append(module.register_forward_pre_hook(lambda m, args: entered.append((m, args))))
        handles.append(module.register_forward_hook(leave))
    try:
        with torch.no_grad():
            model(inputs)
    except Exception:  # whatever it is, where it came from is what is asked
        pass
    finally:
        for handle in handles:
            handle.remove()
    module, args = entered[-1] if entered else (model, (inputs,))
    path = next((name for name, each in model.named_modules() if each is module), "")
    kind = str(module) if next(module.children(), None) is None else type(module).__name__
    got = ", ".join(map(describe, args))
    return BpkitError(f"layer {path or '(the model)'}, {kind}, cannot take {got}: {_first_line(error)}")


def loss_error(loss: Any, output: Any, target: Any, error: Exception) -> BpkitError:
    """The error of `loss(output, target)` as one line."""
    hint = ""
    both = isinstance(target, Tensor) and isinstance(output, Tensor)
    if both and output.dim() > 1 and target.numel() and not target.is_floating_point():
        low, high = int(target.min()), int(target.max())
        hint = f" (targets run from {low} to {high}, the output has {output.shape[1]} classes)"
    return BpkitError(
        f"loss {_name(loss)} cannot take output {describe(output)} and target {describe(target)}: "
        f"{_first_line(error)}{hint}"
    )


def loss_value(loss: Any, value: Any) -> BpkitError:
    """The error of a loss that gave something else than one number."""
    return BpkitError(
        f"loss {_name(loss)} gives {describe(value)}; it must give a tensor of one number (reduction='mean')"
    )


def no_gradient(loss: Any) -> BpkitError:
    """The error of a loss that no parameter has a part in."""
    return BpkitError(
        f"loss {_name(loss)} depends on no parameter that requires a gradient: is the model frozen, or its "
        "output detached?"
    )


def metric_error(name: str, output: Any, target: Any, error: Exception) -> BpkitError:
    """The error of `metric(output, target)` as one line."""
    return BpkitError(
        f"metric {name} cannot take output {describe(output)} and target {describe(target)}: "
        f"{_first_line(error)}"
    )


def nonfinite(loss: float, step: int, epoch: int, findings: Iterable[Finding]) -> BpkitError:
    """The error of a loss that is not finite, with what the watch has found."""
    found = "".join(f"; {finding.kind} in {finding.where}" for finding in findings)
    return BpkitError(f"the loss is {loss} at step {step}, epoch {epoch}: try a smaller rate or clip{found}")


def describe(value: Any) -> str:
    """`[64, 10] float32 on cpu` for a tensor, else its type."""
    if isinstance(value, Tensor):
        return f"{list(value.shape)} {str(value.dtype).removeprefix('torch.')} on {value.device}"
    return type(value).__name__


def _name(loss: Any) -> str:
    return type(loss).__name__ if isinstance(loss, nn.Module) else getattr(loss, "__name__", repr(loss))


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
