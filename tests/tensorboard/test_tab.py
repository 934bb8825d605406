"""The tab Gradients as people see it: a TensorBoard process, and headless Chromium in front of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bpkit.tensorboard import Writer
from bpkit.tensorboard.record import ABSENT
from tests.tensorboard.page import FRAME, MAP, NEEDS, api, box, chromium, pixel
from tests.tensorboard.process import TensorBoard, eventually
from tests.tensorboard.runs import finding, run, write

pytestmark = NEEDS

SCRIPT = "<script>window.top.hacked = window.hacked = 1</script>"
IMAGE = "<img src=x onerror='window.top.hacked = window.hacked = 1'>"
LAYERS = ["input", SCRIPT, IMAGE, "output"]


def values(step: int) -> list[list[float]]:
    nan, inf = float("nan"), float("inf")
    return [[1e-9, ABSENT], [1e-6, ABSENT], [nan if step > 3 else 1e-3, 0.5], [inf if step > 4 else 1.0, 0.9]]


SICK = [
    finding("vanishing", LAYERS[:2], 2, 4, "critical"),
    finding("dead", [IMAGE], 1, 5, "warning"),
]


@pytest.fixture(scope="module")
def logdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Empty at first."""
    root = tmp_path_factory.mktemp("tab") / "logs"
    root.mkdir()
    return root


@pytest.fixture(scope="module")
def board(logdir: Path) -> Iterator[TensorBoard]:
    with TensorBoard(logdir) as board:
        yield board


@pytest.fixture(scope="module")
def window(logdir: Path, board: TensorBoard) -> Iterator[Any]:
    """TensorBoard, opened at the tab while there was no run."""
    with chromium() as page:
        eventually(lambda: board.runs() == [])
        page.goto(f"{board.address}/#bpkit")
        empty = page.frame_locator(FRAME).locator(".empty")
        empty.wait_for()
        page.at_first = empty.inner_text()
        run(logdir / "sick", LAYERS, {step: values(step) for step in range(1, 6)}, SICK)
        run(logdir / "well", LAYERS, {step: [[0.1, 0.0]] * 4 for step in range(1, 4)}, [], finished=True)
        yield page


def test_an_empty_directory_says_what_to_do_until_there_are_runs(window: Any, tab: Any) -> None:
    assert 'bpkit.watch(model, optimizer, logdir="runs/a")' in window.at_first
    assert tab.locator(".empty").is_hidden()


def test_tensorboard_has_the_tab(window: Any, tab: Any) -> None:
    window.reload()
    api.expect(window.get_by_role("tab", name=re.compile("gradients", re.IGNORECASE))).to_be_visible()


def test_runs_stand_side_by_side_on_one_scale(tab: Any) -> None:
    assert tab.locator(".map h2").all_inner_texts() == ["sick", "well"]
    first, second = (tab.locator(".map").nth(index).bounding_box() for index in (0, 1))
    assert first["y"] == second["y"]
    assert first["x"] + first["width"] <= second["x"]
    assert tab.locator(".tick").all_inner_texts()[0] == "1e−9"


def test_cells_are_painted_by_their_values(tab: Any) -> None:
    low, middle = pixel(tab, "sick", 0.1, 1 / 8), pixel(tab, "sick", 0.1, 5 / 8)
    assert low == (68, 1, 84, 255)  # viridis begins
    assert pixel(tab, "sick", 0.1, 7 / 8) == (253, 231, 37, 255)  # and ends: 1 is the largest
    assert len({low, middle, pixel(tab, "sick", 0.1, 3 / 8), pixel(tab, "well", 0.5, 0.5)}) == 4


