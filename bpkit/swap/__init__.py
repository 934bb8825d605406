"""Hand-written backwards into any model and out of it, and how much of a graph they make up."""

from bpkit.swap.conversion import (
    ConvertReport as ConvertReport,
    convert as convert,
    converted as converted,
    revert as revert,
    twins as twins,
)
from bpkit.swap.counting import Coverage as Coverage, coverage as coverage
from bpkit.swap.mode import handwritten as handwritten
