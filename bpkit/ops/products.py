"""Products of matrices: C = A B, and all that is spelt with it.

    c[m,n] = Σₖ a[m,k] b[k,n]

    ∂L/∂a[m,k] = Σₙ g[m,n] b[k,n]             G Bᵀ
    ∂L/∂b[k,n] = Σₘ a[m,k] g[m,n]             Aᵀ G

Leading axes that were broadcast are summed over; a vector is a matrix of one row or one column. A sum of
products over named indices (einsum) is one such product once the axes stand in the right order, and
the gradient of an operand is the einsum of g and the other operand onto its own indices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bpkit.core.function import CastPolicy
from bpkit.core.refusal import refuse
from bpkit.ops.op import op
from bpkit.ops.pointwise import mul
from bpkit.ops.reductions import sum as _sum

_LOWER: Mapping[str, CastPolicy] = {"cpu": "lower", "cuda": "lower"}


def _rows(tensor: Tensor) -> Tensor:
    """[*, k] as [n, k]."""
    *leading, last = tensor.shape
    return tensor.reshape(math.prod(leading), last)


def _right(g: Tensor, input: Tensor, other_dim: int) -> Tensor:
    """Aᵀ G; one B for a whole batch of A takes one product, not a sum of many."""
    return _rows(input).mT @ _rows(g) if other_dim == 2 else input.mT @ g


def _whole(product: Tensor) -> Tensor:
    """The same memory and no view of it: an output that is a view may not be written to in place."""
    return torch.ops.aten._unsafe_view(product, product.shape)


def _product(input: Tensor, other: Tensor, other_dim: int) -> Tensor:
    """A B, which torch computes as (Bᵀ Aᵀ)ᵀ where one A meets a whole batch of B."""
    product = torch.matmul(input, other)
    return _whole(product) if input.dim() < other_dim else product


_matmul = op(
    _product,
    name="matmul",
    autocast=_LOWER,
    input=lambda g, other: g @ other.mT,
    other=_right,
)
mm = op(
    lambda input, mat2: torch.mm(input, mat2),
    name="mm",
    autocast=_LOWER,
    input=lambda g, mat2: g @ mat2.mT,
    mat2=lambda g, input: input.mT @ g,
)
bmm = op(
    lambda input, mat2: torch.bmm(input, mat2),
    name="bmm",
    autocast=_LOWER,
    input=lambda g, mat2: g @ mat2.mT,
    mat2=lambda g, input: input.mT @ g,
)


def _scaled(g: Tensor, factor: Any) -> Tensor:
    return g if factor == 1 else g * factor


def _plus(name: str, forward: Callable[..., Tensor], second: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`β input + α A B`."""

    def second_gradient(g: Tensor, mat1: Tensor, alpha: Any) -> Tensor:
        return _scaled(second(g, mat1), alpha)

    def first_gradient(g: Tensor, mat2: Tensor, alpha: Any) -> Tensor:
        return _scaled(g @ mat2.mT, alpha)

    return op(
        forward,
        name=name,
        autocast=_LOWER,
        input=lambda g, beta: _scaled(g, beta),
        mat1=first_gradient,
        mat2=second_gradient,
    )


addmm = _plus(
    "addmm",
    lambda input, mat1, mat2, beta=1, alpha=1: torch.addmm(input, mat1, mat2, beta=beta, alpha=alpha),
    lambda g, mat1: mat1.mT @ g,
)
_baddbmm = _plus(
    "baddbmm",
    lambda input, mat1, mat2, beta=1, alpha=1: torch.baddbmm(input, mat1, mat2, beta=beta, alpha=alpha),
    lambda g, mat1: mat1.mT @ g,
)


def baddbmm(input: Tensor, batch1: Tensor, batch2: Tensor, beta: Any = 1, alpha: Any = 1) -> Tensor:
    """`torch.baddbmm`."""
    return _baddbmm(input, batch1, batch2, beta, alpha)


def matmul(input: Tensor, other: Tensor) -> Tensor:
    """`torch.matmul`: vectors, matrices, and batches of them that broadcast."""
    if input.dim() == 0 or other.dim() == 0:
        refuse(torch.matmul, input, other)
    row, column = input.dim() == 1, other.dim() == 1
    left, right = (input[None] if row else input), (other[:, None] if column else other)
    product = _matmul(left, right, right.dim())
    if column:
        product = product.squeeze(-1)
    return product.squeeze(-1 if column else -2) if row else product


def mv(input: Tensor, vec: Tensor) -> Tensor:
    """`torch.mv`."""
    if vec.dim() != 1:
        refuse(torch.mv, input, vec)
    return mm(input, vec[:, None]).squeeze(1)


