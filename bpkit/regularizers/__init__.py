"""Penalties on parameters, each with its value and its hand-written gradient side by side."""

from bpkit.regularizers.penalties import L1, L2, ElasticNet, Regularizer

__all__ = ["L1", "L2", "ElasticNet", "Regularizer"]
