"""Batches: from whatever a user has, always `(inputs, target)` on the device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from bpkit.core.errors import BpkitError


class Batches:
    """Goes over data in batches, in an order that a seed and the epoch's number decide.

    Args:
        data: a pair of tensors or a `TensorDataset` (sliced, which is quick), a `Dataset`, a `DataLoader`
            (used as it is), or any re-iterable of `(inputs, target)`.
        name: what to call the data in errors.
        batch_size: of what is not batched yet.
        shuffle: draw a new order each epoch.
        seed: of that order; None draws one from torch's generator.
        device: where the batches go.

    Raises:
        BpkitError: no data, tensors of different lengths, or something that cannot be iterated.
    """

    def __init__(
        self, data: Any, name: str, *, batch_size: int, shuffle: bool, seed: int | None, device: torch.device
    ) -> None:
        self.name, self.batch_size, self.shuffle, self.device = name, batch_size, shuffle, device
        self.tensors: tuple[Tensor, Tensor] | None = None
        if isinstance(data, TensorDataset):
            data = data.tensors
        if (
            isinstance(data, (tuple, list))
            and len(data) == 2
            and all(isinstance(each, Tensor) for each in data)
        ):
            self.tensors = (data[0], data[1])
            if len(data[0]) != len(data[1]):
                raise BpkitError(f"{name}: {len(data[0])} inputs but {len(data[1])} targets")
        elif isinstance(data, Dataset) and not isinstance(data, Iterable):
            if isinstance(data, Sized) and len(data) == 0:
                raise BpkitError(f"{name} is empty")
            data = DataLoader(data, batch_size=batch_size, shuffle=shuffle)
        elif not isinstance(data, Iterable):
            raise BpkitError(
                f"{name} must be a pair of tensors, a Dataset, a DataLoader or an iterable of "
                f"(inputs, target), not {type(data).__name__}"
            )
        self.data = data
        if seed is None and shuffle:
            seed = int(torch.randint(2**31, ()))
        self.seed = seed or 0
        if self.count == 0:
            raise BpkitError(f"{name} is empty")

    @property
    def count(self) -> int | None:
        """Batches in an epoch; None if the data does not tell."""
        if self.tensors is not None:
            return -(-len(self.tensors[0]) // self.batch_size)
        return len(self.data) if isinstance(self.data, Sized) else None

    def steps(self, epochs: int | None, steps: int | None, accumulate: int) -> int | None:
        """Optimizer steps in a run of `epochs` or `steps`; None if the data does not tell."""
        if steps is not None or epochs is None or self.count is None:
            return steps
        return epochs * -(-self.count // accumulate)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[tuple[Any, Any]]:
        """The batches of one epoch from number `start` on."""
        if self.tensors is not None:
            yield from self._slices(*self.tensors, epoch, start)
            return
        for number, batch in enumerate(self.data):
            if number >= start:
                if not isinstance(batch, (tuple, list)) or len(batch) != 2:
                    raise BpkitError(f"{self.name} must give (inputs, target), not {type(batch).__name__}")
                yield self._moved(batch[0]), self._moved(batch[1])

    def _slices(
        self, inputs: Tensor, target: Tensor, epoch: int, start: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            order = torch.randperm(len(inputs), generator=generator).to(inputs.device)
            for index in order.split(self.batch_size)[start:]:
                yield self._moved(inputs[index]), self._moved(target[index])
        else:
            pairs = zip(inputs.split(self.batch_size), target.split(self.batch_size), strict=True)
            for number, (some, their) in enumerate(pairs):
                if number >= start:
                    yield self._moved(some), self._moved(their)

    def _moved(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return value if value.device == self.device else value.to(self.device, non_blocking=True)
        if isinstance(value, (tuple, list)):
            return type(value)(self._moved(each) for each in value)
        return value
