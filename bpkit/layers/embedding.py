"""Embedding: row t of the output is the row of `weight` that index t names.

    y[t,d] = w[k[t],d]                                        t: all axes of the indices, d: features
    ∂L/∂w[v,d] = Σₜ [k[t] = v] δ[t,d]                         v: vocabulary

`scale_grad_by_freq` divides δ[t] by the number of times k[t] occurs in the batch; `padding_idx` leaves
that row's gradient zero; `sparse` gives the same sum as a sparse tensor of the rows that occur.

Saved: the indices.
Source: Bengio, Ducharme, Vincent & Jauvin, "A neural probabilistic language model", JMLR 2003.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import _are_functorch_transforms_active

from bpkit.core.function import Function
from bpkit.core.module import Handwritten
from bpkit.core.spec import LayerSpec, Sample, nbytes


class EmbeddingFunction(Function):
    """`(weight [v, d], indices [*], padding_idx, scale_grad_by_freq, sparse) -> [*, d]`."""

    @staticmethod
    def forward(
        weight: Tensor, indices: Tensor, padding_idx: int, scale_grad_by_freq: bool, sparse: bool
    ) -> Tensor:
        return torch.embedding(weight, indices)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        weight, indices, ctx.padding_idx, ctx.by_frequency, ctx.sparse = inputs
        ctx.vocabulary = weight.shape[0]
        ctx.save_for_backward(indices)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (indices,) = ctx.saved_tensors
        index = indices.reshape(indices.numel()).long()
        rows = grad_output.reshape(indices.numel(), grad_output.shape[-1])  # δ            [t, d]
        grad_weight = table_gradient(
            rows, index, ctx.vocabulary, ctx.padding_idx, ctx.by_frequency, ctx.sparse
        )
        return grad_weight, None, None, None, None


def table_gradient(
    rows: Tensor, index: Tensor, vocabulary: int, padding: int, by_frequency: bool, sparse: bool
) -> Tensor:
    """Σₜ [index[t] = v] rows[t], `[v, d]`; `padding` is the row that gets none, or -1."""
    if by_frequency:
        count = rows.new_zeros(vocabulary).index_add(0, index, rows.new_ones(index.shape))
        rows = rows / count.index_select(0, index)[:, None]
    shape = (vocabulary, rows.shape[1])
    if sparse:
        if padding >= 0:
            kept = (index != padding).nonzero()[:, 0]
            index, rows = index[kept], rows[kept]
        return torch.sparse_coo_tensor(index[None], rows, shape, check_invariants=False)
    if padding >= 0:
        rows = rows.masked_fill((index == padding)[:, None], 0)
    zeros = rows.new_zeros(shape)
    if _are_functorch_transforms_active():  # where the index alone may be mapped
        return zeros.index_add(0, index, rows)
    return zeros.index_add_(0, index, rows)  # no copy of the zeros: 2,048 of 30,000 rows take 0.6 of the time


def renormalize(weight: Tensor, indices: Tensor, max_norm: float, norm_type: float) -> None:
    """Scale the rows that occur to at most `max_norm`, in place and outside the graph."""
    with torch.no_grad():
        torch.embedding_renorm_(weight.detach(), indices.contiguous(), max_norm, norm_type)


def embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """`torch.nn.functional.embedding` with a hand-written backward.

    Args:
        input: indices, `[*]`, integers.
        weight: `[vocabulary, features]`.
        padding_idx: the row that gets no gradient; negative counts from the end.
        max_norm: rows that occur are first scaled in place to at most this norm, outside the graph.
        norm_type: the p of that norm.
        scale_grad_by_freq: divide gradients by the frequency of their index in the batch.
        sparse: make the gradient of `weight` a sparse tensor.

    Returns:
        `[*, features]`.

    Raises:
        AssertionError: `padding_idx` outside the vocabulary.
        IndexError: an index outside the vocabulary.
    """
    if padding_idx is not None:
        inside = -weight.size(0) <= padding_idx < weight.size(0)
        assert inside, "Padding_idx must be within num_embeddings"
        padding_idx %= weight.size(0)
    if max_norm is not None:
        renormalize(weight, input, max_norm, norm_type)
    padding = -1 if padding_idx is None else padding_idx
    return EmbeddingFunction.call(weight, input, padding, scale_grad_by_freq, sparse)


class Embedding(Handwritten, nn.Embedding):
    """`torch.nn.Embedding` with a hand-written backward."""

    def forward(self, input: Tensor) -> Tensor:
        return embedding(
            input,
            self.weight,
            self.padding_idx,
            self.max_norm,
            self.norm_type,
            self.scale_grad_by_freq,
            self.sparse,
        )


def _samples() -> Iterable[Sample]:
    indices = torch.tensor([[0, 3, 3], [4, 1, 3]])
    yield Sample(args=(5, 3), inputs=(indices,))
    yield Sample(args=(5, 2), inputs=(torch.tensor(2),), label="one index")


SPECS = (
    LayerSpec(
        name="Embedding",
        module=Embedding,
        reference=nn.Embedding,
        samples=_samples,
        saves="indices",
        saved_bytes=lambda module, inputs, output: nbytes(inputs[0]),
        aliases=("embedding",),
        summary="rows of a table by index",
    ),
)
