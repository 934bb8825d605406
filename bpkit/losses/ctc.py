"""CTCLoss: the likelihood of a label sequence, summed over all its alignments with longer input.

With x[t,c] the log-probability of character c at time t < T, and l' the S labels with a blank before,
between and after them, u < 2S + 1:

    α[t,u] = x[t,l'[u]] + ln(e^α[t-1,u] + e^α[t-1,u-1] + s[u] e^α[t-1,u-2])     α[0,u] = x[0,l'[u]], u < 2
    β[t,u] = ln(e^b[t+1,u] + e^b[t+1,u+1] + s[u+2] e^b[t+1,u+2]),   b = β + x   β[T-1,u] = 0, u ≥ 2S - 1
    l = -ln P,   P = e^α[T-1,2S] + e^α[T-1,2S-1]

s[u] is 1 where l'[u] is not l'[u-2], so never at a blank. α counts the ways to arrive at u, β the ways
on from it, so that q[t,c] = Σ_{u: l'[u]=c} exp(α[t,u] + β[t,u] - ln P) is the share of alignments that
read c at time t, and ∂l/∂x[t,c] = -q[t,c]. As torch defines it, the gradient is that of what a softmax
before it is given (eq. 16 of the paper): the same behind `log_softmax`, which subtracts Σ_c of it,

    ∂l/∂x[t,c] = e^x[t,c] - q[t,c],     0 from T on

Batch and states are one axis each of every tensor; time is a loop, in double precision: of logarithms
near -150 a float32 keeps 5 digits, and a hundred steps of it 4. Where a state cannot be reached α
holds a number so small that nothing comes of it, and not -∞, whose derivatives would be NaN.

Saved: x and α, as torch does. For a second derivative, which torch does not have, α is computed again
as a function of x.
Source: Graves, Fernández, Gomez & Schmidhuber, "Connectionist temporal classification", 2006, sec. 4.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bpkit.core.function import Function
from bpkit.core.module import Handwritten
from bpkit.core.precision import narrowest
from bpkit.core.refusal import refuse
from bpkit.core.spec import LossSpec, Sample, nbytes, randn
from bpkit.core.transforms import unseen
from bpkit.losses.reduction import MEAN, NONE, code

# ln 0. A sum of as many of these as there are steps in time is still a finite float32.
NEVER = -1e30


class CTCFunction(Function):
    """`(x [t, n, c], l' [n, u], T [n], S [n], blank, reduction, zero infinite) -> [] or [n], α [t, n, u]`."""

    autocast = {"cpu": "fp32"}

    @staticmethod
    def forward(
        log_probs: Tensor,
        states: Tensor,
        input_lengths: Tensor,
        target_lengths: Tensor,
        blank: int,
        reduction: int,
        zero_infinity: bool,
    ) -> tuple[Tensor, Tensor]:
        alpha = _alpha(log_probs, states, blank)
        loss = -_log_likelihood(alpha, input_lengths, target_lengths)
        loss = torch.where(loss > -NEVER / 2, 0.0 if zero_infinity else torch.inf, loss)
        if reduction == MEAN:
            loss = (loss / target_lengths.clamp(min=1)).mean()
        loss = loss if reduction in (NONE, MEAN) else loss.sum()
        return loss.to(log_probs.dtype), alpha.to(log_probs.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        log_probs, states, input_lengths, target_lengths, ctx.blank, ctx.reduction, ctx.zero = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        states = states.to(narrowest(log_probs.shape[2] - 1))
        ctx.save_for_backward(log_probs, states, input_lengths, target_lengths, output[1])

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if grad_output is None:
            return (None,) * 7
        x, states, input_lengths, target_lengths, alpha = ctx.saved_tensors
        states = states.long()
        if torch.is_grad_enabled():
            alpha = _alpha(x, states, ctx.blank)
        beta = _beta(x, states, input_lengths, target_lengths, ctx.blank)
        total = (beta[0] + _emitted(x[:1], states)[0])[:, :2].logsumexp(1)
        never = total < NEVER / 2
        share = (alpha + beta - torch.where(never, 0, total).unsqueeze(-1)).exp().to(x.dtype)
        expected = torch.zeros_like(x).scatter_add(2, states.expand(share.shape), share)
        scale = grad_output
        if ctx.reduction == MEAN:
            scale = scale / (target_lengths.clamp(min=1) * len(target_lengths))
        within = torch.arange(x.shape[0], device=x.device).unsqueeze(1) < input_lengths
        gradient = torch.where(never.unsqueeze(-1), 0 if ctx.zero else torch.nan, x.exp() - expected)
        gradient = torch.where(within.unsqueeze(-1), gradient, 0) * scale.unsqueeze(-1)
        return gradient, None, None, None, None, None, None


def _emitted(log_probs: Tensor, states: Tensor) -> Tensor:
    """x[t,l'[u]].   [t, n, u]"""
    chosen = log_probs.gather(2, states.expand(log_probs.shape[0], *states.shape))
    return chosen.double().clamp(min=NEVER)


def _skips(states: Tensor, blank: int) -> Tensor:
    """The logarithm of s[u].   [n, u]"""
    before = F.pad(states, (2, 0), value=blank)[:, :-2]
    return torch.where(states != before, 0.0, NEVER).double()


def _alpha(log_probs: Tensor, states: Tensor, blank: int) -> Tensor:
    emitted, skips = _emitted(log_probs, states).unbind(0), _skips(states, blank)
    start = torch.arange(states.shape[1], device=states.device) < 2
    alpha = [torch.where(start, emitted[0], NEVER)]
    for now in emitted[1:]:
        before = F.pad(alpha[-1], (2, 0), value=NEVER)
        ways = torch.logaddexp(before[:, 2:], before[:, 1:-1])
        alpha.append(torch.logaddexp(ways, before[:, :-2] + skips) + now)
    return torch.stack(alpha)


def _beta(
    log_probs: Tensor, states: Tensor, input_lengths: Tensor, target_lengths: Tensor, blank: int
) -> Tensor:
    emitted, skips = _emitted(log_probs, states).unbind(0), _skips(states, blank)
    skips = F.pad(skips, (0, 2), value=NEVER)[:, 2:]
    place = torch.arange(states.shape[1], device=states.device) - 2 * target_lengths.unsqueeze(1)
    end = torch.where((place == 0) | (place == -1), 0.0, NEVER).double()
    beta = [end]
    for time in range(len(emitted) - 1, 0, -1):
        after = F.pad(beta[-1] + emitted[time], (0, 2), value=NEVER)
        ways = torch.logaddexp(after[:, :-2], after[:, 1:-1])
        ways = torch.logaddexp(ways, after[:, 2:] + skips)
        beta.append(torch.where((input_lengths <= time).unsqueeze(1), end, ways))
    return torch.stack(beta[::-1])


def _log_likelihood(alpha: Tensor, input_lengths: Tensor, target_lengths: Tensor) -> Tensor:
    """The logarithm of P.   [n]"""
    none = torch.where(target_lengths == 0, 0.0, NEVER).to(alpha.dtype)  # of an input of length 0
    last = (input_lengths - 1).clamp(min=0).reshape(1, -1, 1).expand(1, -1, alpha.shape[2])
    last = alpha.gather(0, last).squeeze(0)
    ends = 2 * target_lengths.unsqueeze(1)
    blank = last.gather(1, ends)
    label = torch.where(ends > 0, last.gather(1, (ends - 1).clamp(min=0)), NEVER)
    return torch.where(input_lengths == 0, none, torch.logaddexp(blank, label).squeeze(1))


def ctc_loss(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor | Sequence[int],
    target_lengths: Tensor | Sequence[int],
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = False,
) -> Tensor:
    """`torch.nn.functional.ctc_loss` with a hand-written backward that can be differentiated again.

    Args:
        log_probs: `[t, n, c]` or `[t, c]`, behind `log_softmax`.
        targets: `[n, s]`, or all of them one after another.
        input_lengths: `[n]`, each at most t.
        target_lengths: `[n]`.
        blank: the character between labels.
        reduction: `"none"`, `"sum"`, or `"mean"`: of each loss divided by its target's length.
        zero_infinity: whether a target longer than its input counts for nothing, or else makes the loss
            infinite.

    Raises:
        RuntimeError: shapes or lengths that do not go together, in torch's words.
    """
    reduced = code(reduction, None, None)
    if not _well_formed(log_probs, targets, input_lengths, target_lengths, blank):
        given = (log_probs, targets, input_lengths, target_lengths, blank, reduced, zero_infinity)
        refuse(torch.ctc_loss, *given)
    single = log_probs.dim() == 2
    device = log_probs.device
    lengths, sizes = (
        torch.as_tensor(each, device=device).reshape(-1).long() for each in (input_lengths, target_lengths)
    )
    states = _states(targets.to(device).long(), sizes, blank, single)
    loss, _ = CTCFunction.call(
        log_probs.unsqueeze(1) if single else log_probs, states, lengths, sizes, blank, reduced, zero_infinity
    )
    return loss.squeeze(0) if single and reduced == NONE else loss


def _states(targets: Tensor, sizes: Tensor, blank: int, single: bool) -> Tensor:
    """l', by row.   [n, u]"""
    if targets.dim() == 1 and not single:
        longest = len(targets) if unseen() else int(sizes.max())
        places = (sizes.cumsum(0) - sizes).unsqueeze(1) + torch.arange(longest, device=sizes.device)
        labels = targets[places.clamp(max=max(0, len(targets) - 1))] if longest else places
    else:
        labels = targets.reshape(1, -1) if single else targets
    pairs = torch.stack((torch.full_like(labels, blank), labels), 2).flatten(1)
    # Beyond a row's own length anything may stand, torch never reads it.
    own = torch.arange(pairs.shape[1], device=sizes.device) < 2 * sizes.unsqueeze(1)
    return F.pad(torch.where(own, pairs, blank), (0, 1), value=blank)


def _well_formed(
    log_probs: Tensor, targets: Tensor, input_lengths: Any, target_lengths: Any, blank: int
) -> bool:
    """Whether the arguments go together; for those that do not, torch has the error."""
    if log_probs.dim() not in (2, 3) or not log_probs.is_floating_point():
        return False
    steps, classes = log_probs.shape[0], log_probs.shape[-1]
    batch = 1 if log_probs.dim() == 2 else log_probs.shape[1]
    if targets.dtype not in (torch.int32, torch.int64, torch.uint8) or targets.dim() not in (1, 2):
        return False
    if not (0 <= blank < classes and batch and steps):
        return False
    if unseen():
        return True
    lengths, sizes = (
        each.reshape(-1).tolist() if isinstance(each, Tensor) else list(each)
        for each in (input_lengths, target_lengths)
    )
    if len(lengths) != batch or len(sizes) != batch or min(lengths) < 0 or min(sizes) < 0:
        return False
    if max(lengths) > steps:
        return False
    if targets.dim() == 1:
        return len(targets) == sum(sizes)
    return targets.shape[0] == batch and max(sizes) <= targets.shape[1]


class CTCLoss(Handwritten, nn.CTCLoss):
    """`torch.nn.CTCLoss` with a hand-written backward."""

    def forward(
        self,
        log_probs: Tensor,
        targets: Tensor,
        input_lengths: Tensor | Sequence[int],
        target_lengths: Tensor | Sequence[int],
    ) -> Tensor:
        return ctc_loss(
            log_probs,
            targets,
            input_lengths,
            target_lengths,
            self.blank,
            self.reduction,
            self.zero_infinity,
        )


def _samples() -> Iterable[Sample]:
    log_probs = randn(6, 2, 4).log_softmax(2)
    targets = torch.tensor([[1, 1, 3], [2, 1, 1]])  # without blanks, of which torch counts one too few
    lengths = (torch.tensor([6, 4]), torch.tensor([3, 1]))
    yield Sample(inputs=(log_probs, targets, *lengths))
    joined = torch.tensor([1, 1, 3, 2])
    yield Sample(kwargs={"reduction": "sum"}, inputs=(log_probs, joined, *lengths), label="joined, sum")
    yield Sample(
        kwargs={"blank": 2, "reduction": "none"},
        inputs=(log_probs, torch.tensor([[1, 1], [3, 0]]), (6, 4), (2, 0)),
        label="blank, none",
    )
    short = (torch.tensor([3, 4]), lengths[1])  # too short for two equal labels in a row
    yield Sample(kwargs={"zero_infinity": True}, inputs=(log_probs, targets, *short), label="zero_infinity")


def _saved_bytes(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> int:
    log_probs, targets, *_ = inputs
    longest = targets.shape[-1]
    batch = log_probs.shape[1]
    alpha = log_probs.shape[0] * batch * (2 * longest + 1) * log_probs.element_size()
    states = narrowest(log_probs.shape[2] - 1).itemsize * batch * (2 * longest + 1)
    return nbytes(log_probs) + alpha + states + 16 * batch


SPECS = (
    LossSpec(
        name="ctc",
        module=CTCLoss,
        reference=nn.CTCLoss,
        samples=_samples,
        saves="log-probabilities, and the forward variables of each state",
        saved_bytes=_saved_bytes,
        aliases=("CTCLoss", "ctc_loss"),
        summary="likelihood of a sequence over all its alignments",
        not_proven={
            "sizes": "torch's own writes out of bounds for labels beyond its classes, which small axes have",
            "extremes": "where a log-probability is -inf torch's gradient is NaN, and this one the limit",
        },
    ),
)
