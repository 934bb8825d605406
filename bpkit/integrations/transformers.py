"""`Watch` for Hugging Face's Trainer: `Trainer(..., callbacks=[Watch()])`."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from weakref import finalize

from bpkit.core.finding import Finding
from bpkit.integrations import missing
from bpkit.integrations.session import Session

try:
    from transformers import TrainerCallback
except ImportError:
    raise missing("transformers") from None


class Watch(TrainerCallback):
    """Watches a training, with the losses that are minimised and those of evaluations.

    The Trainer tells no callback of an exception: after one, the logs are finished when the next training
    begins, when the callback goes, or when Python ends.

    Args:
        validation: name of the validation loss among the metrics of an evaluation.
        settings: further arguments of `bpkit.watch`. `logdir` is `bpkit` in `output_dir` by default.

    Attributes:
        session: of the last training; None before the first.
    """

    def __init__(self, *, validation: str = "eval_loss", **settings: Any) -> None:
        self.session: Session | None = None
        self._validation, self._settings = validation, settings
        self._finish: finalize[..., Watch] | None = None

    @property
    def findings(self) -> list[Finding]:
        """What was found in the last training."""
        return [] if self.session is None else self.session.findings

    def summary(self) -> str:
        """The verdict on the last training."""
        return "nothing seen yet: no training has begun" if self.session is None else self.session.summary()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._close()
        logdir = Path(args.output_dir) / "bpkit"
        self.session = Session(
            kwargs["model"], [kwargs["optimizer"]], logdir, self._settings, state.global_step
        )
        self._finish = finalize(self, self.session.close)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        loss = kwargs.get("metrics", {}).get(self._validation)
        if self.session is not None and loss is not None:
            self.session.validation(loss)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._close()

    def _close(self) -> None:
        if self.session is not None:
            self.session.close()
        if self._finish is not None:
            self._finish.detach()  # it would keep the model
            self._finish = None
