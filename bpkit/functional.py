"""`bpkit.functional` is `bpkit.nn.functional`: the same module under torch's habitual short path."""

import sys

from bpkit.nn import functional

sys.modules[__name__] = functional
