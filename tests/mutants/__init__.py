"""Broken Functions, each with one known defect, and unusual ones that are right: what proves the checker."""

from . import edges, gradients, layouts, memory, modes, modules, operators, values
from .mutant import Mutant, Unusual
from .unusual import UNUSUAL

MUTANTS: list[Mutant] = [
    mutant
    for theme in (values, edges, layouts, gradients, memory, modes, modules, operators)
    for mutant in theme.MUTANTS
]

__all__ = ["MUTANTS", "UNUSUAL", "Mutant", "Unusual"]
