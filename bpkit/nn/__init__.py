"""`torch.nn`, with hand-written backwards: `import bpkit.nn as nn` is the only change to a model.

Every public name of torch.nn is here. Those listed below are bpkit's own; the rest (Module, Parameter,
containers, init, utils, and layers that have no hand-written twin yet) are torch's very objects.
`bpkit.converted(model).left` says which layers of a model those are.
"""

from torch.nn import *  # noqa: F403

import bpkit.nn.functional as functional  # noqa: F401 - `from bpkit.nn import` would find torch's
from bpkit.layers.activations import (
    ELU as ELU,
    GELU as GELU,
    SELU as SELU,
    LeakyReLU as LeakyReLU,
    ReLU as ReLU,
    Sigmoid as Sigmoid,
    SiLU as SiLU,
    Softplus as Softplus,
    Tanh as Tanh,
)
from bpkit.layers.batchnorm import BatchNorm1d as BatchNorm1d, BatchNorm2d as BatchNorm2d
from bpkit.layers.conv import Conv2d as Conv2d
from bpkit.layers.dropout import Dropout as Dropout
from bpkit.layers.embedding import Embedding as Embedding
from bpkit.layers.flatten import Flatten as Flatten
from bpkit.layers.layernorm import LayerNorm as LayerNorm
from bpkit.layers.linear import Linear as Linear
from bpkit.layers.lstm import LSTM as LSTM
from bpkit.layers.pooling import AvgPool2d as AvgPool2d, MaxPool2d as MaxPool2d
from bpkit.layers.rnn import RNN as RNN
from bpkit.layers.softmax import LogSoftmax as LogSoftmax, Softmax as Softmax
from bpkit.losses.binary import BCELoss as BCELoss, BCEWithLogitsLoss as BCEWithLogitsLoss
from bpkit.losses.cross_entropy import CrossEntropyLoss as CrossEntropyLoss
from bpkit.losses.regression import L1Loss as L1Loss, MSELoss as MSELoss
