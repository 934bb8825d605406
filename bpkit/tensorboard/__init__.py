"""Event files for TensorBoard, written in batches and without torch's slow-to-import writer."""

from bpkit.tensorboard.writer import Writer

__all__ = ["Writer"]
