"""The page that `bpkit doctor --html` writes: self-contained, its map and its curves."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from bpkit.commands._doctor_curves import curves
from bpkit.commands._doctor_map import BAD, ROWS, VIRIDIS, Cells
from bpkit.tensorboard.record import ABSENT
from tests.commands.logs import FAULT, doctor, write


class Elements(HTMLParser):
    """All tags of a page, and what they point to."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.targets: list[str] = []
        self.handlers: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.targets += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]


def page_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    doctor(capsys, tmp_path, "--html", tmp_path / "page.html")
    return (tmp_path / "page.html").read_text(encoding="utf-8")


def drawings(page: str) -> list[str]:
    return re.findall(r"<svg.*?</svg>", page, re.S)


def pixels(page: str) -> np.ndarray[Any, Any]:
    """The heat map's cells as [rows × columns × RGBA]."""
    data = re.findall(r"data:image/png;base64,([^\"]+)", drawings(page)[0])[0]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGBA"))


def test_the_page_is_self_contained_and_its_text_is_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = '<script>alert(\'"1&")</script>'
    fault = {**FAULT, "kind": evil, "layers": [evil, "a", evil, "b"], "advice": evil, "evidence": {evil: 1.0}}
    write(tmp_path / "<img src=x onerror=alert(1)>", [fault], names=(evil, "b", "c"))
    write(tmp_path / "b", [{**fault, "layers": [evil]}], names=(evil, "b", "c"))
    page = page_of(tmp_path, capsys)
    elements = Elements(page)
    assert not elements.tags & {"script", "link", "img", "iframe", "object", "embed"}
    assert elements.handlers == []
    assert {target.partition(",")[0].partition("-")[0] for target in elements.targets} == {
        "#run",
        "data:image/png;base64",
    }
    assert not re.search(r"https?:|@import|url\(", page)
    for drawing in drawings(page):
        ElementTree.fromstring(drawing)  # well-formed
    assert page.count("&lt;script&gt;") > 10


def test_the_map_has_a_cell_for_each_layer_and_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nan, inf = float("nan"), float("inf")
    norms = [[1e-4, 1e-2, 1.0], [nan, inf, ABSENT], [0.0, 1e-4, 1e-30]]
    write(tmp_path, [FAULT], norms=norms)
    page = page_of(tmp_path, capsys)
    found = pixels(page)
    assert found.shape == (3, 3, 4)
    least, most, bad = (tuple(bytes.fromhex(each)) for each in (VIRIDIS[0], VIRIDIS[-1], BAD))
    assert tuple(found[2, 0, :3]) == most
    assert tuple(found[0, 2, :3]) == tuple(found[2, 2, :3]) == least  # zero, and below the scale
    assert tuple(found[0, 1, :3]) == tuple(found[1, 1, :3]) == bad
    assert found[..., 3].tolist() == [[255, 255, 255], [255, 255, 255], [255, 0, 255]]
    assert "Not finite, here from step 2: <code>encoder.0</code>, <code>encoder.1</code>." in page
    assert "zero, as the least" in page
    assert "1▾" in page


def test_layers_without_a_gradient_have_no_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, norms=[[1.0, ABSENT, 1.0], [ABSENT, ABSENT, 1.0]])
    page = page_of(tmp_path, capsys)
    assert pixels(page).shape == (2, 2, 4)
    assert "encoder.1" not in page


def test_a_run_without_any_gradient_has_no_map(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, [FAULT], norms=[[ABSENT] * 3])
    (losses,) = drawings(page_of(tmp_path, capsys))
    assert "<image" not in losses
    assert "gradient norm" not in doctor(capsys, tmp_path)[1]


def test_of_many_layers_neighbours_share_a_row() -> None:
    values = np.ones((2 * ROWS + 1, 1), dtype=np.float32)
    values[0], values[3], values[5] = 2.0, np.nan, ABSENT
    gathered = Cells([1], [f"l{index}" for index in range(len(values))], values).gathered()
    assert len(gathered.names) == len(gathered.values) <= ROWS
    assert list(gathered.names[:2]) == ["l0", "l3"]
    assert gathered.values[0] == 2
    assert np.isnan(gathered.values[1])


def test_a_page_of_a_large_model_and_a_long_run_is_small(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = tuple(f"layers.{index}" for index in range(2000))
    write(tmp_path, names=names, norms=np.full((20, 2000), 0.1).tolist())
    assert len(page_of(tmp_path, capsys)) < 100_000


def test_curves_break_where_they_are_not_finite() -> None:
    nan = float("nan")
    drawn = curves(
        {"train": [(1, 2.0), (2, 1.0), (3, nan), (4, nan), (5, 1.0)], "validation": [(5, 1.0)]}, ""
    )
    ElementTree.fromstring(drawn)
    assert drawn.count("<polyline") == 1
    assert drawn.count("<circle") == 2
    assert drawn.count("×") == 1
    assert "nan from step 3" in drawn


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([1.0, 1000.0], {"1e0", "1e1", "1e2", "1e3"}),
        ([-1.0, 1.0], {"-1", "0", "1"}),
        ([0.0, 1e6], {"0", "1e+06"}),
    ],
)
def test_the_scale_of_a_curve_is_logarithmic_where_it_spans_decades(
    values: list[float], labels: set[str]
) -> None:
    drawn = curves({"train": list(enumerate(values, 1))}, "")
    assert labels <= set(re.findall(r">([-+\de.]+)</text>", drawn))


@pytest.mark.parametrize("curve", [[(1, float("nan"))], [(1, 0.0)], [(1, 2.5), (2, 2.5)]])
def test_a_curve_without_extent_is_drawn(curve: list[tuple[int, float]]) -> None:
    drawn = curves({"train": curve}, "")
    ElementTree.fromstring(drawn)
    assert "train" in drawn
    assert 'nan"' not in drawn


def test_without_losses_there_are_no_curves() -> None:
    assert curves({}, "loss") == ""
