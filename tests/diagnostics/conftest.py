from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from tests.diagnostics.by_hand import Probing


@pytest.fixture
def probing() -> Probing:
    return Probing()


@pytest.fixture
def nothing_breaks(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No diagnostic and no hook is given up in the test."""
    yield
    lines = [each.getMessage() for each in caplog.get_records("call") if each.levelno >= logging.WARNING]
    assert not [line for line in lines if "left out" in line or "no longer watched" in line]
