"""Whether a run has surely learned nothing, or something, told from its losses: verdicts rest on it."""

from __future__ import annotations

from math import inf, log, sqrt
from statistics import fmean

from bpkit.diagnostics.history import START, Series
from bpkit.diagnostics.sample import Sample

FEWEST = 12  # losses, or errors at the output where no loss is given
LEARNED = 0.1  # the share of its start that a loss has lost where something is learned
SOME = 0.03  # a smaller share is learned by the output's bias alone
HALF = 0.5  # of the first loss: a run that has lost more than that has learned
CHANCE = 0.05  # around ln C, the cross-entropy of guessing among C classes
CREEP = 0.01  # of it, from one quarter of a run to the next: less is how a loss settles there


def learned_nothing(sample: Sample) -> bool:
    """Whether the loss, or else the error at the output, surely stands where it stood; False where unknown.

    Surely: twice the standard error from what something learned would be, so that a noisy loss takes longer
    to condemn. The loss of a classifier that still guesses, ln C for C outputs, is nothing learned, wherever
    it came down from: large initial weights make confident mistakes, which are soon unlearned.
    """
    series = _series(sample)
    if series.count < FEWEST or not series.blocks:
        return False
    if guesses(sample):
        return True
    now, error = _late(series)
    scale = abs(fmean(series.first))
    if _gain(series) > max(SOME * scale, 3 * _unsure(series)):
        return False
    blocks = [value for _, value in series.blocks]
    early = blocks[: max(1, len(blocks) // 8)]
    unsure = error + series.noise / sqrt(len(early) * series.size)
    return fmean(early) - now + 2 * unsure < LEARNED * scale


def learned_something(sample: Sample) -> bool:
    """Whether the loss, or else the error at the output, has come down by a good part, and below guessing."""
    progress = sample.history.progress
    return progress is not None and progress >= LEARNED and not guesses(sample)


def lost(sample: Sample) -> bool:
    """Whether the loss surely stands above where it started."""
    series = _series(sample)
    return series.count >= FEWEST and bool(series.blocks) and _gain(series) < -3 * _unsure(series)


def guesses(sample: Sample) -> bool:
    """Whether the loss of late is surely that of guessing among the outputs of the last layer.

    It has to stand there: a loss that is falling passes by.
    """
    series = sample.history.loss
    if not series.blocks:
        return False
    now, error = _late(series)
    infos = sample.network.parameters
    shapes = [infos[index].shape for index in sample.order or range(len(infos)) if infos[index].matrix]
    classes = shapes[-1][0] if shapes else 1
    chance = log(classes) if classes > 1 else -inf
    return abs(now - chance) + 2 * error < CHANCE * chance and not _falls(series, CREEP * chance)


def stalled(sample: Sample) -> bool:
    """Whether the loss has not come down in the second half of the run, and most of it is still there."""
    series, progress = _series(sample), sample.history.progress
    values = [value for _, value in series.blocks]
    if len(values) < 4 * START or progress is None or progress > HALF:
        return False
    half = len(values) // 2
    middle, late = values[half // 2 : half], values[half:]
    unsure = series.noise / sqrt(series.size) * sqrt(1 / len(middle) + 1 / len(late))
    return fmean(late) > fmean(middle) - 2 * unsure


def _series(sample: Sample) -> Series:
    return sample.history.loss if sample.history.loss.count else sample.history.error


def _late(series: Series) -> tuple[float, float]:
    """Mean of the second half of a run, and its standard error."""
    blocks = [value for _, value in series.blocks]
    late = blocks[len(blocks) // 2 :]
    return fmean(late), series.noise / sqrt(len(late) * series.size)


def _falls(series: Series, least: float) -> bool:
    """Whether the last quarter of a run surely lies below the one before, and by more than `least`."""
    values = [value for _, value in series.blocks]
    late = values[len(values) // 2 :]
    before, last = late[: len(late) // 2], late[len(late) // 2 :]
    if not before:
        return False
    unsure = series.noise / sqrt(series.size) * sqrt(1 / len(before) + 1 / len(last))
    return fmean(before) - fmean(last) > max(2 * unsure, least)


def _gain(series: Series) -> float:
    """How far the second half of a run lies below its first values."""
    return fmean(series.first) - _late(series)[0]


def _unsure(series: Series) -> float:
    """Standard error of the gain."""
    return _late(series)[1] + series.noise / sqrt(len(series.first))
