"""Whether a run has learned nothing, told with confidence from its losses: what verdicts on flat runs rest on."""

from __future__ import annotations

from math import inf, log, sqrt
from statistics import fmean

from bpkit.diagnostics.history import START, Series
from bpkit.diagnostics.sample import Sample

LEARNED = 0.1  # the share of its start that a loss has lost where something is learned
SOME = 0.03  # a smaller share is learned by the output's bias alone
CHANCE = 0.05  # around ln C, the cross-entropy of guessing among C classes


def learned_nothing(sample: Sample) -> bool:
    """Whether the loss, or else the error at the output, surely stands where it stood; False where unknown.

    Surely: twice the standard error from what something learned would be, so that a noisy loss takes longer
    to condemn. The loss of a classifier that still guesses, ln C for C outputs, is nothing learned, wherever
    it came down from: large initial weights make confident mistakes, which are soon unlearned.
    """
    history = sample.history
    given = history.loss.count > 0
    series = history.loss if given else history.error
    if series.count < 2 * START or not series.blocks:
        return False
    now, error = _late(series)
    if given and _guesses(sample, now, error):
        return True
    start, scale = fmean(series.first), abs(fmean(series.first))
    gain, unsure = start - now, error + series.noise / sqrt(len(series.first))
    if gain > max(SOME * scale, 3 * unsure):
        return False
    blocks = [value for _, value in series.blocks]
    early = blocks[: max(1, len(blocks) // 8)]
    unsure = error + series.noise / sqrt(len(early) * series.size)
    return fmean(early) - now + 2 * unsure < LEARNED * scale


def _late(series: Series) -> tuple[float, float]:
    """Mean of the second half of a run, and its standard error."""
    blocks = [value for _, value in series.blocks]
    late = blocks[len(blocks) // 2 :]
    return fmean(late), series.noise / sqrt(len(late) * series.size)


def _guesses(sample: Sample, now: float, error: float) -> bool:
    infos = sample.network.parameters
    shapes = [infos[index].shape for index in sample.order or range(len(infos)) if infos[index].matrix]
    classes = shapes[-1][0] if shapes else 1
    chance = log(classes) if classes > 1 else -inf
    return abs(now - chance) + 2 * error < CHANCE * chance
