"""The real data that the clinic trains on: the digits that come with bpkit, and sets from `--data DIR`.

Each set is a `Task` with a fixed split; nothing of a directory is copied anywhere. DIR is laid out so:
`mnist10k/t10k-*.gz` (first 8,000 train), `tinyshakespeare/input.txt` (first 90 % train),
`fsdd/recordings/*.wav` (indices 0 to 4 test) and `multi30k/{train,val}.en.gz`.
"""

from __future__ import annotations

import gzip
import wave
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bpkit.core.errors import BpkitError
from bpkit.data import digits

CHARACTERS = 32  # a window of the plays
WORDS = 6  # of a caption, from which the next one is guessed
VOCABULARY = 3000
BANDS, FRAMES = 24, 24  # of a spoken digit

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(output: Tensor, targets: Tensor) -> Tensor:
    """Mean over every predicted class: `output` [..., classes], `targets` [...]."""
    return F.cross_entropy(output.flatten(0, -2), targets.flatten())


def accuracy(output: Tensor, targets: Tensor) -> float:
    """Share of the predicted classes that are right."""
    return (output.argmax(-1) == targets).float().mean().item()


def explained(output: Tensor, targets: Tensor) -> float:
    """R²: the share of the targets' variance that the output explains."""
    return 1 - ((output - targets).square().mean() / (targets - targets.mean(0)).square().mean()).item()


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is learnt: cases to train on, cases held out, the loss, and a score (the higher the better)."""

    inputs: Tensor
    targets: Tensor
    held_inputs: Tensor
    held_targets: Tensor
    classes: int
    loss: Loss = cross_entropy
    score: Callable[[Tensor, Tensor], float] = accuracy


def load(name: str, directory: Path | None) -> Task:
    """The data set `name` as it is read, before a recipe shapes it.

    Raises:
        BpkitError: it needs a directory that was not given, or its files are not there.
    """
    if name == "digits":
        return _digits()
    where = None if directory is None else directory / FOLDERS[name]
    if where is None or not where.is_dir():
        raise BpkitError(f"clinic: {name} is not in {directory or 'any directory: give --data DIR'}")
    try:
        return READERS[name](where)
    except (OSError, ValueError, IndexError) as error:
        raise BpkitError(f"clinic: {where} cannot be read as {name}: {error}") from error


def available(directory: Path | None) -> frozenset[str]:
    """Names of the data sets that `load` finds."""
    found = {
        name for name, folder in FOLDERS.items() if directory is not None and (directory / folder).is_dir()
    }
    return frozenset({"digits", *found})


@lru_cache
def _digits() -> Task:
    split = digits()
    images, labels = split.train.tensors
    held_images, held_labels = split.test.tensors
    return Task(inputs=images, targets=labels, held_inputs=held_images, held_targets=held_labels, classes=10)


@lru_cache
def _mnist(where: Path) -> Task:
    def read(name: str, header: int) -> Tensor:
        raw = gzip.decompress((where / name).read_bytes())
        return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=header).copy())

    images = read("t10k-images-idx3-ubyte.gz", 16).view(-1, 1, 28, 28).float() / 255
    return _split(images, read("t10k-labels-idx1-ubyte.gz", 8).long(), 8000, classes=10)


@lru_cache
def _plays(where: Path) -> Task:
    """Windows of characters; the target is each one's next."""
    text = (where / "input.txt").read_text()
    known = {character: number for number, character in enumerate(sorted(set(text)))}
    codes = torch.tensor([known[character] for character in text[: len(text) // 10]])
    codes = torch.cat([codes, torch.tensor([known[each] for each in text[-len(text) // 50 :]])])
    windows = codes.unfold(0, CHARACTERS + 1, 16)
    train = len(windows) * 5 // 6
    return _split(windows[:, :-1], windows[:, 1:], train, classes=len(known), most=300)


@lru_cache
def _captions(where: Path) -> Task:
    """Six words of an English caption; the target is the next. Rare words share the token 0."""
    train, held = (_sentences(where / f"{part}.en.gz") for part in ("train", "val"))
    counts = Counter(word for sentence in train for word in sentence)
    known = {word: number for number, (word, _) in enumerate(counts.most_common(VOCABULARY - 1), 1)}

    def windows(sentences: Iterable[list[str]], most: int) -> Tensor:
        coded = [[known.get(word, 0) for word in sentence] for sentence in sentences]
        rows = [row[at : at + WORDS + 1] for row in coded for at in range(0, len(row) - WORDS, 3)]
        return torch.tensor(rows[:most])

    cases = torch.cat([windows(train, 20000), windows(held, 1000)])
    return _split(cases[:, :-1], cases[:, -1], 20000, classes=VOCABULARY)


def _sentences(path: Path) -> list[list[str]]:
    return [line.lower().split() for line in gzip.decompress(path.read_bytes()).decode().splitlines()]


@lru_cache
def _spoken(where: Path) -> Task:
    """Log spectra of spoken digits, frames × bands, each recording stretched over the same frames."""
    paths = sorted((where / "recordings").glob("*.wav"))
    held = torch.tensor([int(path.stem.rsplit("_", 1)[1]) < 5 for path in paths])
    spectra = torch.stack([_spectrum(path) for path in paths])
    spectra = (spectra - spectra[~held].mean()) / spectra[~held].std()
    labels = torch.tensor([int(path.stem.split("_", 1)[0]) for path in paths])
    return _split(
        torch.cat([spectra[~held], spectra[held]]),
        torch.cat([labels[~held], labels[held]]),
        int((~held).sum()),
        classes=10,
    )


def _spectrum(path: Path) -> Tensor:
    with wave.open(str(path)) as file:
        raw = np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 2**15
    power = torch.stft(
        torch.from_numpy(raw), 256, 128, window=torch.hann_window(256), return_complex=True
    ).abs()
    bands = F.adaptive_avg_pool2d((power + 1e-4).log()[None], (BANDS, FRAMES))
    return bands[0].T.contiguous()


def _split(inputs: Tensor, targets: Tensor, train: int, *, classes: int, most: int = 1000) -> Task:
    """The first `train` cases to train on, `most` of the others held out, spread over them evenly."""
    held = torch.arange(train, len(inputs))
    held = held[:: max(1, len(held) // most)]
    return Task(
        inputs=inputs[:train],
        targets=targets[:train],
        held_inputs=inputs[held],
        held_targets=targets[held],
        classes=classes,
    )


READERS: dict[str, Callable[[Path], Task]] = {
    "mnist": _mnist,
    "plays": _plays,
    "spoken": _spoken,
    "captions": _captions,
}
FOLDERS = {"mnist": "mnist10k", "plays": "tinyshakespeare", "spoken": "fsdd", "captions": "multi30k"}
