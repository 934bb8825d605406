"""`torch.nn`, with hand-written backwards: `import bpkit.nn as nn` is the only change to a model.

Every public name of torch.nn is here. Those listed below are bpkit's own; the rest (Module, Parameter,
containers, init, utils, and layers that have no hand-written twin yet) are torch's very objects.
`bpkit.converted(model).left` says which layers of a model those are.
"""

from torch.nn import *  # noqa: F403

from bpkit.layers.activations import (
    ELU as ELU,
)
from bpkit.layers.activations import (
    GELU as GELU,
)
from bpkit.layers.activations import (
    SELU as SELU,
)
from bpkit.layers.activations import (
    LeakyReLU as LeakyReLU,
)
from bpkit.layers.activations import (
    ReLU as ReLU,
)
from bpkit.layers.activations import (
    Sigmoid as Sigmoid,
)
from bpkit.layers.activations import (
    SiLU as SiLU,
)
from bpkit.layers.activations import (
    Softplus as Softplus,
)
from bpkit.layers.activations import (
    Tanh as Tanh,
)
from bpkit.layers.batchnorm import BatchNorm1d as BatchNorm1d
from bpkit.layers.batchnorm import BatchNorm2d as BatchNorm2d
from bpkit.layers.conv import Conv2d as Conv2d
from bpkit.layers.dropout import Dropout as Dropout
from bpkit.layers.embedding import Embedding as Embedding
from bpkit.layers.flatten import Flatten as Flatten
from bpkit.layers.layernorm import LayerNorm as LayerNorm
from bpkit.layers.linear import Linear as Linear
from bpkit.layers.lstm import LSTM as LSTM
from bpkit.layers.pooling import AvgPool2d as AvgPool2d
from bpkit.layers.pooling import MaxPool2d as MaxPool2d
from bpkit.layers.rnn import RNN as RNN
from bpkit.layers.softmax import LogSoftmax as LogSoftmax
from bpkit.layers.softmax import Softmax as Softmax
from bpkit.losses.binary import BCELoss as BCELoss
from bpkit.losses.binary import BCEWithLogitsLoss as BCEWithLogitsLoss
from bpkit.losses.cross_entropy import CrossEntropyLoss as CrossEntropyLoss
from bpkit.losses.regression import L1Loss as L1Loss
from bpkit.losses.regression import MSELoss as MSELoss
from bpkit.nn import functional as functional
