"""Training: a loop that can be read, put together from registered parts by name or from objects."""

from bpkit.train.trainer import Trainer

__all__ = ["Trainer"]
