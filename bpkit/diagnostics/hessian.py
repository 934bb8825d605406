"""`Hessian`: exact products of a loss's second derivatives with vectors, by two backwards (Pearlmutter 1994).

H v = ∂/∂w (∂L/∂w · v): the gradient is formed with its own graph, once; each product is one more backward
through both graphs, at about twice the cost of a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from bpkit.core.errors import BpkitError
from bpkit.core.graph import name, nodes
from bpkit.diagnostics.aside import undisturbed

Closure = Callable[[], Tensor]


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Without fused attention and cuDNN's recurrent layers, which torch derives no second time.

    Without oneDNN's as well: of recurrent layers in bfloat16 it has no backward at all.
    """
    # `torch.backends.mkldnn.flags` sets TF32 as well, and warns where there is no Intel GPU.
    onednn = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), torch.backends.cudnn.flags(enabled=False):
            yield
    finally:
        torch._C._set_mkldnn_enabled(onednn)


class Hessian:
    """A context manager in which products can be taken; the training finds everything as it was.

    Args:
        closure: gives the loss, a scalar with a graph; no step, no backward.
        model: its buffers are kept, and the generators that its forward draws from.
        parameters: what is differentiated by, in the order of the vectors; those that the loss does not
            reach have zero rows.
        compiled: parts of the model run under `torch.compile`, whose graphs have no second derivative.

    Attributes:
        loss: the closure's value.
        vector: the gradient [n], in the parameters' widest dtype, float32 at least.
    """

    def __init__(
        self,
        closure: Closure,
        model: nn.Module,
        parameters: Sequence[nn.Parameter],
        *,
        compiled: bool = False,
    ) -> None:
        self._closure, self._model, self._compiled = closure, model, compiled
        self._parameters = list(parameters)
        self._stack = ExitStack()

    def __enter__(self) -> Hessian:
        with ExitStack() as stack:
            stack.enter_context(undisturbed(self._model))
            stack.enter_context(twice_differentiable())
            if self._compiled:
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            loss = self._closure()
            if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
                raise BpkitError(f"curvature: closure() must give a scalar loss with a graph, not {loss!r}")
            if any(name(node) == "CheckpointFunction" for node in nodes([loss])):
                # Its parameters are not in this graph: their gradient would be taken for zero.
                raise BpkitError(
                    "curvature: use checkpoint(use_reentrant=False): the other kind has no second derivative"
                )
            self._gradients = torch.autograd.grad(
                loss.sum(), self._parameters, create_graph=True, materialize_grads=True
            )
            self.loss = loss.item()
            self.vector = self._flat([each.detach() for each in self._gradients])
            # A loss that is linear in some parameters has gradients without a graph.
            self._curved = [each for each in self._gradients if each.requires_grad]
            self._stack = stack.pop_all()
        return self

    def product(self, vector: Tensor) -> Tensor:
        """H v of a vector [n]."""
        parts = self._split(vector)
        along = [part for part, each in zip(parts, self._gradients, strict=True) if each.requires_grad]
        if not self._curved:
            return torch.zeros_like(vector)
        return self._flat(
            torch.autograd.grad(
                self._curved, self._parameters, along, retain_graph=True, materialize_grads=True
            )
        )

    def _flat(self, tensors: Sequence[Tensor]) -> Tensor:
        """One vector of all elements; a complex one is two."""
        first, dtype = tensors[0].device, torch.float32
        parts = [torch.view_as_real(each) if each.is_complex() else each for each in tensors]
        for part in parts:
            dtype = torch.promote_types(dtype, part.dtype)
        return torch.cat([part.reshape(-1).to(first, dtype) for part in parts])

    def _split(self, vector: Tensor) -> list[Tensor]:
        parts, start = [], 0
        for each in self._parameters:
            real = torch.view_as_real(each.detach()) if each.is_complex() else each.detach()
            part = vector[start : start + real.numel()].view(real.shape).to(real.device, real.dtype)
            parts.append(torch.view_as_complex(part.contiguous()) if each.is_complex() else part)
            start += real.numel()
        return parts

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._gradients = ()
        self._curved = []
        self._stack.close()
