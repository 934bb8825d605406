"""scaled_dot_product_attention against torch's own in plain algebra, over what its arguments combine to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from bpkit.layers import attention_tiles
from bpkit.nn.functional import scaled_dot_product_attention

# Shapes of query, key, value; arguments. A mask is "float" (with a gradient), "bool" or "blind" (some query
# sees no key), and its shape.
CASES: dict[str, tuple[tuple[tuple[int, ...], ...], dict[str, Any]]] = {
    "2-d": (((5, 3), (7, 3), (7, 3)), {}),
    "3-d": (((2, 5, 3), (2, 7, 3), (2, 7, 3)), {"scale": 0.3}),
    "4-d": (((2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 4)), {}),
    "5-d": (((2, 2, 3, 5, 4), (2, 2, 3, 7, 4), (2, 2, 3, 7, 4)), {}),
    "value of another width": (((2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 6)), {}),
    "leading axes broadcast": (((2, 1, 5, 4), (3, 7, 4), (2, 1, 7, 4)), {}),
    "one key": (((2, 3, 5, 4), (2, 3, 1, 4), (2, 3, 1, 4)), {}),
    "no keys": (((2, 3, 5, 4), (2, 3, 0, 4), (2, 3, 0, 4)), {}),
    "no queries": (((2, 3, 0, 4), (2, 3, 7, 4), (2, 3, 7, 4)), {}),
    "causal": (((2, 3, 9, 4), (2, 3, 9, 4), (2, 3, 9, 4)), {"is_causal": True}),
    "causal, more keys": (((2, 3, 5, 4), (2, 3, 9, 4), (2, 3, 9, 4)), {"is_causal": True}),
    "causal, more queries": (((2, 3, 9, 4), (2, 3, 5, 4), (2, 3, 5, 3)), {"is_causal": True}),
    "bool": (((2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 4)), {"mask": ("bool", (2, 1, 5, 7))}),
    "blind": (((2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 4)), {"mask": ("blind", (5, 7))}),
    "blind, wider": (((2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 5)), {"mask": ("blind", (2, 3, 5, 7))}),
    "float": (((2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 4)), {"mask": ("float", (2, 3, 5, 7))}),
    "float, per pair": (((2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 4)), {"mask": ("float", (5, 7))}),
    "float, per head": (((2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 4)), {"mask": ("float", (3, 1, 7))}),
    "float, per query": (((2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 6)), {"mask": ("float", (2, 1, 5, 1))}),
    "float, 5-d": (((2, 2, 3, 5, 4),) + ((2, 2, 3, 7, 4),) * 2, {"mask": ("float", (2, 1, 3, 5, 7))}),
    "float, 5-d, one batch": (((2, 2, 3, 5, 4),) + ((2, 2, 3, 7, 4),) * 2, {"mask": ("float", (3, 5, 7))}),
    "grouped": (((2, 4, 5, 3), (2, 2, 7, 3), (2, 2, 7, 3)), {"enable_gqa": True}),
    "grouped apart": (((2, 4, 5, 3), (2, 2, 7, 3), (2, 1, 7, 3)), {"enable_gqa": True}),
    "grouped, causal": (((2, 4, 7, 3), (2, 2, 7, 3), (2, 2, 7, 3)), {"enable_gqa": True, "is_causal": True}),
    "grouped, 5-d": (
        ((2, 2, 4, 5, 3), (2, 2, 2, 7, 3), (2, 2, 2, 7, 3)),
        {"enable_gqa": True, "mask": ("float", (4, 5, 7))},
    ),
    "dropout": (((2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 4)), {"dropout_p": 0.4}),
    "dropout of all": (((2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 4)), {"dropout_p": 1.0}),
    "dropout, causal": (((2, 3, 7, 4),) * 3, {"dropout_p": 0.4, "is_causal": True}),
    "dropout, float": (
        ((2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 2)),
        {"dropout_p": 0.4, "mask": ("float", (2, 1, 5, 7))},
    ),
    "dropout, blind": (
        ((2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 4)),
        {"dropout_p": 0.4, "mask": ("blind", (5, 7))},
    ),
    "dropout, grouped": (
        ((2, 4, 5, 3), (2, 2, 7, 3), (2, 2, 7, 3)),
        {"dropout_p": 0.4, "enable_gqa": True},
    ),
    "long": (((1, 2, 300, 4), (1, 2, 1000, 4), (1, 2, 1000, 4)), {"mask": ("float", (300, 1000))}),
    "long, causal": (((1, 2, 700, 4), (1, 2, 700, 4), (1, 2, 700, 4)), {"is_causal": True}),
    "long, dropout": (((1, 2, 300, 4), (1, 2, 1000, 4), (1, 2, 1000, 4)), {"dropout_p": 0.2}),
}
LAYOUTS = ["contiguous", "heads apart", "features apart", "expanded"]


def given(
    name: str, layout: str = "contiguous", dtype: torch.dtype = torch.float64
) -> tuple[list[Tensor], Tensor | None, dict[str, Any]]:
    """Query, key, value and mask of a case, those that are numbers as leaves, and its other arguments."""
    shapes, settings = CASES[name]
    settings = dict(settings)
    torch.manual_seed(0)
    tensors = [laid_out(torch.randn(shape, dtype=torch.float64).to(dtype), layout) for shape in shapes]
    kind, shape = settings.pop("mask", (None, ()))
    mask = None
    if kind == "float":
        mask = torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_()
    elif kind is not None:
        mask = torch.rand(shape) < 0.7
        mask[..., 0] = True
        if kind == "blind":
            mask[..., 1, :] = False
    return [each.requires_grad_() for each in tensors], mask, settings


def laid_out(tensor: Tensor, layout: str) -> Tensor:
    """`tensor`'s numbers in another layout; `expanded` repeats the first batch's."""
    match layout:
        case "heads apart" if tensor.dim() > 2:
            return tensor.transpose(-2, -3).contiguous().transpose(-2, -3)
        case "features apart":
            return tensor.mT.contiguous().mT
        case "expanded" if tensor.dim() > 2:
            return tensor[:1].expand(tensor.shape)
    return tensor


def run(attention: Any, tensors: list[Tensor], mask: Tensor | None, settings: dict[str, Any]) -> list[Tensor]:
    """The output and its gradients in a fixed random direction; then those of their squares."""
    leaves = [*tensors, mask] if mask is not None and mask.requires_grad else tensors
    torch.manual_seed(1)
    output = attention(*tensors, attn_mask=mask, **settings)
    torch.manual_seed(2)
    direction = torch.randn(output.shape, dtype=torch.float64).to(output.dtype).requires_grad_()
    first = torch.autograd.grad(output, leaves, direction, retain_graph=True)
    again = torch.autograd.grad(output, leaves, direction, create_graph=True)
    squares = torch.stack([(each * each).sum() for each in again]).sum()
    second = torch.autograd.grad(squares, [*leaves, direction], materialize_grads=True)
    return [output, *first, *again, *second]


def handwritten(*args: Any, **kwargs: Any) -> Tensor:
    """Bpkit's."""
    return scaled_dot_product_attention(*args, **kwargs)


