"""`Case`: one function with one set of inputs, which every check is given, and how it is run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bpkit.verification.check import Failed, Skipped, Warned, one_line

Forward = Callable[..., tuple[Tensor, ...]]

SEED = 20240607


@dataclass(frozen=True, kw_only=True)
class Case:
    """A function of a flat list of values, tensors or not, that returns a flat tuple of tensors.

    Attributes:
        label: of the sample, empty where there is one.
        forward: what is proven; called with one argument a value.
        reference: the same mathematics, differentiated by autograd; None where there is none.
        values: what both are called with; never changed, floating-point tensors in float64.
        names: of the values, for messages.
        differentiable: positions of the values that gradients are taken for.
        parameters: positions of a module's parameters, which cost nothing to keep for backward.
        buffers: positions of a module's buffers, which a forward may change.
        dtype: in which the target is run: float64, or the widest that it takes.
        rtol: relative error allowed between two runs in `dtype`.
        strict: registered, so that economy, purity and composability are promised, not only welcome.
        budget: the most bytes that a call may keep for backward, or None where nothing is declared.
        distribution: in place of `reference`, one that draws other random numbers than the target does.
    """

    label: str = ""
    forward: Forward
    reference: Forward | None
    values: tuple[Any, ...]
    names: tuple[str, ...]
    differentiable: tuple[int, ...]
    parameters: frozenset[int] = frozenset()
    buffers: frozenset[int] = frozenset()
    dtype: torch.dtype = torch.float64
    rtol: float = 1e-12
    strict: bool = False
    budget: Callable[[], int] | None = None
    distribution: Forward | None = None

    @property
    def numel(self) -> int:
        """Elements in all values: the smallest failing case is the one to show."""
        return sum(value.numel() for value in self.values if isinstance(value, Tensor))

    @property
    def device(self) -> str:
        """The type of the device that the values are on."""
        return next((value.device.type for value in self.values if isinstance(value, Tensor)), "cpu")

    def fresh(self, required: Iterable[int] | None = None, dtype: torch.dtype | None = None) -> list[Any]:
        """Copies of the values, floating-point ones in `dtype` (default: the case's own).

        Those at `required` (default: all differentiable) are leaves of a graph.
        """
        wanted = set(self.differentiable if required is None else required)

        def copy(position: int, value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            copied = value.detach().clone()
            if copied.is_floating_point():
                copied = copied.to(dtype or self.dtype)
            return copied.requires_grad_(position in wanted)

        return [copy(position, value) for position, value in enumerate(self.values)]

    def having(self, values: Mapping[int, Any]) -> Case:
        """The same case with other values at some positions."""
        return replace(self, values=tuple(values.get(i, value) for i, value in enumerate(self.values)))

    def run_as(self, forward: Forward) -> Case:
        """The same case of another function, such as its reference."""
        return replace(self, forward=forward)

    def need_reference(self) -> Forward:
        """The reference; without one the check that asks is skipped."""
        if self.distribution is not None:
            raise Skipped("it draws other numbers than the reference: their distributions are compared alone")
        if self.reference is None:
            raise Skipped("no reference was given to compare with")
        return self.reference

    def need_gradient(self) -> None:
        """Skip where there is nothing to differentiate."""
        if not self.differentiable:
            raise Skipped("no floating-point input to differentiate")

    def need_float64(self) -> None:
        """Skip what only float64 can tell where the target does not take it."""
        if self.dtype is not torch.float64:
            name = str(self.dtype).removeprefix("torch.")
            raise Skipped(f"the target takes {name} and no float64, which this check needs")

    def advise(self, message: str) -> Exception:
        """A promise not kept: a failure for what is registered, a warning for a stranger's code."""
        return Failed(message) if self.strict else Warned(message)


@dataclass(frozen=True)
class Evaluation:
    """What one forward and one backward gave; gradients by position, None where there is none."""

    outputs: tuple[Tensor, ...]
    gradients: dict[int, Tensor | None]


def seed(number: int = SEED) -> None:
    """Torch's generators at a known place, as by `torch.manual_seed`.

    That one formats a stack trace for each backend that is not there: 0.1 to 1 ms a call, half the time
    of a proof on the CPU.
    """
    if torch.accelerator.is_available():
        torch.manual_seed(number)
    else:
        torch.default_generator.manual_seed(number)


def call(forward: Forward, values: Sequence[Any]) -> tuple[Tensor, ...]:
    """`forward(*values)`, with torch's generator where it always is at the start of a call."""
    seed()
    return forward(*values)


def cotangents(outputs: Sequence[Tensor], seed: int = 1) -> list[Tensor]:
    """A normal gradient for each output: no symmetry that a wrong backward could hide behind."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(output.shape, dtype=torch.float64, generator=generator).to(output.device, output.dtype)
        for output in outputs
    ]


def backward(
    outputs: Sequence[Tensor],
    values: Sequence[Any],
    grad_outputs: Sequence[Tensor] | None = None,
    *,
    retain: bool = False,
) -> dict[int, Tensor | None]:
    """Gradients, by position, of the values that require one.

    `grad_outputs` holds one tensor an output (default: `cotangents`); those of outputs that carry no
    graph are left out.
    """
    positions = [i for i, value in enumerate(values) if isinstance(value, Tensor) and value.requires_grad]
    given = cotangents(outputs) if grad_outputs is None else grad_outputs
    roots = [(output, grad) for output, grad in zip(outputs, given, strict=True) if output.requires_grad]
    if not roots or not positions:
        return dict.fromkeys(positions)
    gradients = torch.autograd.grad(
        [output for output, _ in roots],
        [values[position] for position in positions],
        [grad for _, grad in roots],
        retain_graph=retain,
        allow_unused=True,
    )
    return dict(zip(positions, gradients, strict=True))


def evaluate(
    forward: Forward, values: Sequence[Any], grad_outputs: Sequence[Tensor] | None = None
) -> Evaluation:
    """One forward and one backward on `values` (leaves from `Case.fresh`)."""
    outputs = call(forward, values)
    return Evaluation(
        tuple(output.detach().clone() for output in outputs), backward(outputs, values, grad_outputs)
    )


def both(case: Case, measure: Callable[[Forward], Any], *, refusals: Sequence[str] = ()) -> Any:
    """`measure(case.forward)`; where that raises or fails, the reference decides what it means.

    Raises:
        Skipped: the reference does so as well, or the text is one of `refusals`: what torch says of a
            kind of class, not of a mistake (for a registered target that is a failure all the same).
    """
    try:
        return measure(case.forward)
    except (Warned, Skipped):
        raise
    except Exception as error:
        if case.reference is not None:
            try:
                measure(case.reference)
            except Exception as same:
                raise Skipped(f"so it is with the reference ({_told(same)})") from error
        if not case.strict and any(refusal in str(error) for refusal in refusals):
            raise Skipped(f"torch refuses it for this kind of target ({one_line(error)})") from error
        raise


def twin(case: Case, measure: Callable[[Forward], Any]) -> Any:
    """`measure(case.reference)`.

    Raises:
        Skipped: it raises, as torch's own does for a kernel that this machine does not have.
    """
    try:
        return measure(case.need_reference())
    except Skipped:
        raise
    except Exception as error:
        raise Skipped(f"the reference cannot run so here ({one_line(error)})") from error


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, Failed) else one_line(error)
