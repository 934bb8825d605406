"""One small Function, held to everything that a Function of bpkit has to do."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from bpkit.core.function import Function


class Weighted(Function):
    """y = scale x wᵀ."""

    autocast = {"cpu": "lower", "cuda": "lower"}

    @staticmethod
    def forward(input, weight, scale=2.0):
        return input @ weight.mT * scale

    @staticmethod
    def setup_context(ctx, inputs, output):
        input, weight, ctx.scale = inputs
        ctx.save_for_backward(input, weight)

    @staticmethod
    def backward(ctx, grad_output):
        input, weight = ctx.saved_tensors
        return grad_output @ weight * ctx.scale, grad_output.mT @ input * ctx.scale, None


def native(input, weight, scale=2.0):
    return input @ weight.mT * scale


@pytest.fixture
def operands():
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    w = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    return x, w


def gradients(function, operands):
    return torch.autograd.grad(function(*operands).square().sum(), operands)


@pytest.mark.parametrize("call", [Weighted.call, Weighted.apply])
def test_eager(call, operands):
    torch.testing.assert_close(gradients(call, operands), gradients(native, operands))
    torch.testing.assert_close(call(*operands, 3.0), native(*operands, 3.0))


def test_keywords(operands):
    torch.testing.assert_close(Weighted.apply(*operands, scale=3.0), native(*operands, 3.0))


def test_gradcheck_and_gradgradcheck(operands):
    torch.autograd.gradcheck(Weighted.call, operands, check_batched_grad=True)
    torch.autograd.gradgradcheck(Weighted.call, operands, check_batched_grad=True)


@pytest.mark.parametrize("in_dims", [(0, None), (None, 0), (0, 0), (1, 2)])
def test_vmap(in_dims):
    x, w = (torch.randn(5, 5, 3, dtype=torch.float64) for _ in range(2))
    x, w = (x if in_dims[0] is not None else x[0]), (w if in_dims[1] is not None else w[0])
    if in_dims[1] == 2:
        w = w.movedim(0, 2)
    torch.testing.assert_close(torch.vmap(Weighted.call, in_dims)(x, w), torch.vmap(native, in_dims)(x, w))


def test_func_grad(operands):
    def loss(function):
        return lambda x, w: function(x, w).square().sum()

    plain = [each.detach() for each in operands]
    torch.testing.assert_close(
        torch.func.grad(loss(Weighted.call), (0, 1))(*plain), torch.func.grad(loss(native), (0, 1))(*plain)
    )


@pytest.mark.parametrize("call", [Weighted.call, Weighted.apply])
@pytest.mark.parametrize("inside", [True, False])
def test_autocast(call, inside):
    x, w = torch.randn(4, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = call(x, w)
        if inside:
            output.sum().backward()
    if not inside:
        output.sum().backward()
    assert output.dtype is torch.bfloat16
    assert (x.grad.dtype, w.grad.dtype) == (torch.float32, torch.float32)
    expected = x.detach().sum(0).mul(2).expand(2, 3)
    assert float((w.grad - expected).abs().max() / expected.abs().max()) < 2**-6  # bfloat16 has 8 bits


def test_checkpoint(operands):
    run = lambda x, w: checkpoint(Weighted.call, x, w, use_reentrant=False)  # noqa: E731
    torch.testing.assert_close(gradients(run, operands), gradients(native, operands))


def test_compile_fullgraph(operands):
    compiled = torch.compile(lambda x, w: Weighted.call(x, w), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(gradients(compiled, operands), gradients(native, operands))


def test_compile_under_autocast():
    compiled = torch.compile(lambda x, w: Weighted.call(x, w), backend="aot_eager", fullgraph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert compiled(torch.randn(4, 3, requires_grad=True), torch.randn(2, 3)).dtype is torch.bfloat16


def test_graph_break(operands):
    def broken(x, w):
        y = Weighted.call(x, w)
        torch._dynamo.graph_break()
        return Weighted.call(y, torch.eye(2, dtype=y.dtype)) / 2

    compiled = torch.compile(broken, backend="aot_eager")
    torch.testing.assert_close(gradients(compiled, operands), gradients(native, operands))


def _worker(rank, init, results):
    torch.distributed.init_process_group("gloo", init_method=init, rank=rank, world_size=2)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(2, 3))

        def forward(self, input):
            return Weighted.call(input, self.weight)

    model = torch.nn.parallel.DistributedDataParallel(Model())
    model(torch.full((4, 3), float(rank + 1))).sum().backward()
    results.put(model.module.weight.grad.tolist())
    torch.distributed.destroy_process_group()


@pytest.mark.cpu
def test_ddp_on_two_processes(tmp_path):
    context = torch.multiprocessing.get_context("spawn")
    results = context.Queue()
    init = f"file://{tmp_path}/rendezvous"
    processes = [context.Process(target=_worker, args=(rank, init, results)) for rank in range(2)]
    for process in processes:
        process.start()
    found = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    mean = 4 * 2.0 * (1 + 2) / 2
    assert found == [[[mean] * 3] * 2] * 2


def test_forward_without_setup_context_is_refused():
    with pytest.raises(TypeError, match="without setup_context"):

        class Old(Function):
            @staticmethod
            def forward(ctx, input):
                return input


def test_forward_mode_raises_one_clear_line(operands):
    plain = [each.detach() for each in operands]
    with pytest.raises(NotImplementedError, match="jvp"):
        torch.func.jvp(Weighted.call, tuple(plain), tuple(plain))
