"""`Watch` for Lightning: `Trainer(callbacks=[Watch()])`, of `lightning` and of `pytorch_lightning`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from bpkit.core.finding import Finding
from bpkit.integrations import missing
from bpkit.integrations.session import Session

if TYPE_CHECKING or ("lightning" in sys.modules or "pytorch_lightning" not in sys.modules):
    try:
        from lightning.pytorch import Callback
    except ImportError:
        try:
            from pytorch_lightning import Callback
        except ImportError:
            raise missing("lightning") from None
else:
    from pytorch_lightning import Callback


class Watch(Callback):
    """Watches a fit, with the losses that are minimised, under automatic and manual optimization.

    Args:
        validation: name by which the module logs its validation loss.
        settings: further arguments of `bpkit.watch`. `logdir` is the trainer's `log_dir` by default.

    Attributes:
        session: of the last fit; None before the first.
    """

    def __init__(self, *, validation: str = "val_loss", **settings: Any) -> None:
        super().__init__()
        self.session: Session | None = None
        self._validation, self._settings = validation, settings

    @property
    def findings(self) -> list[Finding]:
        """What was found in the last fit."""
        return [] if self.session is None else self.session.findings

    def summary(self) -> str:
        """The verdict on the last fit."""
        return "nothing seen yet: no fit has begun" if self.session is None else self.session.summary()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:  # optimizers and step are restored by now
        self._close()
        self.session = Session(
            pl_module, trainer.optimizers, trainer.log_dir, self._settings, trainer.global_step
        )

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if self.session is not None and self._validation in trainer.callback_metrics:
            self.session.validation(trainer.callback_metrics[self._validation])

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self.session is not None:
            self.session.close()