def plain(*args: Any, **kwargs: Any) -> Tensor:
    """Torch's attention in algebra that it can differentiate twice."""
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(*args, **kwargs)


def agree(name: str, layout: str = "contiguous") -> None:
    ours, theirs = (run(each, *given(name, layout)) for each in (handwritten, plain))
    for own, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_torch(name: str) -> None:
    agree(name)


@pytest.mark.parametrize("scores", [1, 8, 30])
@pytest.mark.parametrize("name", [name for name in CASES if "long" not in name])
def test_agrees_with_torch_in_small_tiles(name: str, scores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_tiles, "TILE", scores)
    monkeypatch.setattr(attention_tiles, "CAUSAL_ROWS", 2)
    agree(name)


@pytest.mark.parametrize("layout", LAYOUTS[1:])
@pytest.mark.parametrize("name", ["3-d", "4-d", "5-d", "causal", "float", "grouped", "dropout, float"])
def test_agrees_with_torch_in_any_layout(name: str, layout: str) -> None:
    agree(name, layout)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "name", ["4-d", "value of another width", "causal", "float", "blind", "grouped", "long"]
)
def test_low_precision_rounds_no_more_than_its_numbers(name: str, dtype: torch.dtype) -> None:
    tensors, mask, settings = given(name, dtype=dtype)
    # What all values have in common cancels in ∂L/∂q and ∂L/∂k, but for what was rounded of it in o.
    tensors[2] = (tensors[2].detach() + 8).requires_grad_()
    leaves = [*tensors, mask] if mask is not None and mask.requires_grad else tensors
    output = handwritten(*tensors, attn_mask=mask, **settings)
    direction = torch.randn(output.shape).to(dtype)
    ours = output, *torch.autograd.grad(output, leaves, direction)
    wide = [each.detach().double().requires_grad_() for each in leaves]
    wide_mask = wide[3] if len(wide) > 3 else mask
    expected = plain(*wide[:3], attn_mask=wide_mask, **settings)
    theirs = expected, *torch.autograd.grad(expected, wide, direction.double())
    for own, reference in zip(ours, theirs, strict=True):
        assert own.dtype is dtype
        error = (own.double() - reference).abs().max()
        assert error <= 2 * torch.finfo(dtype).eps * reference.abs().max()