def test_nan_and_infinity_are_hatched_and_in_the_legend(tab: Any) -> None:
    def colours(row: int) -> set[tuple[int, ...]]:
        """All there are in the last cell of a row."""
        read = """(canvas, row) => {
            const [wide, tall] = [canvas.width / 5, canvas.height / 4];
            const pen = canvas.getContext('2d');
            return [...pen.getImageData(4 * wide + 2, row * tall + 2, wide - 4, tall - 4).data];
        }"""
        data = tab.locator(f"{MAP.format('sick')} .field canvas").evaluate(read, row)
        return set(zip(*[iter(data)] * 4, strict=True))

    assert colours(1) == {pixel(tab, "sick", 0.9, 3 / 8)}
    assert (204, 31, 58, 255) in colours(2)
    assert (255, 140, 0, 255) in colours(3)
    assert len(colours(2)) > 1
    assert colours(2).isdisjoint(colours(3))
    assert {"NaN", "infinite", "exactly 0"} <= set(tab.locator(".swatch").all_inner_texts())


def test_names_of_layers_are_text_and_do_not_run(window: Any, tab: Any) -> None:
    names = tab.locator(f"{MAP.format('sick')} .names button")
    assert names.evaluate_all("all => all.map(each => each.title)") == LAYERS
    names.nth(1).click()
    api.expect(tab.locator(".layer h2")).to_contain_text(SCRIPT)
    tab.get_by_label("Close the layer").click()
    api.expect(tab.locator(".layer")).to_be_hidden()
    assert tab.locator("img, .page script").count() == 0
    assert window.evaluate("window.hacked") is None


def test_findings_are_listed_and_a_healthy_run_is_said_to_be(tab: Any) -> None:
    assert tab.locator(".finding b").all_inner_texts() == ["✖ vanishing", "▲ dead"]
    first = tab.locator(".finding").first.inner_text()
    for part in ("critical", "steps 2 to 4", "slope -1.5", "look at input"):
        assert part in first
    assert tab.locator(".healthy").all_inner_texts() == ["✔ Healthy: no finding in 3 samples, to step 3."]


def test_a_finding_outlines_its_layers_and_steps(window: Any, tab: Any) -> None:
    button = tab.locator(".finding").first
    button.click()
    window.mouse.move(0, 0)
    assert button.get_attribute("aria-pressed") == "true"
    assert box(tab, "sick", ".outline") == pytest.approx([0.2, 0, 0.8, 0.5], abs=0.03)
    assert tab.locator(f"{MAP.format('well')} .outline").count() == 0
    button.click()
    button.blur()
    window.mouse.move(0, 0)
    assert tab.locator(".outline").count() == 0
    tab.locator(".finding").nth(1).hover()
    assert box(tab, "sick", ".outline") == pytest.approx([0, 0.5, 1, 0.75], abs=0.03)
    window.mouse.move(0, 0)
    assert tab.locator(".outline").count() == 0


def test_the_cell_under_the_mouse_says_its_value(window: Any, tab: Any) -> None:
    canvas = tab.locator(f"{MAP.format('sick')} .field canvas")
    size = canvas.bounding_box()
    canvas.hover(position={"x": 0.5 * size["width"], "y": 0.3 * size["height"]})
    tip = tab.locator(f"{MAP.format('sick')} .tip")
    api.expect(tip.locator("strong")).to_have_text("1e−6")
    api.expect(tip).to_contain_text("step 3")
    canvas.focus()
    canvas.press("ArrowDown")
    canvas.press("ArrowRight")
    api.expect(tip.locator("strong")).to_have_text("NaN")
    canvas.press("Enter")
    api.expect(tab.locator(".layer h2")).to_contain_text(IMAGE)
    tab.get_by_label("Close the layer").click()
    window.mouse.move(0, 0)


def test_a_click_on_a_layer_shows_its_curves_and_histogram(tab: Any) -> None:
    tab.locator(f"{MAP.format('sick')} .names button").nth(2).click()
    panel = tab.locator(".layer")
    latest = "the latest logged; earlier ones are not shown"
    api.expect(panel.locator("figcaption")).to_have_text(
        [f"|∂L/∂W| at step 5{latest}", f"|∂L/∂W| at step 3{latest}", "gradient norm", "dead"]
    )
    curves = panel.locator("figure").nth(2)
    assert curves.locator(".curve").count() == 2  # one a run
    assert curves.locator(".cross title").all_text_contents() == ["NaN at step 4", "NaN at step 5"]
    assert panel.locator("figure").first.locator("rect").count() > 30
    panel.get_by_label("Close the layer").click()


