"""EmbeddingBag: for each bag of indices the sum, the mean or the maximum of the rows that they name.

    sum, mean    y[b,d] = Σ_{t in b} c[t] w[k[t],d]           c[t]: 1, 1/n[b], or a weight per sample
    max          y[b,d] = w[m[b,d],d]                         m[b,d] = argmax of w[k[t],d] over k[t], t in b

    t: place among all indices, in bag b(t); n[b]: indices in bag b; d: features; v: vocabulary.
    `padding_idx` is in no bag, and the row of a bag with nothing in it is zero. `scale_grad_by_freq` divides
by the frequency of k[t], as torch documents it and its Embedding does; its EmbeddingBag, on CPU in 2.13,
takes that of another index where a smaller one repeats (`counts[indices_data[i]]` in EmbeddingBag.cpp).

With δ = ∂L/∂y:

    sum, mean    ∂L/∂w[v,d] = Σ_t [k[t] = v] c[t] δ[b(t),d]      Embedding's, of the rows c[t] δ[b(t)]
                 ∂L/∂c[t]   = Σ_d δ[b(t),d] w[k[t],d]
    max          ∂L/∂w[v,d] = Σ_b [m[b,d] = v] δ[b,d]

Saved: the indices, where the bags start, and c if it is given; of max, m alone.
Source: Joulin, Grave, Bojanowski & Mikolov, "Bag of tricks for efficient text classification", EACL 2017.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bpkit.core.function import Function
from bpkit.core.module import Handwritten
from bpkit.core.refusal import refuse
from bpkit.core.spec import LayerSpec, Sample, nbytes, randn
from bpkit.layers.embedding import renormalize, table_gradient

_MODES = {"sum": 0, "mean": 1, "max": 2}


class EmbeddingBagFunction(Function):
    """`(w [v, d], k [t], starts [b], c [t] | None, mean, padding, by_frequency, sparse) -> [b, d]`."""

    @staticmethod
    def forward(
        weight: Tensor,
        indices: Tensor,
        starts: Tensor,
        shares: Tensor | None,
        mean: bool,
        padding: int,
        by_frequency: bool,
        sparse: bool,
    ) -> Tensor:
        return torch.embedding_bag(
            weight, indices, starts, False, int(mean), False, shares, False, _or_none(padding)
        )[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        weight, indices, starts, shares, ctx.mean, ctx.padding, ctx.by_frequency, ctx.sparse = inputs
        ctx.vocabulary = weight.shape[0]
        ctx.save_for_backward(
            indices,
            starts,
            shares if ctx.needs_input_grad[0] else None,
            weight if ctx.needs_input_grad[3] else None,
        )

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        indices, starts, shares, weight = ctx.saved_tensors
        ends = torch.cat((starts[1:], starts.new_tensor([len(indices)])))
        size = ends - starts  #                                                          n [b]
        bag = torch.repeat_interleave(size, output_size=len(indices))  #                 b(t) [t]
        index = indices.long()
        grad_weight = grad_shares = None
        if ctx.mean:
            if ctx.padding >= 0:
                size = size.index_add(0, bag, -(index == ctx.padding).to(size.dtype))
            grad_output = grad_output / size.clamp(min=1)[:, None]
        rows = grad_output.index_select(0, bag)  #                                       δ [t, d]
        if ctx.needs_input_grad[3]:
            grad_shares = (rows * weight.index_select(0, index)).sum(1)
            if ctx.padding >= 0:
                grad_shares = grad_shares.masked_fill(index == ctx.padding, 0)
        if ctx.needs_input_grad[0]:
            if shares is not None:
                rows = rows * shares[:, None]
            grad_weight = table_gradient(
                rows, index, ctx.vocabulary, ctx.padding, ctx.by_frequency, ctx.sparse
            )
        return grad_weight, None, None, grad_shares, None, None, None, None


class EmbeddingBagMaxFunction(Function):
    """`(w [v, d], k [t], starts [b], padding) -> y [b, d], m [b, d]`, and m is -1 where there is none."""

    @staticmethod
    def forward(weight: Tensor, indices: Tensor, starts: Tensor, padding: int) -> tuple[Tensor, Tensor]:
        output, _, size, picked = torch.embedding_bag(
            weight, indices, starts, False, _MODES["max"], False, None, False, _or_none(padding)
        )
        return output, picked.masked_fill((size == 0)[:, None], -1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.vocabulary = inputs[0].shape[0]
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:
        (picked,) = ctx.saved_tensors
        there = grad_output.masked_fill(picked < 0, 0)
        zeros = grad_output.new_zeros(ctx.vocabulary, grad_output.shape[1])
        return zeros.scatter_add(0, picked.clamp(min=0).long(), there), None, None, None


def _or_none(padding: int) -> int | None:
    return padding if padding >= 0 else None


def embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """`torch.nn.functional.embedding_bag` with a hand-written backward.

    Args:
        input: indices, `[bags, n]`, or `[t]` of all bags.
        weight: `[vocabulary, features]`.
        offsets: where in `[t]` each bag starts, `[bags]`.
        max_norm: rows that occur are first scaled in place to at most this norm, outside the graph.
        norm_type: the p of that norm.
        scale_grad_by_freq: divide gradients by the frequency of their index in the batch.
        mode: `"sum"`, `"mean"` or `"max"`.
        sparse: make the gradient of `weight` a sparse tensor.
        per_sample_weights: the shares in a sum, shaped as `input`.
        include_last_offset: `offsets` has one entry more, the number of all indices.
        padding_idx: the index that counts for nothing; negative counts from the end.

    Returns:
        `[bags, features]`.

    Raises:
        ValueError, RuntimeError: arguments that do not go together, in torch's words.
    """
    if weight.dtype is torch.long and input.is_floating_point():
        warnings.warn("embedding_bag(weight, input) is deprecated: the indices come first", stacklevel=2)
        weight, input = input, weight
    given = (max_norm, norm_type, scale_grad_by_freq, mode, sparse, per_sample_weights)
    if input.is_nested:
        raise NotImplementedError(
            "bpkit's embedding_bag takes no nested tensors: leave the module out, convert(model, exclude=...)"
        )
    if not _fits(input, weight, offsets, scale_grad_by_freq, mode, sparse, per_sample_weights):
        refuse(F.embedding_bag, input, weight, offsets, *given, include_last_offset, padding_idx)
    if padding_idx is not None and not -len(weight) <= padding_idx < len(weight):
        refuse(F.embedding_bag, input, weight, offsets, *given, include_last_offset, padding_idx)
    shares = per_sample_weights
    if offsets is None:
        bags, length = input.shape
        offsets = length * torch.arange(bags, dtype=input.dtype, device=input.device)
        input, shares = input.reshape(-1), None if shares is None else shares.reshape(-1)
    elif include_last_offset:
        offsets = offsets[:-1]
    if max_norm is not None:
        renormalize(weight, input, max_norm, norm_type)
    padding = -1 if padding_idx is None else padding_idx % len(weight)
    if mode == "max":
        output: Tensor = EmbeddingBagMaxFunction.call(weight, input, offsets, padding)[0]
    else:
        settings = (mode == "mean", padding, scale_grad_by_freq, sparse)
        output = EmbeddingBagFunction.call(weight, input, offsets, shares, *settings)
    return output


def _fits(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None,
    by_frequency: bool,
    mode: str,
    sparse: bool,
    shares: Tensor | None,
) -> bool:
    """Whether torch's own function would not complain."""
    bags = input.dim() == 2 and offsets is None
    listed = input.dim() == 1 and offsets is not None and offsets.dim() == 1 and len(offsets) > 0
    return (
        weight.dim() == 2
        and (bags or listed)
        and mode in _MODES
        and not (mode == "max" and (by_frequency or sparse))
        and (shares is None or (mode == "sum" and shares.shape == input.shape))
    )


