"""The losses on what torch's own samples leave out: cut values, ties, infinite losses, blocks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import bpkit.nn.functional as ours_functional
from bpkit.losses import linear_cross_entropy, margin
from bpkit.verification.compare import relative_error

BOTH = (ours_functional, F)
pytestmark = pytest.mark.filterwarnings("ignore")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def require_torchs(call: Any, *inputs: Tensor) -> None:
    """Value and gradients of `call(functional, *inputs)`, NaN and infinities included."""
    results = []
    for functional in BOTH:
        leaves = [each.clone().requires_grad_() for each in inputs]
        output = call(functional, *leaves)
        results.append([output, *torch.autograd.grad(output, leaves, torch.ones_like(output))])
    torch.testing.assert_close(results[0], results[1], rtol=1e-11, atol=1e-12, equal_nan=True)


SIGNS = normal(4, 3, seed=3).sign()
POINTWISE = {
    "gaussian_nll, cut variance": lambda fn, x, t: fn.gaussian_nll_loss(x, SIGNS, t.abs(), eps=0.5),
    "gaussian_nll, a number": lambda fn, x, t: fn.gaussian_nll_loss(x, t, 0.3, full=True),
    "cosine_similarity, cut norms": lambda fn, x, t: fn.cosine_similarity(x, t, eps=2.0),
    "hinge_embedding, at the margin": lambda fn, x, t: fn.hinge_embedding_loss(x, SIGNS) + t.sum(),
    "hinge_embedding, other labels": lambda fn, x, t: fn.hinge_embedding_loss(x, 0 * SIGNS) + t.sum(),
    "margin_ranking, ties": lambda fn, x, t: fn.margin_ranking_loss(x.round(), t.round(), SIGNS, margin=1),
    "huber, weight": lambda fn, x, t: fn.huber_loss(x, SIGNS, weight=t),
    "mse, weight": lambda fn, x, t: fn.mse_loss(x, SIGNS, weight=t),
    "l1, weight, sum": lambda fn, x, t: fn.l1_loss(x, SIGNS, weight=t, reduction="sum"),
    "smooth_l1, beta 0": lambda fn, x, t: fn.smooth_l1_loss(x, t, beta=0.0),
    "kl_div, broadcast": lambda fn, x, t: fn.kl_div(x[:1], t.exp(), reduction="mean"),
    "kl_div, a number": lambda fn, x, t: fn.kl_div(x[0, 0], t[0, 0].exp(), reduction="batchmean"),
    "size_average": lambda fn, x, t: fn.mse_loss(x, t, size_average=False),
    "reduce": lambda fn, x, t: fn.l1_loss(x, t, reduce=False),
}


@pytest.mark.parametrize("call", POINTWISE.values(), ids=POINTWISE)
def test_values_and_gradients_are_torchs(call: Any) -> None:
    edges = torch.ones(4, 3, dtype=torch.float64)
    for first, second in ((normal(4, 3), normal(4, 3, seed=1)), (edges, edges)):
        require_torchs(call, first, second)


@pytest.mark.parametrize("lengths", [(3, 4, 6, 0), (6, 5, 2, 1), (6, 6, 6, 6)], ids=str)
@pytest.mark.parametrize("sizes", [(3, 4, 0, 0), (0, 1, 2, 1), (4, 4, 2, 4)], ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("zero", [True, False], ids=["zeroed", "infinite"])
def test_ctc_of_targets_longer_than_their_input(lengths: Any, sizes: Any, reduction: str, zero: bool) -> None:
    # The blank among the labels, in the last row, is not refused by torch.
    labels = torch.tensor([[1, 1, 1, 2], [1, 2, 3, 4], [2, 2, 1, 3], [1, 0, 3, 3]])
    joined = torch.cat([row[:size] for row, size in zip(labels, sizes, strict=True)])
    for targets in (labels, joined):
        require_torchs(
            lambda fn, x, targets=targets: fn.ctc_loss(
                x, targets, torch.tensor(lengths), torch.tensor(sizes), 0, reduction, zero
            ),
            normal(6, 4, 5).log_softmax(2),
        )


def test_ctc_of_a_character_that_cannot_be_has_the_limit_as_gradient() -> None:
    log_probs = normal(6, 1, 4).log_softmax(2)
    log_probs[:, 0, 1] = -torch.inf
    log_probs.requires_grad_()
    for targets, loss in ((torch.tensor([[2, 3]]), True), (torch.tensor([[1, 3]]), False)):
        output = ours_functional.ctc_loss(log_probs, targets, (6,), (2,), zero_infinity=True)
        (gradient,) = torch.autograd.grad(output, log_probs)
        assert bool(gradient.isfinite().all())
        assert bool((gradient != 0).any()) is loss


@pytest.mark.parametrize("few", [0, 32], ids=["sorted", "one by one"])
def test_labels_within_the_margin_are_counted_as_torch_does(few: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(margin, "FEW", few)
    generator = torch.Generator().manual_seed(0)
    for trial in range(40):
        halves = torch.randint(-3, 4, (3, 5), generator=generator).double() / 2  # ties at the margin
        scores = halves if trial % 2 else normal(3, 5, seed=trial)
        labels = torch.randint(-1, 5, (3, 5), generator=generator)
        require_torchs(lambda fn, x, labels=labels: fn.multilabel_margin_loss(x, labels), scores)


VOCABULARY = {
    "indices": {},
    "ignored": {"ignore_index": 1},
    "smoothing": {"label_smoothing": 0.2},
    "all": {"ignore_index": 1, "label_smoothing": 0.2, "weight": torch.arange(1.0, 5.0).double()},
}


@pytest.mark.parametrize("settings", VOCABULARY.values(), ids=VOCABULARY)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("rows", [1, 7, 100])
def test_blocks_of_rows_add_up(settings: dict[str, Any], reduction: str, rows: int, monkeypatch: Any) -> None:
    """Twice backward, and a second derivative after a first that was formed in the forward."""
    monkeypatch.setattr(linear_cross_entropy, "BLOCK", rows * 4)
    target = torch.arange(20) % 4
    for wanted in ((True, True, True), (True, False, False), (False, True, False), (False, False, True)):
        results = []
        for functional in BOTH:
            leaves = [
                each.requires_grad_(own)
                for each, own in zip(
                    (normal(20, 2), normal(4, 2, seed=1), normal(4, seed=2)), wanted, strict=True
                )
            ]
            loss = functional.linear_cross_entropy(
                leaves[0], leaves[1], target, linear_bias=leaves[2], reduction=reduction, **settings
            ).square()
            needed = [each for each in leaves if each.requires_grad]
            loss = loss.sum()
            first = torch.autograd.grad(loss, needed, retain_graph=True)
            again = torch.autograd.grad(loss, needed, create_graph=True)
            second = torch.autograd.grad(sum((each * each).sum() for each in again), needed)
            results.append([loss, *first, *again, *second])
        torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-12)


def test_blocks_keep_less_than_the_logits() -> None:
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    rows = torch.randn(256, 8, requires_grad=True)
    weight = torch.randn(1000, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        ours_functional.linear_cross_entropy(rows, weight, torch.arange(256))
    assert sum(kept.values()) < rows.shape[0] * weight.shape[0] * 4 / 10


@pytest.mark.parametrize("scale", [1.0, 1024.0, 65536.0])
def test_a_large_vocabulary_in_half_precision_takes_a_scaled_loss(scale: float) -> None:
    """Divided by m a gradient is below the least float16, and the δ of a GradScaler above the largest."""
    rows, features, classes = 2048, 8, 4096
    given = normal(rows, features), normal(classes, features, seed=1)
    target = torch.arange(rows) % classes

    def gradients(dtype: torch.dtype, scale: float) -> tuple[Tensor, ...]:
        leaves = [each.to(dtype).requires_grad_() for each in given]
        with torch.autocast("cpu", torch.float16, enabled=dtype is not torch.float64):
            loss = ours_functional.linear_cross_entropy(leaves[0], leaves[1], target)
        return tuple(each.double() / scale for each in torch.autograd.grad(loss * scale, leaves))

    for ours, true in zip(gradients(torch.float32, scale), gradients(torch.float64, 1), strict=True):
        assert relative_error(ours, true) < 2e-3  # float16 has three digits


def test_a_weight_that_wants_a_gradient_is_refused_where_one_is_recorded_alone() -> None:
    weight = torch.ones(3, requires_grad=True)
    logits, target = normal(4, 3).float(), torch.tensor([0, 2, 1, 1])
    with torch.no_grad():
        ours_functional.cross_entropy(logits, target, weight)
    with pytest.raises(RuntimeError, match="not differentiable with respect to argument 'weight'"):
        ours_functional.cross_entropy(logits, target, weight)
