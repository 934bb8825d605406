"""Hand-written backwards into any model and out of it, and how much of a graph they make up."""

from bpkit.swap.convert import (
    ConvertReport as ConvertReport,
    convert as convert,
    converted as converted,
    revert as revert,
    twins as twins,
)
from bpkit.swap.coverage import Coverage as Coverage, coverage as coverage
from bpkit.swap.handwritten import handwritten as handwritten
