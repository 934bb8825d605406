"""`Watched`: a model that was found in a script, and what the watch has said of it."""

from __future__ import annotations

from pathlib import Path
from weakref import ReferenceType, ref

from torch import nn
from torch.optim import Optimizer

from bpkit.core.finding import Finding
from bpkit.diagnostics.script.losses import Tally
from bpkit.diagnostics.watcher import Watcher


class Watched:
    """A watcher while its model trains; its verdict, without the model, when that is over.

    Args:
        name: a name for people, of no other model of the run.
        logdir: where its logs go.
        optimizer: whose steps are its steps.

    Attributes:
        watcher: the watch, None when it is over.
        tally: of its losses.
        passed: steps that other optimizers have taken with this model since its own did.
    """

    def __init__(self, name: str, logdir: Path | None, optimizer: ReferenceType[Optimizer]) -> None:
        self.name, self.logdir, self.optimizer = name, logdir, optimizer
        self.watcher: Watcher | None = None
        self.tally = Tally()
        self.passed = 0
        self._model: nn.Module | None = None
        self._last: ReferenceType[nn.Module] | None = None
        self._verdict: tuple[int, list[Finding], str] = (0, [], "")

    def hold(self, model: nn.Module, watcher: Watcher) -> None:
        """It is this model that is watched now."""
        self._model, self._last, self.watcher = model, ref(model), watcher

    def model(self) -> nn.Module | None:
        """The model, as long as somebody needs it."""
        return None if self._last is None else self._last()

    @property
    def steps(self) -> int:
        return self._verdict[0] if self.watcher is None else self.watcher.step

    @property
    def findings(self) -> list[Finding]:
        return self._verdict[1] if self.watcher is None else self.watcher.findings

    @property
    def summary(self) -> str:
        return self._verdict[2] if self.watcher is None else self.watcher.summary()

    @property
    def over(self) -> bool:
        """Whether no more steps are to come: its optimizer is gone, or the watch was closed."""
        return self.watcher is None or self.optimizer() is None

    def close(self) -> None:
        """Finish the logs; keep the verdict and let the model go."""
        if self.watcher is not None:
            self.watcher.close()
            self._verdict = (self.steps, list(self.findings), self.summary)
            self.watcher = self._model = None
