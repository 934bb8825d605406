"""The relative error, region by region."""

import math

import pytest
import torch

from bpkit.verification.compare import difference, regions, relative_error, same_bytes

INF, NAN = math.inf, math.nan


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("actual", "expected", "error"),
    [
        ((1.0, 2.0), (1.0, 2.0), 0.0),
        ((1.0, 2.2), (1.0, 2.0), 0.1),
        ((1.1, 2.0), (1.0, 2.0), 0.05),  # of the largest, never element by element
        ((0.0, 0.0), (0.0, 0.0), 0.0),
        ((1e-30, 0.0), (0.0, 0.0), INF),
        ((NAN, 1.0), (NAN, 1.0), 0.0),
        ((INF, 1.0), (INF, 1.0), 0.0),
        ((INF, 1.0), (-INF, 1.0), INF),
        ((NAN, 1.0), (1.0, 1.0), INF),
        ((1.0, 1.0), (NAN, 1.0), INF),
        ((), (), 0.0),
    ],
)
def test_of_a_whole_tensor(actual, expected, error):
    assert relative_error(tensor(*actual), tensor(*expected)) == pytest.approx(error)


def test_a_region_is_measured_by_its_own_size():
    input, expected = tensor(0.0, 1.0, 4.0), tensor(1.0, 1.0, 0.1)
    actual = expected * tensor(1.0, 1.0, 1.01)
    assert relative_error(actual, expected) == pytest.approx(1e-3)
    assert relative_error(actual, expected, regions(input)) == pytest.approx(1e-2)


def test_a_region_is_at_least_a_hundredth_of_its_tensor():
    input, expected = tensor(0.0, 4.0), tensor(1.0, 1e-9)
    assert relative_error(tensor(1.0, 2e-9), expected, regions(input)) == pytest.approx(1e-7)


def test_regions_are_both_tails_and_the_rest():
    value = tensor(-4.0, -3.0, 0.0, 3.0, 3.1)
    assert [mask.tolist() for mask in regions(value)] == [
        [True, False, False, False, False],
        [False, True, True, True, False],
        [False, False, False, False, True],
    ]
    assert len(regions(tensor(0.0, 1.0))) == 1


def test_a_difference_shows_the_two_numbers_side_by_side():
    sentence = difference("y", torch.tensor([[1.0, 2.5]]), torch.tensor([[1.0, 2.0]]), 1e-3)
    assert str(sentence) == "y at [0, 1] is 2.5, not 2: relative error 2.5e-01, allowed 1e-03"
    assert difference("y", torch.tensor(1.0), torch.tensor(1.0), 0.0) is None
    assert difference("y", None, torch.zeros(2), 0.0) is None
    assert "shape [2], not [3]" in str(difference("y", torch.zeros(2), torch.zeros(3), 1.0))


def test_same_bytes_tells_zeros_apart_and_nan_from_nothing():
    assert same_bytes(tensor(NAN), tensor(NAN))
    assert not same_bytes(tensor(0.0), tensor(-0.0))
    assert same_bytes(torch.tensor(1), torch.tensor(1))
