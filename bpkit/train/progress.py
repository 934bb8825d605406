"""What a run shows while it goes on: a bar on a terminal, plain lines elsewhere, both on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Protocol

REFRESH_SECONDS = 0.1
LINE_SECONDS = 10.0


class Display(Protocol):
    """How a run is shown."""

    def update(self, step: int, loss: float) -> None:
        """The run is at `step`; called often, shows seldom."""

    def line(self, text: str) -> None:
        """Something worth a line of its own."""

    def __enter__(self) -> Display: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def display(total: int | None, start: int, *, shown: bool) -> Display:
    """The display for this stderr: `total` steps, beginning at `start`."""
    if not shown:
        return Silent()
    return Bar(total, start) if sys.stderr.isatty() else Lines(start)


class Silent:
    """Shows nothing."""

    def update(self, step: int, loss: float) -> None:
        pass

    def line(self, text: str) -> None:
        pass

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Lines(Silent):
    """A line an epoch, and one every ten seconds in between."""

    def __init__(self, start: int) -> None:
        self.first, self.began, self.last = start, time.monotonic(), time.monotonic()

    def update(self, step: int, loss: float) -> None:
        now = time.monotonic()
        if now - self.last >= LINE_SECONDS:
            rate = (step - self.first) / max(1e-9, now - self.began)
            self.line(f"step {step}  loss {loss:.4f}  {rate:,.0f} steps/s")

    def line(self, text: str) -> None:
        self.last = time.monotonic()
        print(text, file=sys.stderr, flush=True)


class Bar:
    """A progress bar with loss and rate; lines scroll above it."""

    def __init__(self, total: int | None, start: int) -> None:
        # Imported where a bar is shown: rich draws from `random` on import.
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.console = Console(stderr=True)
        self.progress = Progress(
            TextColumn("[bold]step {task.completed:.0f}"),
            BarColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            auto_refresh=False,
        )
        self.task = self.progress.add_task("", total=total, completed=start, loss="-", rate="")
        self.first, self.began, self.last = start, time.monotonic(), 0.0

    def update(self, step: int, loss: float) -> None:
        now = time.monotonic()
        if now - self.last < REFRESH_SECONDS:
            return
        self.last = now
        rate = (step - self.first) / max(1e-9, now - self.began)
        self.progress.update(self.task, completed=step, loss=f"{loss:.4f}", rate=f"{rate:,.0f} steps/s")
        self.progress.refresh()

    def line(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def __enter__(self) -> Bar:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()


def figures(values: Mapping[str, float]) -> str:
    """`loss 0.1234  accuracy 0.9750`."""
    return "  ".join(f"{name} {value:.4f}" for name, value in values.items())
