from __future__ import annotations

import threading

import pytest

from bpkit.tensorboard.held import Held


def test_a_value_is_made_again_only_for_another_version() -> None:
    held: Held[list[int]] = Held()
    first = held.get("a", "1", lambda: [1])
    assert held.get("a", "1", lambda: [2]) is first
    assert held.get("a", "2", lambda: [3]) == [3]
    assert held.find("a", "2") == [3]
    assert held.find("a", "1") is None


def test_the_least_used_goes_first() -> None:
    held: Held[str] = Held(most=2)
    for key in ("a", "b", "a", "c"):
        held.get(key, "1", lambda key=key: f"the {key}")
    assert (held.find("a", "1"), held.find("c", "1")) == ("the a", "the c")
    assert held.find("b", "1") is None


def test_what_could_not_be_made_is_tried_again() -> None:
    held: Held[int] = Held()

    def fail() -> int:
        raise OSError("the disk is away")

    with pytest.raises(OSError, match="the disk is away"):
        held.get("a", "1", fail)
    assert held.get("a", "1", lambda: 5) == 5


def test_who_asks_meanwhile_waits_for_the_one_making() -> None:
    held: Held[int] = Held()
    entered, go, made = threading.Event(), threading.Event(), []

    def make() -> int:
        made.append(1)
        entered.set()
        assert go.wait(60)
        return 7

    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(held.get("a", "1", make))) for _ in range(4)]
    for each in threads:
        each.start()
    assert entered.wait(60)
    assert held.get("b", "1", lambda: 1) == 1  # another value does not wait
    go.set()
    for each in threads:
        each.join(60)
    assert (found, made) == ([7] * 4, [1])
