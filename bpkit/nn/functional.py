"""`torch.nn.functional`, with hand-written backwards: every name, bpkit's own where listed below."""

from torch.nn.functional import *  # noqa: F403
