"""The layers of a Transformer: attention and a small network in turn, each added to what it was given.

    norm_first:     x ← x + block(norm(x))                else:     x ← norm(x + block(x))

A block is self-attention, attention to the encoder's output (in a decoder), or W₂ φ(W₁ x), where φ is ReLU or
what was given. Nothing here has a derivation of its own: attention, linear maps, norms, dropout and φ have
theirs, and of the sum y = x + b

    ∂L/∂x = ∂L/∂b = ∂L/∂y

The constructors are torch's, and the modules that they made get their hand-written classes. Where no gradient
is recorded torch's own forward runs, and with it its fast path and nested tensors.

Saved: what the layers save; the sums save nothing.
Source: Vaswani et al., "Attention is all you need", 2017, §3; for norm_first Xiong et al., "On layer
normalization in the Transformer architecture", https://arxiv.org/abs/2002.04745.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterable, Mapping
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bpkit import ops
from bpkit.core.module import Handwritten, adopt
from bpkit.core.spec import LayerSpec, Sample, nbytes, randn
from bpkit.layers import activations, gates, multihead, rectifiers
from bpkit.layers.dropout import Dropout
from bpkit.layers.layernorm import LayerNorm
from bpkit.layers.linear import Linear
from bpkit.layers.multihead import MultiheadAttention, attention_bytes
from bpkit.layers.multihead_arguments import recorded, require_dense

# By torch's function, bpkit's: of all that may be given as an activation.
_TWINS: dict[Any, Callable[[Tensor], Tensor]] = {
    theirs: getattr(page, name)
    for home in (torch, F)
    for name, theirs in vars(home).items()
    for page in (rectifiers, activations, gates)
    if callable(theirs) and isinstance(getattr(page, name, None), FunctionType)
}


def _handwritten(activation: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Bpkit's function in the place of torch's; anything else as it is."""
    return _TWINS.get(activation, activation) if isinstance(activation, Hashable) else activation


def _natives(self: Any) -> Iterable[tuple[str, str]]:
    """See `Handwritten`."""
    ours = str(getattr(_handwritten(self.activation), "__module__", "")).startswith("bpkit.")
    if not ours and not isinstance(self.activation, nn.Module):
        yield "activation", "a function that has no hand-written twin; it runs as written"


def _feed_forward(layer: Any, x: Tensor, last: nn.Module) -> Tensor:
    hidden = _handwritten(layer.activation)(layer.linear1(x))
    return last(layer.linear2(layer.dropout(hidden)))


