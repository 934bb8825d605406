"""`Trainer`: a training loop put together from plugins, short enough to read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from bpkit.core.errors import BpkitError
from bpkit.diagnostics import Finding, Watcher, chosen, watch
from bpkit.plugins.hookspecs import EVENTS
from bpkit.plugins.registry import registry
from bpkit.tensorboard import Writer
from bpkit.train import explain, parts, state
from bpkit.train.batches import Batches
from bpkit.train.checkpoint import Checkpoints
from bpkit.train.evaluation import evaluate
from bpkit.train.journal import Journal
from bpkit.train.metrics import is_better
from bpkit.train.progress import Display, display, figures
from bpkit.train.signals import interruptible


class Trainer:
    """Trains a model: names of registered parts or objects, anywhere.

    Args:
        model: any module; moved to `device`.
        loss: a registered loss, `(name, settings)`, or a callable `(output, target) -> scalar`.
        optimizer: a registered optimizer, `(name, settings)`, a factory `(parameters) -> optimizer`, or one.
        regularizers: names, `(name, settings)` or objects; their gradients are added before clipping.
        diagnostics: names or objects for the watch; None takes the default ones, `[]` watches nothing.
        plugins: names of plugins or objects, for this trainer alone.
        metrics: names or functions, of the validation data; None takes the accuracy for cross-entropy.
        schedule: `"constant"`, `"linear"`, `"cosine"`, `"step"`, `(name, settings)`, or a factory.
        logdir: where TensorBoard's logs, `last.pt` and `best.pt` go; None writes nothing.
        device: `"auto"`, or any that torch has here.
        precision: `"fp32"`, `"bf16"` or `"fp16"` (accelerators only), by autocast.
        accumulate: batches a step.
        clip: largest norm of the whole gradient.
        batch_size: of data that is not batched yet.
        seed: seeds torch at the start of `fit`; None leaves its generator as it is.
        monitor: which validation figure `best.pt` is the best of, `"loss"` or a metric.
        log_every: steps between two logged losses.
        progress: show a bar, or plain lines where stderr is no terminal.

    Attributes:
        step: optimizer steps taken.
        epoch: whole epochs done.
        findings: verdicts of the watch.
        writer: the TensorBoard writer during `fit`, None without a logdir.
        history: the validation figures after each epoch.

    Raises:
        BpkitError: a name that is not registered, settings that do not go together.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Any = "cross_entropy",
        optimizer: Any = "adamw",
        *,
        regularizers: Iterable[Any] = (),
        diagnostics: Iterable[Any] | None = None,
        plugins: Iterable[object] = (),
        metrics: Iterable[Any] | None = None,
        schedule: Any = None,
        logdir: str | Path | None = None,
        device: str | torch.device = "auto",
        precision: str = "fp32",
        accumulate: int = 1,
        clip: float | None = None,
        batch_size: int = 64,
        seed: int | None = None,
        monitor: str = "loss",
        log_every: int = 10,
        progress: bool = True,
    ) -> None:
        parts.check_numbers(accumulate, batch_size, log_every, clip, seed)
        if not isinstance(model, nn.Module):
            raise BpkitError(f"model must be a torch.nn.Module object, not {model!r}")
        self.registry = registry().extended(*parts.listed("plugins", plugins))
        self.device = parts.device(device)
        self.dtype = parts.precision(precision, self.device)
        self.model = model.to(self.device)
        self.loss = parts.loss(loss, self.registry)
        if isinstance(self.loss, nn.Module):
            self.loss = self.loss.to(self.device)
        self.optimizer = parts.optimizer(optimizer, model, self.registry)
        self.regularizers = parts.regularizers(regularizers, self.registry)
        self.diagnostics = None if diagnostics is None else parts.listed("diagnostics", diagnostics)
        chosen(self.diagnostics, self.registry)
        if metrics is None:
            metrics = ("accuracy",) if isinstance(self.loss, nn.CrossEntropyLoss) else ()
        self.metrics = parts.metrics(metrics)
        if monitor not in ("loss", *self.metrics):
            raise BpkitError(
                f"monitor {monitor!r} is none of the figures: {', '.join(('loss', *self.metrics))}"
            )
        self.scaler = GradScaler(self.device.type, enabled=precision == "fp16")
        self.logdir = parts.logdir(logdir)
        self.schedule, self.accumulate, self.clip = schedule, accumulate, clip
        self.batch_size, self.seed, self.monitor = batch_size, seed, monitor
        self.log_every, self.progress = log_every, progress
        self.position = state.Position()
        self.scheduler: Any = None
        self.watcher: Watcher | None = None
        self.writer: Writer | None = None
        self.history: list[dict[str, float]] = []
        self.interrupted = False
        self._parameters: list[nn.Parameter] = []
        self._went_well = False
        self._stepped = 0  # batches of the epoch in progress that steps have been taken on
        self._journal = Journal(None, log_every)
        self._checkpoints = Checkpoints(self.logdir)
        self._on: Mapping[str, tuple[Callable[..., Any], ...]] = dict.fromkeys(EVENTS, ())

    @property
    def step(self) -> int:
        return self.position.step

    @property
    def epoch(self) -> int:
        return self.position.epoch

    @property
    def findings(self) -> list[Finding]:
        return self.watcher.findings if self.watcher is not None else []

    def fit(
        self,
        train: Any,
        validation: Any = None,
        *,
        epochs: int | None = None,
        steps: int | None = None,
        resume: bool = False,
    ) -> Trainer:
        """Train until `epochs` or `steps` (counted from the run's beginning) are done.

        Args:
            train: tensors `(inputs, target)`, a `Dataset`, a `DataLoader`, or an iterable of batches.
            validation: likewise; evaluated after each epoch, and where `steps` end in the middle of one.
            epochs: passes over `train`.
            steps: optimizer steps, in place of epochs.
            resume: go on from `last.pt` in the logdir.

        Returns:
            The trainer itself. Ctrl-C ends the step in progress, keeps the checkpoint and sets
            `interrupted`.

        Raises:
            BpkitError: empty data, shapes that do not fit, a loss that is not finite, a logdir that holds
                another run, a checkpoint that cannot be read. What was saved before stays.
        """
        parts.check_length(epochs, steps)
        held_out = (
            None if validation is None else self._held_out(validation, "validation data", again=epochs != 1)
        )
        batches = self._begin(train, epochs, steps, resume)
        position, total = self.position, batches.steps(epochs, steps, self.accumulate)

        def done() -> bool:
            return position.step >= steps if steps else position.epoch >= (epochs or 0)

        with interruptible() as interrupt, display(total, self.step, shown=self.progress) as shown:
            try:
                self._call("bpkit_fit_start")
                while not interrupt.asked and not done():
                    for inputs, target in batches.epoch(position.epoch, position.batch):
                        self._batch(inputs, target)
                        if position.batch % self.accumulate or position.batch == batches.count:
                            continue
                        self._step(shown)
                        if interrupt.asked or position.step == steps:
                            break
                    else:
                        if position.batch > self._stepped:
                            self._step(shown)
                        self._epoch_end(held_out, shown)
                self.interrupted = interrupt.asked
                if position.batch and not self.interrupted and held_out is not None:
                    shown.line(f"step {self.step}  {figures(self._validate(held_out))}")
                self._save("last.pt")
            finally:
                self._end()
        return self

    def _batch(self, inputs: Any, target: Any) -> None:
        """Forward and backward of one batch."""
        self._call("bpkit_batch", inputs=inputs, target=target)
        if self.watcher is not None:
            self.watcher.closure = lambda: self._forward(inputs, target)[1]
        output, loss = self._forward(inputs, target)
        self._call("bpkit_after_forward", output=output, loss=loss)
        if not self._journal.note(loss):
            self._call("bpkit_nonfinite", loss=loss)
            raise explain.nonfinite(loss.item(), self.step + 1, self.epoch + 1, self.findings)
        if not loss.requires_grad:
            raise explain.no_gradient(self.loss)
        self.scaler.scale(loss / self.accumulate if self.accumulate > 1 else loss).backward()
        self.position.batch += 1
        self._loss = loss

    def _step(self, shown: Display) -> None:
        """A step on what `accumulate` batches, or the last ones of an epoch, have gathered."""
        self.scaler.unscale_(self.optimizer)
        for regularizer in self.regularizers:
            regularizer.add_gradient_(self._parameters)
        self._call("bpkit_after_backward")
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self._parameters, self.clip)
        self._call("bpkit_before_step")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scheduler is not None:
            self.scheduler.step()
        self.position.step += 1
        self._stepped = self.position.batch
        if self.watcher is not None:
            self.watcher.loss(self._loss)
        self._journal.log(self.step, self.optimizer.param_groups[0]["lr"])
        self._call("bpkit_after_step")
        self.optimizer.zero_grad()
        shown.update(self.step, self._journal.loss)
        if self._checkpoints.overdue:
            self._save("last.pt")

    def _forward(self, inputs: Any, target: Any) -> tuple[Any, Tensor]:
        """Output and loss; what torch warns of in the first batch comes once that has gone well."""
        with nullcontext() if self._went_well else explain.warnings_held(), self._precision():
            try:
                output = self.model(inputs)
            except explain.USER_ERRORS as error:
                raise explain.forward_error(self.model, inputs, error) from error
            try:
                loss = self.loss(output, target)
            except explain.USER_ERRORS as error:
                raise explain.loss_error(self.loss, output, target, error) from error
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise explain.loss_value(self.loss, loss)
        self._went_well = True
        return output, loss

    def _precision(self) -> AbstractContextManager[object]:
        """Autocast in `precision`; nothing at all in fp32, where entering it takes 10 µs."""
        return nullcontext() if self.dtype is None else torch.autocast(self.device.type, self.dtype)

    def evaluate(self, data: Any) -> dict[str, float]:
        """Loss and metrics over `data`, means over its examples; the model's mode is put back.

        Raises:
            BpkitError: empty data, or shapes that do not fit.
        """
        batches = data if isinstance(data, Batches) else self._held_out(data, "data")
        metrics = evaluate(self.model, self._forward, self.metrics, batches)
        self._call("bpkit_evaluate_end", metrics=metrics)
        return metrics

    def _begin(self, train: Any, epochs: int | None, steps: int | None, resume: bool) -> Batches:
        """Everything that can be wrong before the first step is found here, before anything is written."""
        if not resume and self.step == 0:
            self._checkpoints.refuse_another_run()
        saved = self._checkpoints.resume(self.device) if resume else None
        if self.seed is not None:
            torch.manual_seed(self.seed)
        size, seed = self.batch_size, self.seed
        again = (epochs or 1) > 1
        batches = Batches(
            train, "training data", batch_size=size, shuffle=True, seed=seed, device=self.device, again=again
        )
        if self.scheduler is None:
            total = batches.steps(epochs, steps, self.accumulate)
            self.scheduler = parts.scheduler(self.schedule, self.optimizer, total)
        self._held = (self.model, self.optimizer, self.scheduler, self.scaler, batches)
        if saved is not None:
            self.position = state.restore(saved, *self._held)
        self._stepped = self.position.batch
        self.position.seed = batches.seed
        self.interrupted = False
        self.model.train()
        self.optimizer.zero_grad()
        self._parameters = [each for each in self.model.parameters() if each.requires_grad]
        self._on = {event: self.registry.listeners(event) for event in EVENTS}
        self.writer = None if self.logdir is None else Writer(self.logdir)
        self._journal = Journal(self.writer, self.log_every)
        if self.diagnostics is None or self.diagnostics:
            self.watcher = watch(
                self.model,
                self.optimizer,
                writer=self.writer,
                scaler=self.scaler if self.scaler.is_enabled() else None,
                diagnostics=chosen(self.diagnostics, self.registry),
            )
            self.watcher.step = self.step
        return batches

    def _end(self) -> None:
        try:
            self._call("bpkit_fit_end")
        finally:
            if self.watcher is not None:
                self.watcher.close()
            self._journal.close()
            self.writer = None

    def _epoch_end(self, held_out: Batches | None, shown: Display) -> None:
        self.position.epoch += 1
        self.position.batch = self._stepped = 0
        values = {"loss": self._journal.loss}
        if held_out is not None:
            values.update(self._validate(held_out))
        if self._checkpoints.due:
            self._save("last.pt")
        shown.line(f"epoch {self.epoch}  step {self.step}  {figures(values)}")

    def _validate(self, held_out: Batches) -> dict[str, float]:
        """Evaluate, note the figures everywhere, keep the best model; the figures by the name to show."""
        found = self.evaluate(held_out)
        self.history.append(found)
        self._journal.validated(self.step, found)
        if self.watcher is not None:
            self.watcher.validation(found["loss"])
        if is_better(self.monitor, found[self.monitor], self.position.best):
            self.position.best = found[self.monitor]
            self._save("best.pt")
        return {f"validation {name}": value for name, value in found.items()}

    def _save(self, name: str) -> None:
        path = self._checkpoints.save(name, lambda: state.capture(self.position, *self._held))
        if path is not None:
            self._call("bpkit_checkpoint", path=path)

    def _held_out(self, data: Any, name: str, *, again: bool = False) -> Batches:
        size = max(self.batch_size, 256)
        return Batches(data, name, batch_size=size, shuffle=False, seed=None, device=self.device, again=again)

    def _call(self, event: str, **arguments: Any) -> None:
        for listener in self._on[event]:
            listener(trainer=self, **arguments)
