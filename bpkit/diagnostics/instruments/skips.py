"""`Skips`: gradients that are not finite, backward after backward, where no step is taken on them.

So it looks when a loss scaler skips every step: torch's hooks on steps, by which a watch lives, see nothing.
One step that is skipped, or the dozen with which a scale is found, are in order, and a batch may be split
into many; so nothing is looked at until there have been more calls of the model than a step takes. Then a
gradient at either end of the model is looked at in each backward, without waiting for the device.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from bpkit.diagnostics.hooks import Handle
from bpkit.diagnostics.subject import Subject

CALLS = 8  # without a step, or twice those of any step before, until backwards are looked at
ROW = 4  # backwards that are not finite, one after another
LOWEST = 2.0**-10  # a loss scale below which it is not to blame for what is too large


class Skips:
    """Counts what happens between two steps.

    Args:
        subject: the model.
        watched: parameters that show what is not finite, small ones.
    """

    def __init__(self, subject: Subject, watched: Callable[[], Sequence[nn.Parameter]]) -> None:
        self._subject, self._watched = subject, watched
        self._calls = self._most = self._row = 0
        self._hooks: list[Handle] = []
        self._backward = -1
        self._verdicts: list[tuple[Tensor, torch.cuda.Event | None]] = []  # of the backwards, if they are bad
        self._bad: Tensor | None = None
        self._scales: dict[int, float] = {}  # when the first of the row was found

    @property
    def suspected(self) -> bool:
        """Whether backwards are looked at."""
        return bool(self._hooks)

    def called(self) -> int:
        """The model is called once more: how many backwards in a row were not finite, as far as is known."""
        self._calls += 1
        if not self._hooks:
            if self._calls > max(CALLS, 2 * self._most):
                ends = list(self._watched())
                self._hooks = [each.register_hook(self._arrived) for each in {*ends[:1], *ends[-1:]}]
            return 0
        self._close_backward()
        while self._verdicts and (self._verdicts[0][1] is None or self._verdicts[0][1].query()):
            self._row = self._row + 1 if bool(self._verdicts.pop(0)[0]) else 0
            if self._row == 1:
                self._scales = _scales()
            if not self._row:
                self._calls = 0
                self.close()
                break
        return self._row

    def stepped(self) -> None:
        """A step is taken."""
        self._most = max(self._most, self._calls)
        self._calls = self._row = 0
        self.close()

    def close(self) -> None:
        """Take the hooks away."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._verdicts, self._bad = [], [], None

    def scale(self) -> float | None:
        """The loss scale by now; of a scaler that is not known, where one of all has lowered it."""
        if self._subject.scaler is not None:
            return self._subject.scaler.get_scale()
        fallen = [now for each, now in _scales().items() if now < self._scales.get(each, now)]
        return fallen[0] if len(fallen) == 1 else None

    def _arrived(self, grad: Tensor) -> None:
        """What this backward adds to a gradient, which may hold that of others already."""
        if grad.is_sparse or torch.compiler.is_compiling():
            return
        backward = torch._C._current_graph_task_id()
        if backward != self._backward:
            self._close_backward()
            self._backward = backward
        bad = ~grad.detach().sum().isfinite()
        self._bad = bad if self._bad is None else self._bad | bad.to(self._bad.device)

    def _close_backward(self) -> None:
        bad, self._bad = self._bad, None
        if bad is None:
            return
        if bad.device.type != "cuda":
            self._verdicts.append((bad, None))
            return
        host = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(bad, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._verdicts.append((host, event))


def _scales() -> dict[int, float]:
    """Of all scalers in the process: one that has taken no step cannot be told by that."""
    scalers = [each for each in gc.get_objects() if issubclass(type(each), GradScaler)]
    return {id(each): each.get_scale() for each in scalers if each.is_enabled()}
