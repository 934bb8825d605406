"""Every formula compiled gives what it gives eagerly, also at sizes it was not compiled for."""

import pytest
import torch

from bpkit.bench.cases import case_of
from bpkit.core.fuse import compiler_available
from bpkit.plugins import registry

SPECS = {spec.name: spec for spec in (*registry().layers, *registry().losses) if spec.reference is not None}
# Without a formula of their own; those of lazy layers, stacks, one axis and three are other layers' formulas.
UNFUSED = ("RNN", "LSTM", "GRU", "Flatten", "Unflatten", "Identity", "Lazy", "Transformer", "1d", "3d")

pytestmark = [
    pytest.mark.skipif(not compiler_available(), reason="no C++ compiler to fuse with"),
    pytest.mark.filterwarnings("ignore"),  # torch's own, of kl_div's mean
]


def gradients(module, inputs, layout):
    leaves = [layout(each).detach().requires_grad_(each.requires_grad) for each in inputs]
    torch.manual_seed(0)
    output = module(*leaves)
    first = output[0] if isinstance(output, tuple) else output
    torch.manual_seed(1)
    wanted = [each for each in (*leaves, *module.parameters()) if each.requires_grad]
    return torch.autograd.grad(first, wanted, torch.randn_like(first))


def transposed(tensor):
    return tensor.mT.contiguous().mT if tensor.dim() > 1 else tensor


@pytest.mark.parametrize("name", [name for name in SPECS if not any(each in name for each in UNFUSED)])
def test_fused_is_eager(name):
    case = case_of(name)
    torch.manual_seed(0)
    n = 1 << 14
    eager = SPECS[name].module(*case.args(n))
    fused = SPECS[name].module(*case.args(n))
    fused.load_state_dict(eager.state_dict())
    fused.fused = True
    # The second and third run on what the first was compiled for; float64 and a transposed layout are new.
    for size, layout, dtype in (
        (n, torch.clone, torch.float32),
        (2 * n, torch.clone, torch.float32),
        (n, transposed, torch.float32),
        (n, torch.clone, torch.float64),
    ):
        eager, fused = eager.to(dtype), fused.to(dtype)
        inputs = [
            each.detach().to(dtype).requires_grad_() if each.requires_grad else each
            for each in case.inputs(size)
        ]
        inputs = [
            each.to(dtype) if each.is_floating_point() and not each.requires_grad else each for each in inputs
        ]
        # A compiled sum over 32,768 elements adds in another order: three of float32's seven digits.
        rtol = 1e-4 if dtype is torch.float32 else 1e-11
        for a, b in zip(gradients(fused, inputs, layout), gradients(eager, inputs, layout), strict=True):
            assert (a - b).abs().max() <= rtol * b.abs().max().clamp(min=1e-12), (name, size, dtype)