def test_another_statistic_has_another_map(window: Any, tab: Any) -> None:
    tab.get_by_label("Statistic").select_option("dead")
    api.expect(tab.locator(".legend strong")).to_have_text("dead")
    assert tab.locator(".tick").all_inner_texts() == ["0", "0.25", "0.5", "0.75", "1"]
    names = tab.locator(f"{MAP.format('sick')} .names button")
    assert names.evaluate_all("all => all.map(each => each.title)") == [IMAGE, "output"]
    assert pixel(tab, "well", 0.5, 0.5) == (68, 1, 84, 255)
    assert pixel(tab, "sick", 0.9, 0.25) == (34, 144, 139, 255)  # 0.5, in the middle of viridis
    tab.locator(".finding").first.hover()  # of layers that have no such statistic
    assert tab.locator(".outline.beside").count() == 1
    window.mouse.move(0, 0)
    tab.get_by_label("Statistic").select_option("gradient norm")
    api.expect(tab.locator(".legend strong")).to_have_text("gradient norm")


def test_layers_are_filtered_by_name(tab: Any) -> None:
    tab.get_by_role("searchbox").fill("PUT")
    api.expect(tab.locator(f"{MAP.format('sick')} .names button")).to_have_text(["input", "output"])
    tab.get_by_role("searchbox").fill("")
    api.expect(tab.locator(f"{MAP.format('sick')} .names button")).to_have_count(4)


def test_a_run_can_be_left_out(tab: Any) -> None:
    tab.get_by_role("checkbox", name="well").uncheck()
    api.expect(tab.locator(".map h2")).to_have_text(["sick"])
    tab.get_by_role("checkbox", name="well").check()
    api.expect(tab.locator(".map h2")).to_have_text(["sick", "well"])


def test_a_new_sample_appears_and_what_was_chosen_stays(
    logdir: Path, board: TensorBoard, window: Any, tab: Any
) -> None:
    tab.locator(".finding").first.click()
    tab.locator(f"{MAP.format('sick')} .names button").first.click()
    api.expect(tab.locator(".layer h2")).to_contain_text("input")
    with Writer(logdir / "sick") as writer:
        write(writer, LAYERS, {step: values(step) for step in (6, 7)}, SICK)
    api.expect(tab.locator(f"{MAP.format('sick')} .note")).to_contain_text("7 samples, to step 7")
    assert tab.locator(".layer h2").inner_text().startswith("input")
    assert tab.locator(".finding").first.get_attribute("aria-pressed") == "true"
    assert box(tab, "sick", ".outline") == pytest.approx([1 / 7, 0, 4 / 7, 0.5], abs=0.03)
    tab.get_by_role("button", name="Live").click()
    with Writer(logdir / "sick") as writer:
        write(writer, LAYERS, {8: values(8)}, SICK)
    eventually(lambda: board.runs() == [("sick", 8), ("well", 3)])
    asked: list[str] = []
    window.on("request", lambda request: asked.append(request.url) if "plugin/bpkit" in request.url else None)
    window.wait_for_timeout(5500)
    assert asked == []
    tab.get_by_role("button", name="Paused").click()
    api.expect(tab.locator(f"{MAP.format('sick')} .note")).to_contain_text("to step 8")


def test_nothing_went_wrong_in_the_browser(window: Any, tab: Any) -> None:
    assert window.faults == []
    assert window.evaluate("window.hacked") is None


def test_dark_and_light_follow_tensorboard(window: Any, tab: Any) -> None:
    def back() -> str:
        return tab.locator("body").evaluate("body => getComputedStyle(body).backgroundColor")

    light = back()
    window.evaluate("document.body.classList.add('dark-mode')")
    eventually(lambda: back() != light)
    window.evaluate("document.body.classList.remove('dark-mode')")
    eventually(lambda: back() == light)
