"""Optimizers, one a file: the update rule written out, proven to follow its torch twin."""

from bpkit.optim.adagrad import Adagrad
from bpkit.optim.adam import Adam
from bpkit.optim.adamw import AdamW
from bpkit.optim.rmsprop import RMSprop
from bpkit.optim.sgd import SGD

__all__ = ["SGD", "Adagrad", "Adam", "AdamW", "RMSprop"]
