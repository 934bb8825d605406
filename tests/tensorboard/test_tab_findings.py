"""The tab with more layers than its frame has room for, and nine runs: findings, verdicts, colours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from bpkit.tensorboard.record import ABSENT
from tests.tensorboard.page import MAP, NEEDS, api, box, chromium, pixel
from tests.tensorboard.process import TensorBoard, eventually
from tests.tensorboard.runs import finding, run

pytestmark = NEEDS

SCRIPT = "<script>window.top.hacked = window.hacked = 1</script>"
LAYERS = [*(f"layer{index}" for index in range(38)), SCRIPT, "output"]
OTHERS = [f"other{index}" for index in range(7)]
COLOURS = "all => all.map(each => getComputedStyle(each).backgroundColor)"


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    logdir = tmp_path_factory.mktemp("tab") / "logs"
    for name in OTHERS:
        run(logdir / name, ["input"], {1: [[1.0, ABSENT]]}, None)
    found = [
        finding("noise", LAYERS[:2], 1, 5, "info"),
        finding("vanishing", LAYERS[36:], 2, 4, "critical"),
        finding("plateau", [], 3, 5, "warning"),
        finding("gain", [*LAYERS[:4], *LAYERS[8:12]], 1, 2, "warning"),
    ]
    low = [[1e-8, ABSENT]] * 39 + [[1e-6, ABSENT]]
    run(logdir / "sick", LAYERS, dict.fromkeys(range(1, 6), low), found)
    run(logdir / "well", LAYERS, {1: [[0.1, 0.0]] * 39 + [[10.0, 0.0]]}, [], finished=True)
    with TensorBoard(logdir) as board, chromium(height=460) as page:
        eventually(lambda: len(board.runs() or ()) == 9)
        page.goto(f"{board.address}/#bpkit")
        yield page


def verdict(tab: Any, run: str) -> Any:
    return tab.locator(f".picker label[title='{run}'] .verdicts")


def test_the_verdict_on_each_run_stands_beside_its_name(tab: Any) -> None:
    api.expect(verdict(tab, "sick")).to_have_text("✖ 1▲ 2● 1")
    api.expect(verdict(tab, "well")).to_have_text("✔ healthy")
    api.expect(verdict(tab, "other0")).to_have_text("")
    assert verdict(tab, "sick").locator("small").get_attribute("title") == (
        "findings: 1 critical, 2 warning, 1 info"
    )
    for name in ("sick", "well"):
        said = tab.locator(f"{MAP.format(name)} header .verdicts")
        api.expect(said).to_have_text(verdict(tab, name).inner_text().replace("\n", ""))


def test_findings_are_marked_beside_the_map_before_one_is_chosen(tab: Any) -> None:
    assert tab.locator(".outline").count() == 0
    left, top, right, bottom = box(tab, "sick", ".gutter:not(.below) .critical")
    assert 1 <= left <= right <= 1.1
    assert [top, bottom] == pytest.approx([36 / 40, 1], abs=0.01)
    left, top, right, bottom = box(tab, "sick", ".gutter.below .critical")
    assert 1 <= top <= bottom <= 1.1
    assert [left, right] == pytest.approx([1 / 5, 4 / 5], abs=0.01)
    marks = tab.locator(f"{MAP.format('sick')} .gutter-mark")
    assert marks.locator("title").all_text_contents() == [
        f"vanishing: layer36 … output ({len(LAYERS[36:])} layers), steps 2 to 4",
        "gain: layer0 … layer11 (8 layers), steps 1 to 2",
        "noise: layer0, layer1, steps 1 to 5",
        f"vanishing: layer36 … output ({len(LAYERS[36:])} layers), steps 2 to 4",
        "plateau: the whole model, steps 3 to 5",  # which has no place among the layers
        "gain: layer0 … layer11 (8 layers), steps 1 to 2",
        "noise: layer0, layer1, steps 1 to 5",
    ]
    assert marks.nth(1).get_attribute("d").count("M") == 2  # two stretches of layers
    assert tab.locator(f"{MAP.format('well')} .gutter-mark").count() == 0


def test_choosing_a_finding_brings_its_layers_into_sight(window: Any, tab: Any) -> None:
    def seen(selector: str) -> bool:
        within = tab.locator(selector).first.evaluate(
            "each => [each.getBoundingClientRect().top, innerHeight - each.getBoundingClientRect().bottom]"
        )
        return all(gap >= -1 for gap in within)

    tab.locator(".finding").nth(1).hover()
    assert not seen(".names button[title='output']")
    button = tab.locator(".finding", has_text="vanishing")
    button.focus()
    button.press("Enter")
    eventually(lambda: seen(".outline"))
    assert box(tab, "sick", ".outline") == pytest.approx([0.2, 0.9, 0.8, 1], abs=0.03)
    button.press("Enter")
    tab.locator("body").evaluate("() => window.scrollTo({ top: 0, behavior: 'instant' })")


def test_a_mark_in_the_gutter_chooses_its_finding(window: Any, tab: Any) -> None:
    tab.locator(".gutter:not(.below) .gutter-mark.info").click()
    chosen = tab.locator(".finding[aria-pressed='true']")
    api.expect(chosen).to_contain_text("noise")
    assert box(tab, "sick", ".outline") == pytest.approx([0, 0, 1, 2 / 40], abs=0.03)
    chosen.click()
    tab.locator("body").evaluate("() => document.activeElement.blur()")
    window.mouse.move(0, 0)
    api.expect(tab.locator(".outline")).to_have_count(0)


def test_each_run_can_have_a_colour_scale_of_its_own(tab: Any) -> None:
    def ends() -> list[tuple[int, ...]]:
        return [pixel(tab, name, 0.5, place) for name in ("sick", "well") for place in (0.01, 0.99)]

    dark, yellow = (68, 1, 84, 255), (253, 231, 37, 255)
    switch = tab.get_by_label("One colour scale for all runs")
    assert switch.is_checked()
    shared = ends()
    assert [shared[0], shared[3]] == [dark, yellow]
    assert not {dark, yellow} & set(shared[1:3])
    switch.focus()
    switch.press("Space")
    eventually(lambda: ends() == [dark, yellow] * 2)
    assert tab.locator("main > .legend").is_hidden()
    ticks = [tab.locator(f"{MAP.format(name)} .tick").all_inner_texts() for name in ("sick", "well")]
    assert ticks == [["1e−8", "1e−7", "1e−6"], ["0.1", "1", "10"]]
    switch.press("Space")
    eventually(lambda: ends() == shared)
    assert tab.locator(".map .tick").count() == 0


def test_runs_that_are_shown_have_colours_of_their_own(tab: Any) -> None:
    dots = tab.locator(".map h2 .dot")
    before = dots.evaluate_all(COLOURS)
    for name in OTHERS[:6]:
        tab.get_by_role("checkbox", name=name).check()
    api.expect(tab.locator(".map h2")).to_have_text([*OTHERS[:6], "sick", "well"])
    shown = dots.evaluate_all(COLOURS)
    assert len(set(shown)) == 8
    assert shown[-2:] == before  # those that stay keep theirs
    for name in OTHERS[:6]:
        tab.get_by_role("checkbox", name=name).uncheck()
    api.expect(tab.locator(".map h2")).to_have_text(["sick", "well"])


def test_nothing_went_wrong_in_the_browser(window: Any, tab: Any) -> None:
    assert window.faults == []
    assert window.evaluate("window.hacked") is None
    assert tab.locator(".page script").count() == 0
