"""A stranger's training script, run unchanged and watched: what `bpkit watch train.py` stands on."""

from bpkit.diagnostics.script.run import Target, located, run
from bpkit.diagnostics.script.watched import Watched
from bpkit.diagnostics.script.watching import Watching

__all__ = ["Target", "Watched", "Watching", "located", "run"]