@pytest.mark.parametrize("reentrant", [False, True])
def test_dropout_under_checkpoint_draws_the_same(reentrant: bool) -> None:
    def step(*tensors: Tensor) -> Tensor:
        return handwritten(*tensors, dropout_p=0.4)

    tensors, _, _ = given("dropout")
    results = []
    for call in (step, lambda *each: checkpoint(step, *each, use_reentrant=reentrant)):
        leaves = [each.detach().requires_grad_() for each in tensors]
        torch.manual_seed(1)
        output = call(*leaves)
        torch.rand(3)  # between forward and backward others draw
        state = torch.get_rng_state()
        output.square().sum().backward()
        assert torch.equal(torch.get_rng_state(), state)
        results.append([output, *(each.grad for each in leaves)])
    for own, expected in zip(*results, strict=True):
        torch.testing.assert_close(own, expected, rtol=0, atol=0)


def test_large_scores_neither_overflow_nor_lose_their_gradient() -> None:
    query, key, value = (each.detach() for each in given("4-d", dtype=torch.float32)[0])
    large = query * 20, key * 20, value  # scores up to 2,000
    results = []
    for attention, dtype in ((handwritten, torch.float32), (plain, torch.float64)):
        leaves = [each.to(dtype).requires_grad_() for each in large]
        output = attention(*leaves)
        results.append([output, *torch.autograd.grad(output.sum(), leaves)])
    for own, expected in zip(*results, strict=True):
        torch.testing.assert_close(own.double(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("shapes", "settings"),
    [
        (((4,), (5, 4), (5, 4)), {}),
        (((3, 4), (5, 3), (5, 4)), {}),
        (((3, 4), (5, 4), (6, 4)), {}),
        (((2, 3, 4), (3, 5, 4), (2, 5, 4)), {}),
        (((2, 4, 3, 4), (2, 3, 5, 4), (2, 3, 5, 4)), {"enable_gqa": True}),
        (((3, 4), (5, 4), (5, 4)), {"enable_gqa": True}),
        (((3, 4), (5, 4), (5, 4)), {"dropout_p": 1.5}),
        (((3, 4), (5, 4), (5, 4)), {"attn_mask": torch.zeros(4, 5)}),
        (((3, 4), (5, 4), (5, 4)), {"attn_mask": torch.zeros(2, 3, 5)}),
        (((3, 4), (5, 4), (5, 4)), {"attn_mask": torch.zeros(3, 5, dtype=torch.int64)}),
        (((3, 4), (5, 4), (5, 4)), {"attn_mask": torch.zeros(3, 5, dtype=torch.float64)}),
    ],
)
def test_refuses_what_torch_refuses(shapes: tuple[tuple[int, ...], ...], settings: dict[str, Any]) -> None:
    tensors = [torch.randn(shape) for shape in shapes]
    with pytest.raises(Exception) as theirs:  # noqa: PT011 - whatever it is that torch raises
        plain(*tensors, **settings)
    with pytest.raises(type(theirs.value)):
        handwritten(*tensors, **settings)
