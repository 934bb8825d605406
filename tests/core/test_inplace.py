"""`overwrite` against `copy_`: gradients of what was written, of what is left of a base, in every mode."""

import pytest
import torch

from bpkit.core.graph import kind, nodes
from bpkit.core.inplace import overwrite


def of_whole(write, x):
    y = x * 2
    kept = y.clone()
    return (kept * write(y, kept**3)).sum() + y.sum()


def of_view(write, x):
    y = x * 2
    view = y[:2]
    write(view, x[:2] ** 3)
    return (y * y).sum() + view.sum()


MODES = {
    "plain": lambda f: lambda x: torch.autograd.grad(f(x).sum(), x)[0],
    "func": torch.func.grad,
    "vmap of grad": lambda f: lambda x: torch.vmap(torch.func.grad(f))(torch.stack((x, 2 * x))),
    "vmap of vmap of grad": lambda f: lambda x: torch.vmap(torch.vmap(torch.func.grad(f)))(x.expand(2, 2, 3)),
    "grad of vmap": lambda f: torch.func.grad(
        lambda x: torch.vmap(f, in_dims=1)(torch.stack((x, 2 * x), 1)).sum()
    ),
    "compiled": lambda f: (
        lambda x: torch.autograd.grad(torch.compile(f, backend="aot_eager", fullgraph=True)(x), x)[0]
    ),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("loss", [of_whole, of_view])
def test_it_differentiates_as_torchs(loss, mode):
    torch._dynamo.reset()
    x = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64, requires_grad=True)
    ours, theirs = (
        MODES[mode](lambda x, write=write: loss(write, x))(x) for write in (overwrite, torch.Tensor.copy_)
    )
    torch.testing.assert_close(ours, theirs)


def test_it_is_one_handwritten_node_and_the_same_tensor():
    x = torch.ones(3, requires_grad=True)
    y = x * 2
    assert overwrite(y, y.detach() + 1) is y
    assert kind(y.grad_fn) == "handwritten"
    assert "CopyBackwards" not in {type(node).__name__ for node in nodes([y])}


@pytest.mark.parametrize("part", [slice(None), slice(2)])
def test_a_leaf_is_refused_before_it_is_written_to(part):
    x = torch.ones(3, requires_grad=True)
    target = x if part == slice(None) else x[part]
    with pytest.raises(RuntimeError, match=r"leaf Variable that requires grad is being used in an in-place"):
        overwrite(target, 2 * target)
    assert torch.equal(x, torch.ones(3))


def test_what_was_written_over_is_a_stale_save():
    x = torch.ones(3, requires_grad=True)
    y = x * 2
    square = y * y
    overwrite(y, square)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        square.sum().backward()
