"""RNN, LSTM and GRU against their torch twins: packed, unbatched, stacked; what samples do not reach."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import bpkit
import bpkit.nn
from bpkit.layers.gru import GRU
from bpkit.layers.lstm import LSTM
from bpkit.layers.recurrent import saved_bytes
from bpkit.layers.rnn import RNN

TWINS = {LSTM: nn.LSTM, RNN: nn.RNN, GRU: nn.GRU}
KINDS = [
    pytest.param(RNN, {}, id="tanh"),
    pytest.param(RNN, {"nonlinearity": "relu"}, id="relu"),
    pytest.param(LSTM, {}, id="lstm"),
    pytest.param(LSTM, {"proj_size": 2}, id="projected"),
    pytest.param(GRU, {}, id="gru"),
]
LENGTHS = {"sorted": [5, 3, 1], "unsorted": [2, 5, 4]}


def twins(kind: type, *args: Any, dtype: torch.dtype = torch.float64, **kwargs: Any) -> tuple[Any, Any]:
    """A hand-written module and its torch twin with the same parameters."""
    ours, theirs = kind(*args, dtype=dtype, **kwargs), TWINS[kind](*args, dtype=dtype, **kwargs)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def tensors(result: Any) -> list[Tensor]:
    """The tensors of a result, packed or nested."""
    if isinstance(result, PackedSequence):
        return [result.data]
    return [result] if isinstance(result, Tensor) else [each for part in result for each in tensors(part)]


def run(module: Any, form: str, input: Tensor, hx: list[Tensor]) -> list[Tensor]:
    """Outputs, and gradients of a fixed random combination of them to inputs, states and parameters."""
    leaves = [each.clone().requires_grad_() for each in (input, *hx)]
    given: Any = leaves[0]
    if form in LENGTHS:
        given = pack_padded_sequence(
            given, LENGTHS[form], batch_first=module.batch_first, enforce_sorted=form == "sorted"
        )
    torch.manual_seed(1)  # dropout's
    states = leaves[1:]
    outputs = tensors(module(given, None if not states else states[0] if len(states) == 1 else tuple(states)))
    torch.manual_seed(2)
    wanted = [*leaves, *module.parameters()]
    gradients = torch.autograd.grad(outputs, wanted, [torch.randn_like(each) for each in outputs])
    return [*outputs, *gradients]


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    ours, theirs = ours.detach(), theirs.detach()
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-300))


@pytest.mark.parametrize("form", ["padded", "unbatched", "sorted", "unsorted"])
@pytest.mark.parametrize(
    ("layers", "bidirectional", "batch_first", "dropout", "bias"),
    [
        (1, False, False, 0.0, True),
        (1, True, True, 0.0, False),
        (2, False, True, 0.4, False),
        (2, True, False, 0.4, True),
        (3, True, True, 0.0, True),
    ],
)
@pytest.mark.parametrize(("kind", "extra"), KINDS)
def test_equals_torch(
    kind: type, extra: dict[str, Any], layers: int, bidirectional: bool, batch_first: bool, dropout: float,
    bias: bool, form: str,
) -> None:  # fmt: skip
    ours, theirs = twins(
        kind, 3, 4, num_layers=layers, bidirectional=bidirectional, batch_first=batch_first, dropout=dropout,
        bias=bias, **extra,
    )  # fmt: skip
    padded = (3, 5, 3) if batch_first else (5, 3, 3)
    input = torch.randn((5, 3) if form == "unbatched" else padded, dtype=torch.float64)
    sizes = [extra.get("proj_size", 4), 4][: ours.states]
    shape = (layers * (1 + bidirectional), *(() if form == "unbatched" else (3,)))
    given = [torch.randn(*shape, size, dtype=torch.float64) for size in sizes]
    for hx in ([], given):
        pairs = zip(run(ours, form, input, hx), run(theirs, form, input, hx), strict=True)
        assert max(relative_error(*pair) for pair in pairs) < 1e-12


def packed_function(kind: type, **kwargs: Any) -> tuple[Callable[..., tuple[Tensor, ...]], list[Tensor]]:
    """A module on two packed sequences of unequal length as a function of tensors, and those tensors."""
    module = kind(2, 2, dtype=torch.float64, **kwargs)
    names = [name for name, _ in module.named_parameters()]
    shape = (1 + module.bidirectional, 2, 2)
    states = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(module.states)]
    input = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)

    def function(input: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        hx, weights = others[: len(states)], others[len(states) :]
        packed = pack_padded_sequence(input, [3, 1])
        given = (packed, hx if len(hx) > 1 else hx[0])
        return tuple(tensors(functional_call(module, dict(zip(names, weights, strict=True)), given)))

    return function, [input, *states, *(each.detach().requires_grad_() for each in module.parameters())]


@pytest.mark.parametrize("kind", [RNN, LSTM, GRU])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_gradcheck_packed(kind: type, bidirectional: bool) -> None:
    function, inputs = packed_function(kind, bidirectional=bidirectional)
    assert torch.autograd.gradcheck(function, inputs, check_undefined_grad=True, check_batched_grad=True)


@pytest.mark.parametrize("kind", [RNN, LSTM, GRU])
def test_gradgradcheck_packed(kind: type) -> None:
    function, inputs = packed_function(kind)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("form", ["padded", "sorted"])
@pytest.mark.parametrize(("kind", "extra"), KINDS)
def test_recorded_backward_equals_the_one_in_place(kind: type, extra: dict[str, Any], form: str) -> None:
    module = kind(3, 4, bidirectional=True, dtype=torch.float64, **extra)
    input = torch.randn(5, 3, 3, dtype=torch.float64)
    outputs = tensors(module(input if form == "padded" else pack_padded_sequence(input, LENGTHS[form])))
    grad_outputs = [torch.randn_like(each) for each in outputs]
    wanted = list(module.parameters())
    plain, again = (
        torch.autograd.grad(outputs, wanted, grad_outputs, retain_graph=True, create_graph=recorded)
        for recorded in (False, True)
    )
    for one, other in zip(plain, again, strict=True):
        assert relative_error(other, one) < 1e-13
    third = torch.autograd.grad(outputs, wanted, grad_outputs)
    assert all(torch.equal(one, other) for one, other in zip(plain, third, strict=True))


@pytest.mark.parametrize("kind", [RNN, LSTM, GRU])
def test_func_over_inputs_and_over_models(kind: type) -> None:
    ours, theirs = twins(kind, 3, 4, num_layers=2, bidirectional=True)
    input = torch.randn(4, 5, 2, 3, dtype=torch.float64)
    parameters = {name: each.detach() for name, each in ours.named_parameters()}

    def loss(parameters: dict[str, Tensor], input: Tensor) -> Tensor:
        output: Tensor = functional_call(ours, parameters, (input,))[0]
        return output.square().sum()

    over_inputs = vmap(grad(loss), (None, 0))(parameters, input)
    models = {name: torch.stack((each, 2 * each)) for name, each in parameters.items()}
    over_models = vmap(grad(loss), (0, None))(models, input[3])
    for index in range(4):
        expected = torch.autograd.grad(theirs(input[index])[0].square().sum(), list(theirs.parameters()))
        for name, each in zip(parameters, expected, strict=True):
            assert relative_error(over_inputs[name][index], each) < 1e-12
            assert index < 3 or relative_error(over_models[name][0], each) < 1e-12


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # Dynamo does so
@pytest.mark.parametrize("kind", [RNN, LSTM, GRU])
def test_compiles_whole_where_dynamo_lets_recurrent_modules_in(kind: type) -> None:
    ours, theirs = twins(kind, 3, 4, num_layers=2, bidirectional=True)
    input = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    with torch._dynamo.config.patch(allow_rnn=True):
        compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
        got = torch.autograd.grad(compiled(input)[0].square().sum(), [input, *ours.parameters()])
    expected = torch.autograd.grad(theirs(input)[0].square().sum(), [input, *theirs.parameters()])
    assert max(relative_error(*pair) for pair in zip(got, expected, strict=True)) < 1e-12


@pytest.mark.cpu
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")  # torch's twin
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("kind", "extra"), KINDS)
def test_autocast_dtypes(kind: type, extra: dict[str, Any], given: torch.dtype, packed: bool) -> None:
    dtype = torch.float64 if given is torch.float64 else torch.float32
    ours, theirs = twins(kind, 3, 4, num_layers=2, dtype=dtype, **extra)
    input: Any = torch.randn(5, 3, 3).to(given).requires_grad_()
    sequence = pack_padded_sequence(input, LENGTHS["sorted"]) if packed else input
    with torch.autocast("cpu", torch.bfloat16):
        got = tensors(ours(sequence))
    got[0].float().sum().backward()
    assert input.grad.dtype is given
    try:
        with torch.autocast("cpu", torch.bfloat16):
            expected = tensors(theirs(sequence))
    except RuntimeError as error:  # on a CPU without AVX-512 oneDNN has no bfloat16 LSTM, and raises
        pytest.skip(f"torch's own cannot run here: {error}")
    assert [each.dtype for each in got] == [each.dtype for each in expected]


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", [RNN, LSTM, GRU])
def test_output_may_be_written_to(kind: type, bidirectional: bool) -> None:
    ours, theirs = twins(kind, 3, 4, bidirectional=bidirectional)
    input = torch.randn(5, 2, 3, dtype=torch.float64)
    got, expected = (
        torch.autograd.grad(module(input)[0].relu_().square().sum(), module.weight_hh_l0)[0]
        for module in (ours, theirs)
    )
    assert relative_error(got, expected) < 1e-12


def kept(module: Any, input: Any) -> tuple[int, int]:
    """Bytes of distinct storages, parameters apart, that a call keeps for backward, and what it may."""
    storages = {}
    own = {each.untyped_storage().data_ptr() for each in module.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = module(input)
    return sum(storages.values()), saved_bytes(module, (input,), output)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", [RNN, LSTM, GRU])
def test_keeps_input_and_output_alone(kind: type, bidirectional: bool) -> None:
    ours, theirs = twins(kind, 8, 8, num_layers=2, dropout=0.5, bidirectional=bidirectional)
    padded = torch.randn(16, 6, 8, dtype=torch.float64, requires_grad=True)
    packed = PackedSequence(torch.randn(21, 8, dtype=torch.float64), torch.tensor([6, 5, 4, 3, 2, 1]))
    for input in (padded, packed):
        bytes_kept, allowed = kept(ours, input)
        assert bytes_kept <= allowed
        assert allowed < kept(theirs, input)[0]


zeros = torch.zeros


@pytest.mark.parametrize(
    ("input", "state"),
    [
        pytest.param(zeros(4), None, id="1-D"),
        pytest.param(zeros(1, 1, 1, 4), None, id="4-D"),
        pytest.param(zeros(5, 2, 3), None, id="input_size"),
        pytest.param(zeros(5, 2, 4, dtype=torch.float64), None, id="dtype"),
        pytest.param(zeros(5, 2, 4, dtype=torch.long), None, id="integers"),
        pytest.param(zeros(0, 2, 4), None, id="no steps"),
        pytest.param(zeros(5, 2, 4), zeros(2, 3), id="hx 2-D"),
        pytest.param(zeros(5, 4), zeros(2, 1, 3), id="hx 3-D"),
        pytest.param(zeros(5, 2, 4), zeros(2, 5, 3), id="hx batch"),
        pytest.param(zeros(5, 2, 4), zeros(1, 2, 3), id="hx layers"),
        pytest.param(zeros(5, 2, 4), zeros(2, 2, 3, dtype=torch.float64), id="hx dtype"),
        pytest.param("text", None, id="no tensor"),
    ],
)
@pytest.mark.parametrize("kind", [RNN, LSTM, GRU])
def test_errors_are_torchs(kind: type, input: Any, state: Tensor | None) -> None:
    ours, theirs = twins(kind, 4, 3, bidirectional=True, dtype=torch.float32)
    hx = None if state is None else (state, state) if kind is LSTM else state
    errors = []
    for module in (ours, theirs):
        with pytest.raises((AttributeError, RuntimeError, ValueError)) as caught:
            module(input, hx)
        errors.append((caught.type, str(caught.value)))
    assert errors[0] == errors[1]


@pytest.mark.parametrize("hx", [zeros(2, 2, 3), (zeros(2, 2, 3), zeros(2, 2))], ids=["tensor", "mixed"])
def test_lstm_wants_two_states_alike(hx: Any) -> None:
    for module in (LSTM(4, 3, bidirectional=True), nn.LSTM(4, 3, bidirectional=True)):
        with pytest.raises(RuntimeError, match="hx and cx should also be 3-D"):
            module(zeros(5, 2, 4), hx)


@pytest.mark.parametrize("kind", [RNN, LSTM, GRU])
def test_empty_batch(kind: type) -> None:
    ours, theirs = twins(kind, 4, 3, bidirectional=True)
    for got, expected in zip(
        *(tensors(each(zeros(5, 0, 4, dtype=torch.float64))) for each in (ours, theirs)), strict=True
    ):
        assert got.shape == expected.shape


@pytest.mark.parametrize("kind", [RNN, LSTM, GRU])
def test_pickles_and_follows_parametrized_weights(kind: type) -> None:
    module = kind(3, 4, num_layers=2, dtype=torch.float64)
    input = torch.randn(5, 2, 3, dtype=torch.float64)
    assert torch.equal(pickle.loads(pickle.dumps(module))(input)[0], module(input)[0])
    weight_norm(module, "weight_hh_l0")
    module(input)[0].sum().backward()
    assert module.parametrizations.weight_hh_l0.original1.grad.abs().sum() > 0


class Tagger(nn.Module):
    """A label for each word: embedding, both directions of a recurrent network, and a linear layer."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 6, padding_idx=0)
        self.recurrent = getattr(nn, kind)(6, 5, num_layers=2, bidirectional=True, batch_first=True)
        self.linear = nn.Linear(10, 4)

    def forward(self, words: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.embedding(words), lengths, batch_first=True, enforce_sorted=False)
        output, _ = self.recurrent(packed)
        logits: Tensor = self.linear(pad_packed_sequence(output, batch_first=True)[0])
        return logits


