"""Direct feedback alignment: the error at the output goes to every layer by a fixed random matrix, past all others.

    what layer l hands down: Σₖ e[n,k] B[k,i]          e = δ of the model's last Linear, k: its outputs

so that, after the derivative of the activation below, layer l-1 gets (e B) f′, as Nøkland has it; ∂L/∂w and ∂L/∂b
follow from that δ as they do in truth. B is random and fixed, of standard deviation 1/√k. To the true gradient that
is 90° at first.

The last Linear (as registered) is the output: its backward comes first and leaves e for the others. One layer's
leading axes have to be those of the output: a model that pools over time before its last layer is refused.

Saved: x and, on sampled steps, w. Source: Nøkland, "Direct feedback alignment provides learning in deep neural
networks", 2016.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from bpkit import BpkitError, Function, Handwritten, RuleSpec
from torch import Tensor, nn

from bpkit_rules.angle import Record, record_of
from bpkit_rules.feedback import Feedback, affine_gradients
from bpkit_rules.refuse import check_backward, check_forward

RULE = "direct_feedback"


@dataclass
class Pass:
    """One forward of the model: the error at its output, once the backward has begun."""

    error: Tensor | None = None


@dataclass
class Shared:
    """What the layers of one model share: the forward that is in progress."""

    current: Pass = field(default_factory=Pass)


@dataclass
class Direct(Feedback):
    """What a layer keeps under the rule.

    Attributes:
        outputs: of the model's last layer; None in a layer by itself, which is its own output.
        shared: with the other layers of the model.
        last: it is the output.
    """

    outputs: int | None = None
    shared: Shared = field(default_factory=Shared)
    last: bool = True


class DirectFunction(Function):
    """`(x [*, in], w [out, in], b [out] | None, B [outputs, in], ...) -> [*, out]`."""

    autocast: ClassVar = {"cpu": "lower", "cuda": "lower"}

    @staticmethod
    def forward(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        feedback: Tensor,
        current: Pass,
        last: bool,
        record: Record | None,
    ) -> Tensor:
        return nn.functional.linear(input, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, weight, _, feedback, ctx.current, ctx.last, ctx.record = inputs
        ctx.save_for_backward(input, None if ctx.record is None else weight, feedback)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        check_backward(RULE)
        input, weight, feedback = ctx.saved_tensors
        if ctx.last:
            ctx.current.error = grad_output
        grad_input = None
        if ctx.needs_input_grad[0]:
            error = ctx.current.error
            if error is None:
                raise BpkitError(
                    f"rule {RULE!r}: a layer's backward came before that of the model's last Linear, which the loss "
                    "does not depend on, or which was recomputed by a checkpoint"
                )
            if error.shape[:-1] != grad_output.shape[:-1]:
                raise BpkitError(
                    f"rule {RULE!r}: a layer of shape {list(grad_output.shape)} cannot take the output's error "
                    f"{list(error.shape)}: all axes but the last must agree; use rule 'feedback'"
                )
            grad_input = error.to(grad_output.dtype) @ feedback.to(grad_output.dtype)
            if ctx.record is not None:
                ctx.record.note(grad_input, grad_output @ weight)
        return grad_input, *affine_gradients(ctx, grad_output, input), None, None, None, None


class DirectLinear(Handwritten, nn.Linear):
    """Linear under direct feedback alignment."""

    def forward(self, input: Tensor) -> Tensor:
        """`[*, in] -> [*, out]`."""
        check_forward(RULE, input, self.weight, self.bias)
        if self.rule is None:
            self.rule = Direct()
        mine: Direct = self.rule
        current = mine.shared.current
        if mine.last:  # what comes after belongs to another forward
            mine.shared.current = Pass()
        rows = input[None] if input.dim() == 1 else input
        feedback = mine.like(self.weight, mine.outputs or self.out_features)
        output: Tensor = DirectFunction.call(
            rows, self.weight, self.bias, feedback, current, mine.last, record_of(self.weight)
        )
        return output[0] if input.dim() == 1 else output


def prepare(model: nn.Module) -> None:
    """Each layer has a matrix of its own, from the outputs of the last one."""
    layers = [module for module in model.modules() if isinstance(module, DirectLinear)]
    if not layers:
        raise BpkitError(f"rule {RULE!r}: the model has no Linear whose error could be sent to the others")
    shared = Shared()
    for place, layer in enumerate(layers):
        layer.rule = Direct(place, None, layers[-1].out_features, shared, layer is layers[-1])


RULES = (
    RuleSpec(
        name=RULE,
        aliases=("direct_feedback_alignment",),
        modules={nn.Linear: DirectLinear},
        angle=0.01,
        prepare=prepare,
        summary="the output's error sent to every layer by a fixed random matrix; 90° off at first",
    ),
)
