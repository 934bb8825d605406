"""Batches: from whatever a user has, always `(inputs, target)` on the device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from bpkit.core.errors import BpkitError
from bpkit.train import randomness


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
        again: it is gone over more than once, which an iterator cannot be.

    Raises:
        BpkitError: no data, tensors of different lengths, or something that cannot be iterated.
    """

    def __init__(
        self,
        data: Any,
        name: str,
        *,
        batch_size: int,
        shuffle: bool,
        seed: int | None,
        device: torch.device,
        again: bool = False,
    ) -> None:
        self.name, self.batch_size, self.shuffle, self.device = name, batch_size, shuffle, device
        self.tensors: tuple[Tensor, Tensor] | None = None
        if isinstance(data, TensorDataset):
            data = data.tensors
            if len(data) != 2:
                raise BpkitError(f"{name}: a TensorDataset of (inputs, target), not of {len(data)} tensors")
        if (
            isinstance(data, (tuple, list))
            and len(data) == 2
            and all(isinstance(each, Tensor) for each in data)
        ):
            self.tensors = (data[0], data[1])
            if 0 in (data[0].dim(), data[1].dim()):
                raise BpkitError(f"{name}: inputs and targets need a first axis, that of the examples")
            if len(data[0]) != len(data[1]):
                raise BpkitError(f"{name}: {len(data[0])} inputs but {len(data[1])} targets")
            self.batch_size = min(batch_size, max(1, len(data[0])))  # more than 64 bits cannot be split by
        elif isinstance(data, IterableDataset):
            data = DataLoader(data, batch_size=batch_size)
        elif isinstance(data, Dataset) and not isinstance(data, Iterable):
            if isinstance(data, Sized) and len(data) == 0:
                raise BpkitError(f"{name} is empty")
            data = DataLoader(data, batch_size=batch_size, shuffle=shuffle)
        elif not isinstance(data, Iterable):
            raise BpkitError(
                f"{name} must be a pair of tensors, a Dataset, a DataLoader or an iterable of "
                f"(inputs, target), not {type(data).__name__}"
            )
        if again and isinstance(data, Iterator):
            raise BpkitError(f"{name}: an iterator can be gone over once; give a list or a DataLoader")
        self.data = data
        self._began: dict[str, Any] | None = None
        if seed is None and shuffle:
            seed = int(torch.randint(2**31, ()))
        self.seed = seed or 0
        if self.count == 0:
            raise BpkitError(f"{name} is empty")

    @property
    def count(self) -> int | None:
        """Batches in an epoch; None if the data does not tell, or may be wrong about it."""
        if self.tensors is not None:
            return -(-len(self.tensors[0]) // self.batch_size)
        if isinstance(getattr(self.data, "dataset", None), IterableDataset):
            return None
        try:
            return len(self.data)
        except TypeError:
            return None

    def steps(self, epochs: int | None, steps: int | None, accumulate: int) -> int | None:
        """Optimizer steps in a run of `epochs` or `steps`; None if the data does not tell."""
        if steps is not None or epochs is None or self.count is None:
            return steps
        return epochs * -(-self.count // accumulate)

    def state(self, start: int) -> dict[str, Any]:
        """What `resume` needs to give the batches from number `start` of the epoch in progress on."""
        if self.tensors is not None:
            return {}
        return self._began if start and self._began is not None else self._random()

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from where `state` was taken."""
        self._began = state or None
        self._rewind_own()

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[tuple[Any, Any]]:
        """The batches of one epoch from number `start` on.

        Raises:
            BpkitError: there is none; one is no pair; the data raised.
        """
        if self.tensors is not None:
            yield from self._slices(*self.tensors, epoch, start)
            return
        given = start
        for batch in self._from(start):
            given += 1
            if not isinstance(batch, (tuple, list)) or len(batch) != 2:
                raise BpkitError(f"{self.name} must give (inputs, target), not {_described(batch)}")
            yield self._moved(batch[0]), self._moved(batch[1])
        if given == 0:
            once = "; an iterator can be gone over once" if isinstance(self.data, Iterator) else ""
            raise BpkitError(f"{self.name} is empty: it gives no batch{once}")

    def _from(self, start: int) -> Iterator[Any]:
        """What the data gives from number `start` on.

        A shuffling loader draws its order as it starts: that is drawn again, from the state it was drawn
        from then, to go on in the middle of an epoch.
        """
        done = start
        try:
            if start == 0:
                self._began = self._random()
                iterator = iter(self.data)
            else:
                now = randomness.capture()
                if self._began is not None:
                    randomness.restore(self._began)
                    self._rewind_own()
                iterator = iter(self.data)
                for _ in range(start):
                    next(iterator, None)
                randomness.restore(now)
            for batch in iterator:
                yield batch
                done += 1
        except BpkitError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise BpkitError(
                f"{self.name}, after {done} batches: it raised {type(error).__name__}: {reason}"
            ) from error

    def _random(self) -> dict[str, Any]:
        own = getattr(self.data, "generator", None)
        return {
            **randomness.capture(),
            "own": own.get_state() if isinstance(own, torch.Generator) else None,
        }

    def _rewind_own(self) -> None:
        own = getattr(self.data, "generator", None)
        if self._began is not None and isinstance(own, torch.Generator) and self._began["own"] is not None:
            own.set_state(self._began["own"].cpu())

    def _slices(
        self, inputs: Tensor, target: Tensor, epoch: int, start: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        if self.shuffle:
            seed = (self.seed * 1_000_003 + epoch) % 2**63
            order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))
            for index in order.to(inputs.device).split(self.batch_size)[start:]:
                yield self._moved(inputs[index]), self._moved(target[index])
        else:
            pairs = zip(inputs.split(self.batch_size), target.split(self.batch_size), strict=True)
            for number, (some, their) in enumerate(pairs):
                if number >= start:
                    yield self._moved(some), self._moved(their)

    def _moved(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return value if value.device == self.device else value.to(self.device, non_blocking=True)
        if isinstance(value, Mapping):
            return {key: self._moved(each) for key, each in value.items()}
        if isinstance(value, (tuple, list)):
            moved = [self._moved(each) for each in value]
            return type(value)(*moved) if hasattr(value, "_fields") else type(value)(moved)
        return value


def examples(batch: Any) -> int:
    """Examples in a batch, by the first axis of the first tensor in it."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.dim() else 1
    parts = (
        batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (tuple, list)) else ()
    )
    return next((examples(part) for part in parts if isinstance(part, (Tensor, Mapping, tuple, list))), 1)


def _described(batch: Any) -> str:
    """`tuple of 3`, `dict`."""
    return type(batch).__name__ + (f" of {len(batch)}" if isinstance(batch, (tuple, list)) else "")