def dot(input: Tensor, tensor: Tensor) -> Tensor:
    """`torch.dot`."""
    if input.dim() != 1 or tensor.dim() != 1:
        refuse(torch.dot, input, tensor)
    return matmul(input, tensor)


def outer(input: Tensor, vec2: Tensor) -> Tensor:
    """`torch.outer`."""
    if input.dim() != 1 or vec2.dim() != 1:
        refuse(torch.outer, input, vec2)
    return mul(input[:, None], vec2[None])


def _other_operand(
    g: Tensor, operand: Tensor, result: str, theirs: str, own: str, shape: Sequence[int]
) -> Tensor:
    """∂L/∂(own operand): the einsum of g and the other one, spread over the indices that only it has."""
    present = "".join(each for each in own if each in result or each in theirs)
    gradient = torch.einsum(f"{result},{theirs}->{present}", g, operand)
    for axis, index in enumerate(own):
        if index not in present:
            gradient = gradient.unsqueeze(axis)
    # An axis of size 1 that the other operand has too came out as 1, whatever its size is here.
    return gradient.expand([-1 if n > 1 else size for n, size in zip(gradient.shape, shape, strict=True)])


_pair = op(
    lambda a, b, first, second, result: _whole(torch.einsum(f"{first},{second}->{result}", a, b)),
    name="einsum",
    autocast=_LOWER,
    a=lambda g, b, first, second, result, shape: _other_operand(g, b, result, second, first, shape),
    b=lambda g, a, first, second, result, shape: _other_operand(g, a, result, first, second, shape),
)


def einsum(equation: str, *operands: Any) -> Tensor:
    """`torch.einsum`, two operands at a time from the left.

    Raises:
        NotImplementedError: the format that gives sublists of numbers instead of letters.
        RuntimeError: what does not go together, in torch's words.
    """
    if len(operands) == 1 and not isinstance(operands[0], Tensor):
        operands = tuple(operands[0])
    if not isinstance(equation, str):
        raise NotImplementedError("bpkit.ops.einsum takes letters, not sublists; torch.einsum takes both")
    terms, result = _terms(equation, operands)
    current, own = _diagonal(operands[0], terms[0])
    for position, operand in enumerate(operands[1:], 1):
        following, theirs = _diagonal(operand, terms[position])
        later = "".join(terms[position + 1 :]) + result
        kept = "".join(dict.fromkeys(each for each in own + theirs if each in later))
        target = kept if position < len(operands) - 1 else result
        current, own = _pair(current, following, own, theirs, target), target
    summed = [axis for axis, index in enumerate(own) if index not in result]
    if summed:
        current, own = _sum(current, summed), "".join(each for each in own if each in result)
    return current.permute([own.index(each) for each in result])


def _terms(equation: str, operands: Sequence[Tensor]) -> tuple[list[str], str]:
    """The indices of each operand and of the result, those that `...` stands for spelt out."""
    left, arrow, result = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(operands):
        refuse(torch.einsum, equation, *operands)
    free = iter(each for each in map(chr, range(ord("À"), ord("À") + 60)))
    ranks = [
        operand.dim() - len(term.replace("...", "")) if "..." in term else 0
        for term, operand in zip(terms, operands, strict=True)
    ]
    hidden = "".join(next(free) for _ in range(max(ranks)))
    spelt = [
        term.replace("...", hidden[len(hidden) - rank :]) for term, rank in zip(terms, ranks, strict=True)
    ]
    if not arrow:
        joined = "".join(spelt)
        result = hidden + "".join(
            sorted(each for each in set(joined) if joined.count(each) == 1 and each not in hidden)
        )
    return _letters(spelt, result.replace("...", hidden))


def _letters(terms: list[str], result: str) -> tuple[list[str], str]:
    """The same with a, b, c, …, the only names torch takes."""
    names: dict[str, str] = {}
    letters = iter("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    for index in "".join(terms):
        if index not in names:
            names[index] = next(letters)
    return ["".join(names[each] for each in term) for term in terms], "".join(names[each] for each in result)


def _diagonal(operand: Tensor, term: str) -> tuple[Tensor, str]:
    """An index that an operand has twice means its diagonal, a view."""
    for index in dict.fromkeys(term):
        while term.count(index) > 1:
            first, second = [axis for axis, each in enumerate(term) if each == index][:2]
            operand = operand.diagonal(dim1=first, dim2=second)
            term = "".join(each for axis, each in enumerate(term) if axis not in (first, second)) + index
    return operand, term
