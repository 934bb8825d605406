"""What is wrong with the gradients of a run: `watch`, and the diagnostics that it reads samples with."""

from bpkit.core.finding import Finding
from bpkit.diagnostics.diagnostic import Diagnostic
from bpkit.diagnostics.picture import gradient_profile
from bpkit.diagnostics.sample import Sample
from bpkit.diagnostics.watch import chosen, watch
from bpkit.diagnostics.watcher import Watcher

__all__ = ["Diagnostic", "Finding", "Sample", "Watcher", "chosen", "gradient_profile", "watch"]
