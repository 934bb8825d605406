"""What still runs as torch's inside a converted model: nothing that was not said."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import spectral_norm, weight_norm
from torch.nn.utils.prune import l1_unstructured

import bpkit
import bpkit.nn
from bpkit.core.module import Handwritten


def test_a_learned_mask_alone_is_recorded_by_hand() -> None:
    x, mask = torch.randn(3, 2, 4), torch.zeros(3, 3, requires_grad=True)
    attention = bpkit.convert(nn.MultiheadAttention(4, 2)).requires_grad_(False)
    assert bpkit.coverage(attention(x, x, x, attn_mask=mask)[0]).native == 0
    layer = bpkit.convert(nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0)).requires_grad_(False)
    assert bpkit.coverage(layer(x, src_mask=mask)).native == 0


@pytest.mark.parametrize("activation", [F.logsigmoid, F.rrelu, F.gelu, torch.relu, F.silu])
def test_an_activation_of_torchs_is_found_by_what_it_is(activation: object) -> None:
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, activation=activation)
    model = bpkit.convert(nn.Sequential(layer))
    assert not bpkit.converted(model).left
    with bpkit.handwritten():
        loss = model(torch.randn(3, 2, 4)).sum()
    assert bpkit.coverage(loss).native == 0


def test_functions_of_the_users_are_listed() -> None:
    model = bpkit.convert(
        nn.ModuleDict(
            {
                "layer": nn.TransformerDecoderLayer(4, 2, 8, activation=lambda x: x * x),
                "loss": nn.TripletMarginWithDistanceLoss(
                    distance_function=lambda a, b: (a - b).abs().sum(-1)
                ),
                "known": nn.TripletMarginWithDistanceLoss(distance_function=F.cosine_similarity),
            }
        )
    )
    left = bpkit.converted(model).left
    assert list(left) == ["layer.activation", "loss.distance_function"]
    assert "runs as written" in left["layer.activation"]
    given = [torch.randn(3, 4, requires_grad=True) for _ in range(3)]
    assert bpkit.coverage(model["known"](*given)).native == 0


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`:FutureWarning")
@pytest.mark.parametrize("hook", [weight_norm, spectral_norm, lambda m: l1_unstructured(m, "weight", 0.5)])
def test_an_old_hook_is_listed(hook: object) -> None:
    model = bpkit.convert(nn.Sequential(hook(nn.Linear(3, 3)), nn.Linear(3, 2)))
    report = bpkit.converted(model)
    assert list(report.left) == ["0.weight"]
    assert "one of torch's hooks" in report.left["0.weight"]


class Doubled(bpkit.nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * F.linear(input, self.weight)


def test_a_subclass_of_ours_with_a_forward_of_its_own_is_the_users() -> None:
    model = nn.Sequential(Doubled(3, 3), bpkit.nn.Linear(3, 2))
    report = bpkit.converted(model)
    assert list(report.converted) == ["1"]
    assert (
        report.left["0"] == "Doubled: a subclass of Linear with a forward of its own, which runs as written"
    )
    assert type(bpkit.revert(model)[0]) is Doubled


def test_revert_reaches_an_instance_that_got_its_forward_after_convert() -> None:
    model = bpkit.convert(nn.Sequential(nn.Linear(3, 2)))
    own = model[0].forward
    model[0].forward = lambda input: own(input)  # as accelerate does
    bpkit.revert(model)
    assert type(model[0]) is nn.Linear
    assert not isinstance(model[0], Handwritten)
    assert "forward" in model[0].__dict__


class Bare(nn.TransformerEncoderLayer):
    def forward(self, src: Tensor) -> Tensor:
        return src + self.linear2(self.linear1(src))


def test_a_composite_of_the_users_is_listed() -> None:
    left = bpkit.converted(bpkit.convert(nn.Sequential(Bare(4, 2, 8)))).left
    assert left["0"].startswith(
        "Bare: a subclass of torch.nn.TransformerEncoderLayer with a forward of its own"
    )


class Unhashable:
    __hash__ = None  # type: ignore[assignment]

    def __call__(self, x: Tensor) -> Tensor:
        return x.relu()


@pytest.mark.parametrize("given", [Unhashable(), bpkit.nn.functional.gelu])
def test_any_callable_is_an_activation(given: object) -> None:
    layer = bpkit.convert(nn.TransformerEncoderLayer(4, 2, 8, activation=given))
    layer(torch.randn(3, 2, 4)).sum().backward()
    assert bool(bpkit.converted(layer).left) is isinstance(given, Unhashable)
