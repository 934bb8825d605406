"""Colours of runs: told from each other and from the page, whatever kind of colour vision one has."""

from __future__ import annotations

import re

import numpy as np
import pytest
from numpy.typing import NDArray

from bpkit.tensorboard.plugin import STATIC

Colours = NDArray[np.float64]

# What linear RGB looks like to people without one of the three cones (Machado, Oliveira, Fernandes 2009).
VISIONS = {
    "all cones": np.eye(3),
    "no long": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "no middle": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "no short": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
# Linear RGB to OKLab (Ottosson 2020), in which equal distances look equal; black and white are 1 apart.
CONES = [
    [0.4122214708, 0.5363325363, 0.0514459929],
    [0.2119034982, 0.6806995451, 0.1073969566],
    [0.0883024619, 0.2817188376, 0.6299787005],
]
OKLAB = [
    [0.2104542553, 0.7936177850, -0.0040720468],
    [1.9779984951, -2.4285922050, 0.4505937099],
    [0.0259040371, 0.7827717662, -0.8086757660],
]


def theme(name: str) -> dict[str, str]:
    """The variables of a theme in the style sheet, colours without their `#`."""
    light, dark = re.findall(r":root[^{]*\{(.*?)\}", (STATIC / "style.css").read_text(), re.DOTALL)[:2]
    return dict(re.findall(r"--([\w-]+): #(\w+);", {"light": light, "dark": dark}[name]))


def linear(colours: list[str]) -> Colours:
    double = [each * 2 if len(each) == 3 else each for each in colours]
    shares = np.array([list(bytes.fromhex(each)) for each in double]) / 255
    return np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)


@pytest.mark.parametrize("name", ["light", "dark"])
def test_eight_runs_are_told_apart_on_every_kind_of_eye(name: str) -> None:
    variables = theme(name)
    runs = linear([variables[f"run-{place}"] for place in range(8)])
    for vision, matrix in VISIONS.items():
        seen = np.clip(runs @ np.transpose(matrix), 0, 1)
        places = np.cbrt(seen @ np.transpose(CONES)) @ np.transpose(OKLAB)
        apart = np.linalg.norm(places[:, None] - places[None], axis=-1)[np.triu_indices(8, 1)]
        assert apart.min() > 0.12, vision  # the eight of Okabe and Ito: 0.08
    light = [0.2126, 0.7152, 0.0722]
    panel = (linear([variables["panel"]]) @ light).item()
    contrast = [(max(each, panel) + 0.05) / (min(each, panel) + 0.05) for each in runs @ light]
    assert min(contrast) >= 3  # what WCAG 2.2 asks of a line
