"""The proof of bpkit-minimal."""

import pytest
import torch

from bpkit_minimal import Squareplus


@pytest.mark.bpkit_specs("bpkit-minimal")
def test_it_is_proven(spec, verify):
    verify(spec)


def test_autograd_agrees(verify):
    verify(Squareplus.functional, torch.randn(4, 6), reference=lambda x: (x + torch.sqrt(x * x + 4)) / 2)
