"""The tab in headless Chromium: the browser, what goes wrong in it, and where things are on a map."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import Any

import pytest

from tests.tensorboard.process import PATIENCE

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
INSTALLED = "bpkit" in entry_points(group="tensorboard_plugins").names
NEEDS = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on PATH"),
    pytest.mark.skipif(not INSTALLED, reason="bpkit is not installed, so TensorBoard does not find it"),
]
FRAME = "iframe[src*='name=bpkit']"
MAP = "section.map:has(h2:text-is('{}'))"


@contextmanager
def chromium(width: int = 1300, height: int = 900) -> Iterator[Any]:
    """A page; what goes wrong in it is in `faults`."""
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-background-networking"]
        )
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(PATIENCE)
        api.expect.set_options(timeout=PATIENCE)
        page.faults = []
        page.on("pageerror", lambda error: page.faults.append(str(error)))
        page.on("dialog", lambda dialog: page.faults.append(f"dialog {dialog.message}") or dialog.dismiss())
        page.on("console", lambda said: page.faults.append(said.text) if said.type == "error" else None)
        yield page
        browser.close()


def pixel(tab: Any, run: str, x: float, y: float) -> tuple[int, ...]:
    """The colour at a place of a map, both from 0 to 1."""
    read = """(canvas, [x, y]) => [...canvas.getContext('2d').getImageData(
        Math.floor(x * canvas.width), Math.floor(y * canvas.height), 1, 1).data]"""
    return tuple(tab.locator(f"{MAP.format(run)} .field canvas").evaluate(read, [x, y]))


def box(tab: Any, run: str, selector: str) -> list[float]:
    """Edges of an element beside those of the map: left, top, right, bottom, from 0 to 1 within it."""
    field = tab.locator(f"{MAP.format(run)} .field").bounding_box()
    inner = tab.locator(f"{MAP.format(run)} {selector}").bounding_box()
    left, top = inner["x"] - field["x"], inner["y"] - field["y"]
    edges = [left, top, left + inner["width"], top + inner["height"]]
    return [edge / field[("width", "height")[place % 2]] for place, edge in enumerate(edges)]
