"""A TensorBoard process, and patience with it."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

PATIENCE = 60_000  # milliseconds: the tests of other files may be running on the same cores


class TensorBoard:
    """A process that serves a directory, ended on leaving the context."""

    def __init__(self, logdir: Path, *options: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--port", str(port)]
        command += ["--reload_interval", "1", *options]
        self.log = logdir.parent / "tensorboard.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        self.address = f"http://localhost:{port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(10)

    def runs(self) -> list[Any] | None:
        """Names of runs and their last steps, as the plugin tells them; None until it answers."""
        try:
            with urllib.request.urlopen(f"{self.address}/data/plugin/bpkit/runs", timeout=5) as answer:
                return [(each["name"], each["step"]) for each in json.load(answer)["runs"]]
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            assert self.process.poll() is None, self.log.read_text()
            return None


def eventually(check: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE / 1000
    while not check():
        assert time.monotonic() < until
        time.sleep(0.1)
