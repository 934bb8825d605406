"""TransformerEncoder, TransformerDecoder and Transformer: the layers of `transformer_layers.py` in stacks.

Nothing here computes: torch's own forward calls the layers, which have the derivations, and the last norm.
The constructors are torch's; the modules that they made get their hand-written classes, those that were given
(a norm, a custom encoder) stay as they are, and of `encoder_layer` it is the copies that change.

Source: Vaswani et al., "Attention is all you need", 2017, §3.1.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from bpkit.core.module import Handwritten, adopt
from bpkit.core.spec import LayerSpec, Sample, nbytes
from bpkit.layers import transformer_layers
from bpkit.layers.transformer_layers import (
    SAVES,
    TransformerDecoderLayer,
    TransformerEncoderLayer,
    adopt_own,
    decoder_samples,
    encoder_samples,
    layer_bytes,
    saved_bytes,
)


class TransformerEncoder(Handwritten, nn.TransformerEncoder):
    """`torch.nn.TransformerEncoder` of layers with hand-written backwards."""

    forward = nn.TransformerEncoder.forward

    @functools.wraps(nn.TransformerEncoder.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        adopt(self.layers, CHILDREN)


class TransformerDecoder(Handwritten, nn.TransformerDecoder):
    """`torch.nn.TransformerDecoder` of layers with hand-written backwards."""

    forward = nn.TransformerDecoder.forward

    @functools.wraps(nn.TransformerDecoder.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        adopt(self.layers, CHILDREN)


class Transformer(Handwritten, nn.Transformer):
    """`torch.nn.Transformer` with hand-written backwards."""

    forward = nn.Transformer.forward

    @functools.wraps(nn.Transformer.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        adopt_own(self, CHILDREN, (*args, *kwargs.values()))


CHILDREN: dict[type[nn.Module], type[nn.Module]] = {
    **transformer_layers.CHILDREN,
    nn.TransformerEncoderLayer: TransformerEncoderLayer,
    nn.TransformerDecoderLayer: TransformerDecoderLayer,
    nn.TransformerEncoder: TransformerEncoder,
    nn.TransformerDecoder: TransformerDecoder,
}


def _stack_samples(layer: type[nn.Module], samples: Callable[[], Iterable[Sample]]) -> Iterable[Sample]:
    for sample in samples():
        own = layer(*sample.args, **sample.kwargs).double()
        nested = {"enable_nested_tensor": False} if layer is nn.TransformerEncoderLayer else {}
        yield Sample(args=(own, 2), kwargs=nested, inputs=sample.inputs, label=sample.label)


def _transformer_samples() -> Iterable[Sample]:
    for sample in decoder_samples():
        kwargs = {**sample.kwargs, "num_encoder_layers": 1, "num_decoder_layers": 1}
        source, target, *mask = sample.inputs[1], sample.inputs[0], *sample.inputs[2:]
        yield Sample(
            args=sample.args, kwargs=kwargs, inputs=(source, target, None, *mask), label=sample.label
        )


def _stack_bytes(stack: Any, x: Tensor, memory: Tensor | None = None) -> int:
    """The most all layers of an encoder or decoder keep, the inputs apart, and the last norm."""
    kept = sum(layer_bytes(layer, x, memory) for layer in stack.layers)
    return kept + (stack.norm is not None) * (nbytes(x) + 2 * x.shape[:-1].numel() * max(4, x.element_size()))


def _transformer_bytes(module: Any, source: Tensor, target: Tensor) -> int:
    return (
        _stack_bytes(module.encoder, source)
        + nbytes(source)  # memory
        + _stack_bytes(module.decoder, target, source)
    )


SPECS = tuple(
    LayerSpec(
        name=module.__name__,
        module=module,
        reference=reference,
        samples=samples,
        saves=SAVES,
        saved_bytes=saved_bytes(bytes_of, tensors),
        # On inputs scaled to 6 attention saturates, and the gradients of what is behind it cancel to 1e-5 of
        # their terms: 6e-11 seen, of a gradient of 9e-6 that is off by 6e-16.
        rtol=1e-9,
        random=True,
        summary=summary,
    )
    for module, reference, samples, bytes_of, tensors, summary in (
        (
            TransformerEncoder,
            nn.TransformerEncoder,
            functools.partial(_stack_samples, nn.TransformerEncoderLayer, encoder_samples),
            _stack_bytes,
            1,
            "a stack of encoder layers",
        ),
        (
            TransformerDecoder,
            nn.TransformerDecoder,
            functools.partial(_stack_samples, nn.TransformerDecoderLayer, decoder_samples),
            _stack_bytes,
            2,
            "a stack of decoder layers",
        ),
        (
            Transformer,
            nn.Transformer,
            _transformer_samples,
            _transformer_bytes,
            2,
            "an encoder and a decoder",
        ),
    )
)
