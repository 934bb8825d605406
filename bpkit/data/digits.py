"""The UCI digits: 1,797 handwritten digits of 8 x 8 pixels (Alpaydin & Kaynak, 1998, CC BY 4.0).

Attribution and licence stand in `digits.LICENSE` beside the file.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from importlib import resources

import numpy as np
import torch
from torch.utils.data import TensorDataset

TEST_PER_CLASS = 36


@dataclass(frozen=True)
class Digits:
    """A fixed split: 1,437 images to train on and 360 to test on, 36 of each digit.

    Each data set gives `(images [n, 1, 8, 8] float32 in [0, 1], labels [n] int64)`.
    """

    train: TensorDataset
    test: TensorDataset


def digits() -> Digits:
    """Load the digits.

    The test images are, of each digit's images in the file's order, numbers ⌊k n / 36⌋ for k = 0 … 35
    (n: how many there are): spread evenly over the writers, and the same everywhere for ever.
    """
    packed = resources.files("bpkit.data").joinpath("digits.gz").read_bytes()
    rows = np.frombuffer(gzip.decompress(packed), dtype=np.uint8).reshape(-1, 65)
    images = torch.from_numpy(rows[:, :64].reshape(-1, 1, 8, 8).astype(np.float32) / 16)
    labels = torch.from_numpy(rows[:, 64].astype(np.int64))
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for digit in range(10):
        (own,) = torch.nonzero(labels == digit, as_tuple=True)
        held_out[own[torch.arange(TEST_PER_CLASS) * len(own) // TEST_PER_CLASS]] = True
    return Digits(
        train=TensorDataset(images[~held_out], labels[~held_out]),
        test=TensorDataset(images[held_out], labels[held_out]),
    )
