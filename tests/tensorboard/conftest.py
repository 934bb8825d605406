"""What the tests of the tab have in common; `window` is each file's own."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture
def tab(window: Any) -> Any:
    """The tab's own frame, with the maps of two runs."""
    from tests.tensorboard.page import FRAME  # skips where no browser can be driven

    frame = window.frame_locator(FRAME)
    frame.locator(".map canvas").nth(1).wait_for()
    return frame
