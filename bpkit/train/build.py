"""From a configuration to objects: the data, the model, the trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from bpkit.core.errors import BpkitError, unknown_name
from bpkit.data import digits
from bpkit.diagnostics import chosen
from bpkit.plugins.registry import Registry, registry
from bpkit.train import parts
from bpkit.train.config import Model, Named, Run
from bpkit.train.trainer import Trainer

_DATA = {"digits": digits}

Place = Callable[..., AbstractContextManager[None]]


class LastStep(nn.Module):
    """The output `[n, time, features]` of a recurrent layer at its last step, `[n, features]`."""

    def forward(self, output: tuple[Tensor, Any]) -> Tensor:
        """The pair that a batch-first recurrent layer returns, to what it ends on."""
        return output[0][:, -1]


_MODULES: dict[str, type[nn.Module]] = {"LastStep": LastStep}


def data(run: Run) -> tuple[TensorDataset, TensorDataset | None, TensorDataset]:
    """Training, validation and test data; validation is spread evenly over the training part.

    Raises:
        BpkitError: unknown data, or a share outside [0, 1).
    """
    if run.data.name not in _DATA:
        with run.at("data", "name"):
            raise unknown_name("data", run.data.name, _DATA)
    if not 0 <= run.data.validation < 1:
        with run.at("data", "validation"):
            raise BpkitError(f"data.validation must lie in [0, 1), not {run.data.validation}")
    split = _DATA[run.data.name]()
    count = round(len(split.train) * run.data.validation)
    if count == 0:
        return split.train, None, split.test
    images, labels = split.train.tensors
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    held_out[torch.arange(count) * len(labels) // count] = True
    kept = ~held_out
    return (
        TensorDataset(images[kept], labels[kept]),
        TensorDataset(images[held_out], labels[held_out]),
        split.test,
    )


def model(
    config: Model, seed: int, known: Registry, at: Place = lambda *path: nullcontext()
) -> nn.Sequential:
    """The layers in order, their weights drawn from `seed`; `at(*path)` says in an error where that is set.

    Raises:
        BpkitError: an unknown layer, or arguments that it does not take.
    """
    torch.manual_seed(seed)
    layers = []
    for number, entry in enumerate(config.layers):
        with at("model", "layers", number):
            layers.append(_layer(number, entry, config.nn, known))
    if not layers:
        with at("model", "layers"):
            raise BpkitError("model.layers is empty")
    built = nn.Sequential(*layers)
    if config.init != "default":
        for module in built.modules():
            _initialise(module, config.init)
    return built


def trainer(run: Run, logdir: Path | None, *, progress: bool = True) -> Trainer:
    """The trainer of a run, with its model.

    Raises:
        BpkitError: a name, a setting or a figure that cannot be, with the line that has it.
    """
    known, train = registry(), run.train
    with run.at("train"):
        parts.check_length(train.epochs, train.steps)
    with run.at("train", "device"):
        device = parts.device(train.device)
    with run.at("train", "precision"):
        parts.precision(train.precision, device)
    with run.at("train", "metrics"):
        parts.metrics(train.metrics or ())
    with run.at("train", "diagnostics"):
        chosen(train.diagnostics, known)
    built = model(run.model, train.seed, known, run.at).to(device)
    with _part(run, run.loss, lambda name: known.losses[name].module, "loss") as part:
        loss = parts.loss(part, known)
    with _part(run, run.optimizer, lambda name: known.optimizers[name].optimizer, "optimizer") as part:
        optimizer = parts.optimizer(part, built, known)
    penalties = []
    for number, each in enumerate(run.regularizers):
        with _part(
            run, each, lambda name: known.regularizers[name].regularizer, "regularizers", number
        ) as part:
            penalties += parts.regularizers([part], known)
    with _part(run, run.schedule, parts.schedule_named, "schedule") as schedule:
        parts.scheduler(schedule, torch.optim.SGD([torch.zeros(1)], 0.1), 1)
    return Trainer(
        built,
        loss,
        optimizer,
        schedule=schedule,
        regularizers=penalties,
        logdir=logdir,
        progress=progress,
        **train.model_dump(exclude={"epochs", "steps"}),
    )


@contextmanager
def _part(
    run: Run, named: Named, make: Callable[[str], Callable[..., Any]], *path: str | int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """A part as `Trainer` takes it; an error raised inside gets the line of the setting that it is about."""
    with run.at(*path, "name"):
        known = parts.keywords(make(named.name))
    name, settings = named.part()
    unknown = [key for key in settings if key not in known]
    with run.at(*path, *unknown[:1]):
        yield name, settings


def _layer(number: int, entry: list[Any], whose: str, known: Registry) -> nn.Module:
    where = f"model.layers[{number}]"
    if not entry or not isinstance(entry[0], str):
        raise BpkitError(f"{where}: expected [name, argument, ...], not {entry!r}")
    name, *args = entry
    kwargs = args.pop() if args and isinstance(args[-1], dict) else {}
    args = [tuple(each) if isinstance(each, list) else each for each in args]
    try:
        kind = _class(name, whose, known)
    except BpkitError as error:
        raise type(error)(f"{where}: {error}") from error
    try:
        return kind(*args, **kwargs)
    except (TypeError, ValueError, RuntimeError) as error:
        if set(kwargs) - parts.keywords(kind):
            raise BpkitError(f"{where}: {parts.misfit(name, kind, kwargs, error)}") from error
        raise BpkitError(f"{where}: {name} cannot take {entry[1:]}: {error}") from error


def _class(name: str, whose: str, known: Registry) -> type[nn.Module]:
    if name in known.layers:
        spec = known.layers[name]
        if whose == "bpkit" or spec.reference is None:
            return spec.module
        return spec.reference
    other = _MODULES.get(name) or getattr(nn, name, None)
    if isinstance(other, type) and issubclass(other, nn.Module):
        return other
    theirs = [each for each in dir(nn) if isinstance(getattr(nn, each), type)]
    raise unknown_name("layer", name, {*known.layers.names(), *_MODULES, *theirs})


def _initialise(module: nn.Module, scheme: str) -> None:
    """He et al., 2015, eq. (14), or Glorot & Bengio, 2010, eq. (16); biases are zero."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        if scheme == "he":
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        else:
            nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
