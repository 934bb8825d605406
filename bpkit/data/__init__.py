"""Data that comes with bpkit, so that everything runs without a network."""

from bpkit.data.digits import Digits, digits

__all__ = ["Digits", "digits"]
