"""`Watch` for Ignite: `Watch().attach(trainer, model, optimizer)`."""

from __future__ import annotations

from typing import Any

from torch import nn

from bpkit.core.finding import Finding
from bpkit.integrations import missing
from bpkit.integrations.session import Session

try:
    from ignite.engine import Engine, Events
except ImportError:
    raise missing("ignite") from None


class Watch:
    """Watches what a trainer engine does, with the losses that its steps call `backward` on.

    Args:
        settings: further arguments of `bpkit.watch`. An engine has no directory: without `logdir` nothing
            is written.

    Attributes:
        session: of the last run; None before the first.
    """

    def __init__(self, **settings: Any) -> None:
        self.session: Session | None = None
        self._settings = settings

    @property
    def findings(self) -> list[Finding]:
        """What was found in the last run."""
        return [] if self.session is None else self.session.findings

    def summary(self) -> str:
        """The verdict on the last run."""
        return "nothing seen yet: no run has begun" if self.session is None else self.session.summary()

    def attach(self, engine: Engine, model: nn.Module, *optimizers: Any) -> Watch:
        """Watch every run of `engine`, from its start to its end.

        Args:
            engine: the trainer.
            model: what it trains.
            optimizers: one or several.
        """
        engine.add_event_handler(Events.STARTED, self._start, model, optimizers)
        for event in (Events.COMPLETED, Events.TERMINATE):  # not INTERRUPT, after which a run goes on
            engine.add_event_handler(event, self._close)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._fail)
        return self

    def attach_validation(self, evaluator: Engine, metric: str = "loss") -> Watch:
        """Take the validation loss from a metric of an engine that evaluates."""

        def evaluated(engine: Engine) -> None:
            if self.session is not None and metric in engine.state.metrics:
                self.session.validation(engine.state.metrics[metric])

        evaluator.add_event_handler(Events.COMPLETED, evaluated)
        return self

    def _start(self, engine: Engine, model: nn.Module, optimizers: tuple[Any, ...]) -> None:
        self._close()
        self.session = Session(model, optimizers, None, self._settings)

    def _fail(self, engine: Engine, error: BaseException) -> None:
        self._close()
        # Ignite takes an exception that has a handler for handled. If it has no other one, it is not.
        if len(engine._event_handlers[Events.EXCEPTION_RAISED]) == 1:
            raise error

    def _close(self) -> None:
        if self.session is not None:
            self.session.close()