def trained(model: nn.Module, criterion: nn.Module, words: Tensor, lengths: Tensor, labels: Tensor) -> Tensor:
    """The losses of ten steps of Adam."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = criterion(model(words, lengths).flatten(0, 1), labels.flatten())
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float64, 1e-10), (torch.float32, 2e-4)], ids=str)
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_a_tagger_learns_as_before_its_conversion(kind: str, dtype: torch.dtype, allowed: float) -> None:
    torch.manual_seed(0)
    theirs = Tagger(kind).to(dtype)
    ours = bpkit.convert(copy.deepcopy(theirs))
    assert not bpkit.converted(ours).left
    lengths = torch.tensor([3, 7, 5, 1, 7])
    beyond = torch.arange(7) >= lengths[:, None]
    words = torch.randint(1, 20, (5, 7)).masked_fill(beyond, 0)
    labels = torch.randint(4, (5, 7)).masked_fill(beyond, -100)
    expected = trained(theirs, nn.CrossEntropyLoss(), words, lengths, labels)
    got = trained(ours, bpkit.nn.CrossEntropyLoss(), words, lengths, labels)
    assert relative_error(got, expected) < allowed
    for name, parameter in theirs.state_dict().items():
        assert relative_error(ours.state_dict()[name], parameter) < allowed
    twin = Tagger(kind).to(dtype)
    twin.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict())
    assert relative_error(ours(words, lengths), theirs(words, lengths)) < allowed
    assert relative_error(twin(words, lengths), theirs(words, lengths)) < allowed


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_a_cell_step_by_step_is_its_layer(kind: str) -> None:
    layer = getattr(bpkit.nn, kind)(3, 4, dtype=torch.float64)
    cell = getattr(bpkit.nn, f"{kind}Cell")(3, 4, dtype=torch.float64)
    cell.load_state_dict({name.removesuffix("_l0"): each for name, each in layer.state_dict().items()})
    input = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    state, outputs = None, []
    for step in input:
        state = cell(step, state)
        outputs.append(state[0] if kind == "LSTM" else state)
    got, expected = torch.stack(outputs), layer(input)[0]
    assert relative_error(got, expected) < 1e-13
    grad_output = torch.randn_like(expected)
    pairs = zip(
        torch.autograd.grad(got, [input, *cell.parameters()], grad_output),
        torch.autograd.grad(expected, [input, *layer.parameters()], grad_output),
        strict=True,
    )
    assert max(relative_error(*pair) for pair in pairs) < 1e-12


def test_a_cells_new_states_may_be_written_to() -> None:
    for cell in (bpkit.nn.LSTMCell(3, 4), nn.LSTMCell(3, 4)):
        h, c = cell(torch.randn(2, 3))
        (h.mul_(2).sum() + c.mul_(2).sum()).backward()
