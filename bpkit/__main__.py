"""`python -m bpkit` is `bpkit`."""

import sys

from bpkit.cli import main

sys.exit(main())