class EmbeddingBag(Handwritten, nn.EmbeddingBag):
    """`torch.nn.EmbeddingBag` with a hand-written backward."""

    def forward(
        self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
    ) -> Tensor:
        return embedding_bag(
            input,
            self.weight,
            offsets,
            self.max_norm,
            self.norm_type,
            self.scale_grad_by_freq,
            self.mode,
            self.sparse,
            per_sample_weights,
            self.include_last_offset,
            self.padding_idx,
        )


def _samples() -> Iterable[Sample]:
    bags = torch.tensor([[0, 3, 3], [4, 1, 3]])
    listed, starts = torch.tensor([0, 3, 3, 4, 1, 2]), torch.tensor([0, 2, 2, 5])
    yield Sample(args=(5, 3), inputs=(bags,), label="mean")
    kwargs: dict[str, Any] = {"mode": "sum", "padding_idx": 3}
    yield Sample(args=(5, 2), kwargs=kwargs, inputs=(listed, starts), label="sum, padding")
    kwargs = {"mode": "mean", "padding_idx": -2, "include_last_offset": True}
    ends = torch.tensor([0, 2, 2, 6])
    yield Sample(args=(5, 2), kwargs=kwargs, inputs=(listed, ends), label="mean, padding, last offset")
    yield Sample(args=(5, 2), kwargs={"mode": "max"}, inputs=(listed, starts), label="max")
    kwargs = {"mode": "sum", "padding_idx": 1}
    yield Sample(args=(5, 2), kwargs=kwargs, inputs=(bags, None, randn(2, 3)), label="weights per sample")


SPECS = (
    LayerSpec(
        name="EmbeddingBag",
        module=EmbeddingBag,
        reference=nn.EmbeddingBag,
        samples=_samples,
        saves="indices and offsets (of a maximum, the rows it came from)",
        saved_bytes=lambda module, inputs, output: nbytes(*inputs) + 8 * output.numel(),
        aliases=("embedding_bag",),
        summary="sums, means or maxima of rows of a table",
        not_proven={"sizes": "torch reads out of bounds where offsets do not ascend, as random ones"},
    ),
)
