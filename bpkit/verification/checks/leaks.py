"""Nothing outlives a step."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from bpkit.verification.case import Case, Forward, backward, call, cotangents
from bpkit.verification.check import Check


def run(case: Case) -> None:
    """With the collector off, every tensor of a step, with a backward or without, is gone after it."""
    case.need_gradient()
    alive = _alive(case, case.forward)
    if alive and case.reference is not None and _alive(case, case.reference):
        return  # so it is with the reference
    if alive:
        raise case.advise(
            f"{alive[0]} is still held when nobody holds it any more: a cycle through ctx, or a cache"
        )


def _alive(case: Case, forward: Forward) -> list[str]:
    with _no_collector():
        _step(case, forward)  # what is cached once is no leak
        return [
            name
            for backwards in (True, False)
            for name, reference in _step(case, forward, backwards=backwards)
            if reference() is not None
        ]


def _step(case: Case, forward: Forward, *, backwards: bool = True) -> list[tuple[str, weakref.ref[Tensor]]]:
    values = case.fresh()
    outputs = call(forward, values)
    grad_outputs = cotangents(outputs)
    gradients = backward(outputs, values, grad_outputs) if backwards else {}
    return [
        *((case.names[i], weakref.ref(value)) for i, value in enumerate(values) if isinstance(value, Tensor)),
        *((f"output {i}", weakref.ref(output)) for i, output in enumerate(outputs)),
        *((f"grad_output {i}", weakref.ref(grad)) for i, grad in enumerate(grad_outputs)),
        *(
            (f"the gradient of {case.names[i]}", weakref.ref(grad))
            for i, grad in gradients.items()
            if grad is not None
        ),
    ]


@contextmanager
def _no_collector() -> Iterator[None]:
    """Reference counts alone: a cycle must not depend on when the collector comes by."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


CHECK = Check(
    name="leaks",
    harm="Memory grows with every step until the collector happens to run, or for good.",
    remedy="Hand outputs and inputs to save_for_backward, never to an attribute of ctx; cache no tensor.",
    run=run,
    subject=Case,
)
