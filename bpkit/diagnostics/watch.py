"""`watch`: verdicts on the gradients of any model, from one line beside its loop.

    watcher = bpkit.watch(model, optimizer, logdir="runs/a")
    for inputs, target in batches:
        ...
        optimizer.step()
        watcher.loss(loss)      # optional
    print(watcher.summary())

What it does meanwhile is in `watcher.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from bpkit.core.errors import BpkitError
from bpkit.diagnostics.diagnostic import Board, Diagnostic
from bpkit.diagnostics.hooks import innermost
from bpkit.diagnostics.ranks import Ranks
from bpkit.diagnostics.schedule import Schedule
from bpkit.diagnostics.subject import Subject
from bpkit.diagnostics.watcher import Watcher
from bpkit.plugins.registry import Registry, registry
from bpkit.tensorboard import Writer


def watch(
    model: nn.Module,
    optimizer: Any = None,
    *,
    logdir: str | Path | None = None,
    writer: Board | None = None,
    scaler: GradScaler | None = None,
    every: int = 10,
    budget: float = 0.03,
    diagnostics: Iterable[str | Diagnostic] | None = None,
) -> Watcher:
    """Watch a model while something else trains it; the numbers of the training stay as they are.

    Args:
        model: any module, plain, converted, compiled or wrapped for data parallelism.
        optimizer: whose step ends a step; a wrapper that holds one as `.optimizer` will do. Without one,
            the first optimizer that steps with a parameter of `model`.
        logdir: directory for TensorBoard's logs.
        writer: in place of `logdir`, a `bpkit.tensorboard.Writer` or torch's `SummaryWriter`, which the
            caller closes.
        scaler: mixed precision's `GradScaler`, so that norms can be told without its scale; the one that
            takes the optimizer's steps is found without being named.
        every: steps from one sample to the next, after the first ten.
        budget: share of the run's time that samples may take in the long run; beyond it, `every` doubles.
        diagnostics: names of registered ones, or objects; by default all registered as default, which
            `"default"` in the list stands for.

    Of a distributed run every rank watches, and the first one writes.

    Returns:
        A `Watcher`: `findings`, `sample`, `summary()`, `close()`.

    Raises:
        BpkitError: an argument that cannot be; an unknown diagnostic, with the nearest name.
    """
    if not isinstance(model, nn.Module):
        raise BpkitError(f"watch: model must be a torch.nn.Module, not {type(model).__name__}")
    if logdir is not None and writer is not None:
        raise BpkitError("watch: give logdir or writer, not both")
    wrong = []
    if not (isinstance(every, int) and every >= 1):
        wrong.append(f"every must be a whole number of steps, at least 1, not {every!r}")
    if not (isinstance(budget, (int, float)) and 0 < budget <= 1):
        wrong.append(f"budget must be a share of the time, above 0 and at most 1, not {budget!r}")
    if wrong:
        raise BpkitError(f"watch: {'; '.join(wrong)}")
    if scaler is not None and not isinstance(scaler, GradScaler):
        raise BpkitError(f"watch: scaler must be a torch.amp.GradScaler, not {scaler!r}")
    if writer is not None and not callable(getattr(writer, "add_scalar", None)):
        raise BpkitError(f"watch: writer must be a Writer or torch's SummaryWriter, not {writer!r}")
    inner = None if optimizer is None else innermost(optimizer)
    if inner is not None and not _holds(inner, model):
        raise BpkitError(
            f"watch: the {type(inner).__name__} holds none of the model's parameters: give the one that "
            "trains it"
        )
    diagnosing = chosen(diagnostics, registry())
    ranks = Ranks()
    own = Writer(logdir) if logdir is not None and ranks.leads else None
    schedule = Schedule(every, budget, ranks)
    return Watcher(
        Subject(model, scaler),
        inner,
        diagnosing,
        schedule,
        board=writer if ranks.leads else None,
        own=own,
        ranks=ranks,
    )


def chosen(diagnostics: Iterable[str | Diagnostic] | None, known: Registry) -> list[Diagnostic]:
    """Diagnostics from names in `known` or objects; None takes all registered as default.

    Raises:
        BpkitError: an unknown name; something else than a name or a `Diagnostic`.
    """
    if diagnostics is None:
        return [spec.diagnostic() for spec in known.diagnostics if spec.default]
    if isinstance(diagnostics, str) or not isinstance(diagnostics, Iterable):
        raise BpkitError(f"watch: diagnostics must be a list, such as [{diagnostics!r}], not {diagnostics!r}")
    found: list[Diagnostic] = []
    for each in diagnostics:
        if each == "default":
            found += chosen(None, known)
        else:
            found.append(known.diagnostics[each].diagnostic() if isinstance(each, str) else each)
    for each in found:
        if not isinstance(each, Diagnostic):
            raise BpkitError(
                f"watch: diagnostics must be names or bpkit.diagnostics.Diagnostic objects, not {each!r}"
            )
    return found


def _holds(optimizer: Optimizer, model: nn.Module) -> bool:
    """Whether it has a parameter of the model, or one of the same shape: a master copy in float32."""
    if any(map(nn.parameter.is_lazy, model.parameters())):
        return True  # who knows what it will have
    own, shapes = {id(each) for each in model.parameters()}, {each.shape for each in model.parameters()}
    held = [each for group in optimizer.param_groups for each in group["params"]]
    return not held or any(id(each) in own or each.shape in shapes for each in held)
