"""convert, revert and converted: the same object, the same parameters, hand-written backwards."""

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import bpkit
import bpkit.nn
from bpkit.core.errors import BpkitError
from bpkit.core.module import Handwritten
from bpkit.plugins.catalog import Catalog
from bpkit.swap import twins


class Network(nn.Module):
    """A convolutional, normalising and recurrent model that bpkit knows nothing about."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2)
        )
        self.lstm = nn.LSTM(8, 5, batch_first=True, bidirectional=True)
        self.norm = nn.LayerNorm(10)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(80, 6), nn.GELU(), nn.Linear(6, 3))
        self.loss = nn.CrossEntropyLoss(label_smoothing=0.1)

    def forward(self, images: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        rows = self.features(images).transpose(1, 2).flatten(2)[:, :, :8]
        rows = torch.cat([rows, rows], 1)
        sequence, _ = self.lstm(rows)
        return self.loss(self.head(self.norm(sequence)), target)


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return torch.randn(7, 1, 8, 8, dtype=torch.float64), torch.randint(3, (7,))


@pytest.fixture
def network():
    torch.manual_seed(1)
    return Network().double()


def gradients(model, batch):
    model.zero_grad()
    loss = model(*batch)
    loss.backward()
    return [loss.detach(), *(parameter.grad.clone() for parameter in model.parameters())]


def distance(actual, expected):
    """Largest relative error; a tensor below 1e-6 of the largest is compared to that."""
    actual, expected = ([each.detach() for each in some] for some in (actual, expected))
    floor = 1e-6 * max(float(b.abs().max()) for b in expected)
    return max(
        float((a - b).abs().max() / b.abs().max().clamp_min(floor))
        for a, b in zip(actual, expected, strict=True)
    )


def test_loss_and_gradients_are_those_of_the_model_before(network, batch):
    expected = gradients(copy.deepcopy(network), batch)
    parameters = list(network.parameters())
    assert bpkit.convert(network) is network
    assert all(a is b for a, b in zip(network.parameters(), parameters, strict=True))
    assert distance(gradients(network, batch), expected) < 1e-9
    report = bpkit.converted(network)
    assert set(report.converted) == {
        name for name, module in network.named_modules() if type(module) in twins().values()
    }
    assert len(report.converted) == 11
    assert report.left == {}


def test_backwards_are_handwritten_after_convert_and_native_after_revert(batch):
    model = nn.Linear(3, 2)
    x = torch.randn(4, 3)
    bpkit.convert(model)
    assert type(model(x).grad_fn).__name__ == "LinearFunctionBackward"
    assert bpkit.revert(model) is model
    assert type(model) is nn.Linear
    assert type(model(x).grad_fn).__name__ == "AddmmBackward0"


def test_revert_restores_every_class_and_the_state_dict_fits(network):
    classes = [type(module) for module in network.modules()]
    state = copy.deepcopy(network.state_dict())
    bpkit.revert(bpkit.convert(network, fuse=True))
    assert [type(module) for module in network.modules()] == classes
    network.load_state_dict(state, strict=True)
    assert not any("fused" in vars(module) for module in network.modules())


def test_an_optimizer_made_before_goes_on(network, batch):
    twin = copy.deepcopy(network)
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9) for model in (network, twin)]
    for step in range(6):
        if step == 2:
            bpkit.convert(network)
        for model, optimizer in zip((network, twin), optimizers, strict=True):
            gradients(model, batch)
            optimizer.step()
    assert distance(list(network.parameters()), list(twin.parameters())) < 1e-10


class Doubled(nn.Linear):
    def forward(self, input):
        return 2 * super().forward(input)


class Renamed(nn.Linear):
    pass


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))

    def forward(self, input):
        return input * self.scale


def test_what_is_left_is_listed_with_the_reason():
    instance = nn.Linear(2, 2)
    instance.forward = lambda input: input
    orthogonal = nn.utils.parametrizations.orthogonal(nn.Linear(2, 2)).parametrizations.weight[0]
    model = nn.Sequential(Doubled(2, 2), Renamed(2, 2), Own(), instance, orthogonal, nn.Linear(2, 2))
    classes = [type(module) for module in model][:-1]
    bpkit.convert(model)
    assert [type(module) for module in model][:-1] == classes
    report = bpkit.converted(model)
    assert list(report.converted) == ["5"]
    reasons = list(report.left.values())
    assert "a subclass of torch.nn.Linear with a forward of its own" in reasons[0]
    assert "subclass of torch.nn.Linear" in reasons[1]
    assert "runs as written" in reasons[2]
    assert "this instance has a forward of its own" in reasons[3]
    assert "no hand-written twin" in reasons[4]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, {"0.0", "0.1", "1"}),
        ({"only": "0.*"}, {"0.0", "0.1"}),
        ({"only": "0"}, {"0.0", "0.1"}),
        ({"only": nn.ReLU}, {"0.1"}),
        ({"only": ["1", nn.ReLU]}, {"0.1", "1"}),
        ({"exclude": nn.Linear}, {"0.1"}),
        ({"exclude": ["0"]}, {"1"}),
        ({"only": "0.*", "exclude": nn.ReLU}, {"0.0"}),
    ],
)
def test_only_and_exclude(arguments, expected):
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Linear(2, 2))
    assert set(bpkit.converted(bpkit.convert(model, **arguments)).converted) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"only": "encoder.*"}, "matches no module"),
        ({"exclude": nn.Conv2d}, "matches no module"),
        ({"only": 3}, "path patterns and module classes"),
    ],
)
def test_a_selector_that_selects_nothing_is_an_error(arguments, message):
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(BpkitError, match=message):
        bpkit.convert(model, **arguments)
    assert type(model[0]) is nn.Linear


def test_unknown_rule_is_an_error():
    with pytest.raises(BpkitError, match="unknown rule 'feedback'"):
        bpkit.convert(nn.Linear(2, 2), rule="feedback")


def test_a_rule_is_not_lost_in_a_lazy_module(monkeypatch):
    rule = bpkit.RuleSpec(name="doubled", modules={nn.Linear: Doubled}, angle=1.0)
    known = SimpleNamespace(rules=Catalog("rule", [(rule, None)]), layers=(), losses=())
    monkeypatch.setattr("bpkit.swap.conversion.registry", lambda: known)
    with pytest.raises(BpkitError, match="LazyLinear that has not seen an input yet"):
        bpkit.convert(nn.Sequential(nn.LazyLinear(2)), rule="doubled")


def test_a_parametrised_module_keeps_its_parametrisation():
    torch.manual_seed(0)
    model = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
    made = type(model)
    x = torch.randn(4, 3)
    expected = model(x)
    bpkit.convert(model)
    assert isinstance(model, bpkit.nn.Linear)
    assert made.__bases__ == (nn.Linear,)
    torch.testing.assert_close(model(x), expected)
    bpkit.revert(model)
    assert not isinstance(model, Handwritten)
    bpkit.convert(model)
    nn.utils.parametrize.remove_parametrizations(model, "weight")
    assert type(model) is bpkit.nn.Linear
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_stay_converted(network, batch, again):
    bpkit.convert(network, fuse=True)
    other = again(network)
    assert bpkit.converted(other) == bpkit.converted(network)
    assert distance(gradients(other, batch), gradients(network, batch)) < 1e-12


def test_shared_and_tied_modules():
    shared = nn.Linear(4, 4)
    embedding = nn.Embedding(4, 4)
    shared.weight = embedding.weight
    model = bpkit.convert(nn.Sequential(embedding, shared, nn.Tanh(), shared))
    assert model[1] is model[3]
    assert model[0].weight is model[1].weight
    model(torch.tensor([0, 1])).sum().backward()
    assert torch.isfinite(embedding.weight.grad).all()


def test_a_large_model_converts_without_copying():
    model = nn.Sequential(*(nn.Linear(1, 1) for _ in range(5000)))
    pointers = [parameter.data_ptr() for parameter in model.parameters()]
    bpkit.convert(model)
    assert len(bpkit.converted(model).converted) == 5000
    assert [parameter.data_ptr() for parameter in model.parameters()] == pointers


def test_hooks_stay(network, batch):
    seen = []
    network.head[1].register_forward_hook(lambda module, args, output: seen.append(type(module)))
    bpkit.convert(network)
    network(*batch)
    assert seen == [bpkit.nn.Linear]


def test_compiled_before_and_after():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    x = torch.randn(5, 3)
    expected = model(x)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    compiled(x)
    bpkit.convert(compiled)
    torch.testing.assert_close(compiled(x), expected)
    assert type(model[0]) is bpkit.nn.Linear


def test_an_instance_with_a_helper_of_its_own_is_left():
    module = nn.Conv2d(1, 1, 1)
    module._conv_forward = lambda input, weight, bias: input * 0
    model = bpkit.convert(nn.Sequential(module))
    assert type(model[0]) is nn.Conv2d
    assert "a _conv_forward of its own" in bpkit.converted(model).left["0"]


def test_selectors_pick_paths_with_all_below_them():
    model = nn.Sequential(*(nn.Sequential(nn.Linear(1, 1), nn.ReLU()) for _ in range(2500)))
    bpkit.convert(model, only="1*", exclude="2*.1")
    assert set(bpkit.converted(model).converted) == {
        path for path, module in model.named_modules() if path.startswith("1") and "." in path
    }


def test_what_is_no_module_is_refused():
    with pytest.raises(BpkitError, match=r"must be a torch\.nn\.Module, not int"):
        bpkit.convert(3)


def test_a_shared_module_goes_by_each_of_its_paths():
    shared = nn.Linear(2, 2)
    model = nn.ModuleDict({"a": shared, "b": shared, "c": nn.Linear(2, 2)})
    assert set(bpkit.converted(bpkit.convert(model, only="b")).converted) == {"a"}
    bpkit.revert(model)
    assert set(bpkit.converted(bpkit.convert(model, exclude="b")).converted) == {"c"}


def test_a_model_on_the_meta_device_runs_under_autocast():
    model = bpkit.convert(nn.Sequential(nn.Linear(3, 3), nn.ReLU()).to("meta"))
    with torch.autocast("cpu", torch.bfloat16):
        assert model(torch.randn(2, 3, device="meta")).shape == (2, 3)
