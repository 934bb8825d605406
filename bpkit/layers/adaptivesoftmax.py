"""AdaptiveLogSoftmaxWithLoss: a softmax over many classes, the rare ones in clusters behind the frequent.

    ln p[n,c] = ln h[n,c]                       c a frequent class: h the head's softmax over these and
    ln p[n,c] = ln h[n,k] + ln s_k[n,c]         the clusters; s_k that of cluster k, of its rows alone
    L = -(1/N) Σₙ ln p[n,t[n]]

Each ln h[n,·] and ln s_k[n,·] at one class is a cross entropy, so the derivation is `cross_entropy.py`'s;
rows of a cluster are selected, and what comes of them is added back at their places.

Saved: what the linear layers and the cross entropies keep.
Source: Grave, Joulin, Cissé, Grangier & Jégou, "Efficient softmax approximation for GPUs", 2017.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.adaptive import _ASMoutput

from bpkit import ops
from bpkit.core.module import Handwritten, adopt
from bpkit.core.spec import LayerSpec, Sample, nbytes, randn
from bpkit.layers.linear import Linear
from bpkit.layers.softmax import log_softmax
from bpkit.losses.cross_entropy import cross_entropy


class AdaptiveLogSoftmaxWithLoss(Handwritten, nn.AdaptiveLogSoftmaxWithLoss):
    """`torch.nn.AdaptiveLogSoftmaxWithLoss` with hand-written backwards."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        adopt(self, {nn.Linear: Linear})

    def forward(self, input_: Tensor, target_: Tensor) -> Any:
        _require_together(input_, target_)
        single = target_.dim() == 0
        input, target = (input_.unsqueeze(0), target_.unsqueeze(0)) if single else (input_, target_)
        if ((target < 0) | (target >= self.n_classes)).any():
            raise RuntimeError(
                f"Target values should be in [0, {self.n_classes - 1}], but values in range "
                f"[{target.min().item()}, {target.max().item()}] were found. "
            )
        cluster = torch.bucketize(target, torch.tensor(self.cutoffs, device=target.device), right=True)
        in_head = torch.where(cluster == 0, target, self.shortlist_size + cluster - 1)
        costs = cross_entropy(self.head(input), in_head, reduction="none")
        for k, tail in enumerate(self.tail):
            rows = (cluster == k + 1).nonzero().squeeze(1)
            if len(rows):
                own = cross_entropy(
                    tail(ops.index_select(input, 0, rows)),
                    target[rows] - self.cutoffs[k],
                    reduction="none",
                )
                costs = ops.index_add(costs, 0, rows, own)
        output = ops.neg(costs)
        return _ASMoutput(output.squeeze(0) if single else output, ops.mean(costs))

    def _get_full_log_prob(self, input: Tensor, head_output: Tensor) -> Tensor:
        head = log_softmax(head_output, dim=1)
        parts = [head[:, : self.shortlist_size]]
        for k, tail in enumerate(self.tail):
            own = self.shortlist_size + k
            parts.append(ops.add(log_softmax(tail(input), dim=1), head[:, own : own + 1]))
        return ops.cat(parts, 1)


def _require_together(input: Tensor, target: Tensor) -> None:
    if target.dim() == 1:
        if input.size(0) != target.size(0):
            raise RuntimeError("Input and target should have the same size in the batch dimension.")
        if input.dim() != 2:
            raise RuntimeError(
                f"1D target tensor expects 2D input tensors, but found inputs with size {input.size()}"
            )
    elif target.dim() == 0:
        if input.dim() != 1:
            raise RuntimeError(
                f"0D target tensor expects 1D input tensors, but found inputs with size {input.size()}"
            )
    else:
        raise RuntimeError("0D or 1D target tensor expected, multi-target not supported")


def _samples() -> Iterable[Sample]:
    settings = {"cutoffs": [3, 5], "div_value": 2.0}
    yield Sample(args=(4, 8), kwargs=settings, inputs=(randn(5, 4), torch.tensor([0, 4, 7, 2, 5])))
    bias = {**settings, "head_bias": True}
    yield Sample(args=(4, 8), kwargs=bias, inputs=(randn(3, 4), torch.tensor([1, 2, 4])), label="head_bias")
    yield Sample(args=(4, 8), kwargs=settings, inputs=(randn(4), torch.tensor(6)), label="unbatched")


def _saved_bytes(module: Any, inputs: tuple[Any, ...], output: Any) -> int:
    """At most every row in every cluster: its selection, its projection and its logits."""
    input, target = inputs
    widths = sum(layer.out_features for layer in module.modules() if isinstance(layer, nn.Linear))
    rows = max(1, target.numel())
    return 3 * nbytes(input) + (widths * input.element_size() + 8 * 4 * len(module.tail) + 64) * rows


SPECS = (
    LayerSpec(
        name="AdaptiveLogSoftmaxWithLoss",
        module=AdaptiveLogSoftmaxWithLoss,
        reference=nn.AdaptiveLogSoftmaxWithLoss,
        samples=_samples,
        saves="what its linear layers and cross entropies keep",
        saved_bytes=_saved_bytes,
        summary="softmax over many classes, rare ones in clusters",
    ),
)