class TransformerEncoderLayer(Handwritten, nn.TransformerEncoderLayer):
    """`torch.nn.TransformerEncoderLayer` with hand-written backwards."""

    natives = _natives

    @functools.wraps(nn.TransformerEncoderLayer.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        adopt_own(self, CHILDREN)

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        if not recorded(self, src, src_mask, src_key_padding_mask):
            return super().forward(src, src_mask, src_key_padding_mask, is_causal)
        require_dense(self, src)
        masks = src_mask, src_key_padding_mask, is_causal
        x = src
        if self.norm_first:
            x = ops.add(x, self._sa_block(self.norm1(x), *masks))
            return ops.add(x, _feed_forward(self, self.norm2(x), self.dropout2))
        x = self.norm1(ops.add(x, self._sa_block(x, *masks)))
        return self.norm2(ops.add(x, _feed_forward(self, x, self.dropout2)))


class TransformerDecoderLayer(Handwritten, nn.TransformerDecoderLayer):
    """`torch.nn.TransformerDecoderLayer` with hand-written backwards."""

    natives = _natives

    @functools.wraps(nn.TransformerDecoderLayer.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        adopt_own(self, CHILDREN)

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
    ) -> Tensor:
        own = tgt_mask, tgt_key_padding_mask, tgt_is_causal
        other = memory, memory_mask, memory_key_padding_mask, memory_is_causal
        x = tgt
        if self.norm_first:
            x = ops.add(x, self._sa_block(self.norm1(x), *own))
            x = ops.add(x, self._mha_block(self.norm2(x), *other))
            return ops.add(x, _feed_forward(self, self.norm3(x), self.dropout3))
        x = self.norm1(ops.add(x, self._sa_block(x, *own)))
        x = self.norm2(ops.add(x, self._mha_block(x, *other)))
        return self.norm3(ops.add(x, _feed_forward(self, x, self.dropout3)))


CHILDREN: dict[type[nn.Module], type[nn.Module]] = {
    **multihead.CHILDREN,
    nn.Linear: Linear,
    nn.Dropout: Dropout,
    nn.LayerNorm: LayerNorm,
    nn.MultiheadAttention: MultiheadAttention,
}


def adopt_own(
    module: nn.Module, classes: Mapping[type[nn.Module], type[nn.Module]], given: Iterable[object] = ()
) -> None:
    """`adopt` of the children that torch's constructor made: all but those `given` to it."""
    given = tuple(given)
    for child in module.children():
        if not any(child is each for each in given):
            child.__class__ = classes.get(type(child), type(child))
            adopt(child, classes)


def encoder_samples() -> Iterable[Sample]:
    """Of `TransformerEncoderLayer`."""
    x = randn(3, 2, 4)
    small = {"dim_feedforward": 5, "dropout": 0.0}
    yield Sample(args=(4, 2), kwargs=small, inputs=(x,))
    causal = torch.ones(2, 2, dtype=torch.bool).triu(1)
    yield Sample(
        args=(4, 2),
        kwargs={**small, "norm_first": True, "batch_first": True, "bias": False, "activation": "gelu"},
        inputs=(x, causal, None, True),
        label="norm_first, batch_first, gelu, causal, no bias",
    )
    # Sequence first: the mask of a dropout follows memory, which under vmap is another, torch's as well.
    padding = torch.tensor([[False, False, True], [False, False, False]])
    kwargs = {**small, "dropout": 0.3}
    yield Sample(args=(4, 2), kwargs=kwargs, inputs=(x, None, padding), label="dropout, padding")


def decoder_samples() -> Iterable[Sample]:
    """Of `TransformerDecoderLayer`."""
    x, memory = randn(3, 2, 4), randn(2, 2, 4, seed=1)
    small = {"dim_feedforward": 5, "dropout": 0.0}
    yield Sample(args=(4, 2), kwargs=small, inputs=(x, memory))
    causal = torch.ones(3, 3, dtype=torch.bool).triu(1)
    yield Sample(
        args=(4, 2),
        kwargs={**small, "norm_first": True},
        inputs=(x, memory, causal),
        label="norm_first, causal",
    )
    yield Sample(args=(4, 2), kwargs={**small, "dropout": 0.3}, inputs=(x, memory), label="dropout")


def layer_bytes(layer: Any, x: Tensor, memory: Tensor | None = None) -> int:
    """The most one layer keeps, its inputs apart."""
    size, rows, width = x.element_size(), x.shape[:-1].numel(), x.shape[-1]
    dropping = layer.dropout.p > 0 and layer.training
    blocks = 2 if memory is None else 3
    kept = attention_bytes(layer.self_attn, x, x, weights=False)
    if memory is not None:
        kept += attention_bytes(layer.multihead_attn, x, memory, weights=False)
    # Each norm: its input, its output, two numbers a row. Of the sums none, of dropout a byte an element.
    kept += blocks * rows * (2 * width * size + 2 * max(4, size) + width * dropping)
    relu = _handwritten(layer.activation) is rectifiers.relu
    hidden = layer.linear1.out_features
    return kept + rows * hidden * ((1 if relu else 2) * size + dropping * (size + 1))


def saved_bytes(bytes_of: Callable[..., int], tensors: int) -> Callable[..., int]:
    """The first `tensors` inputs and what `bytes_of(module, *those)` says beyond."""

    def count(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> int:
        given = inputs[:tensors]
        return nbytes(*given) + bytes_of(module, *given)

    return count


SAVES = "what its attention, linear maps, norms and dropouts save"

SPECS = (
    LayerSpec(
        name="TransformerEncoderLayer",
        module=TransformerEncoderLayer,
        reference=nn.TransformerEncoderLayer,
        samples=encoder_samples,
        saves=SAVES,
        saved_bytes=saved_bytes(layer_bytes, 1),
        random=True,
        summary="self-attention and a small network",
    ),
    LayerSpec(
        name="TransformerDecoderLayer",
        module=TransformerDecoderLayer,
        reference=nn.TransformerDecoderLayer,
        samples=decoder_samples,
        saves=SAVES,
        saved_bytes=saved_bytes(layer_bytes, 2),
        random=True,
        summary="the same, and attention to the encoder's output between",
    ),
)
