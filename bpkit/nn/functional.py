"""`torch.nn.functional`, with hand-written backwards: every name, bpkit's own where listed below."""

from torch.nn.functional import *  # noqa: F403

from bpkit.layers.activations import (
    elu as elu,
)
from bpkit.layers.activations import (
    gelu as gelu,
)
from bpkit.layers.activations import (
    leaky_relu as leaky_relu,
)
from bpkit.layers.activations import (
    relu as relu,
)
from bpkit.layers.activations import (
    selu as selu,
)
from bpkit.layers.activations import (
    sigmoid as sigmoid,
)
from bpkit.layers.activations import (
    silu as silu,
)
from bpkit.layers.activations import (
    softplus as softplus,
)
from bpkit.layers.activations import (
    tanh as tanh,
)
from bpkit.layers.batchnorm import batch_norm as batch_norm
from bpkit.layers.conv import conv2d as conv2d
from bpkit.layers.dropout import dropout as dropout
from bpkit.layers.embedding import embedding as embedding
from bpkit.layers.layernorm import layer_norm as layer_norm
from bpkit.layers.linear import linear as linear
from bpkit.layers.pooling import avg_pool2d as avg_pool2d
from bpkit.layers.pooling import max_pool2d as max_pool2d
from bpkit.layers.softmax import log_softmax as log_softmax
from bpkit.layers.softmax import softmax as softmax
from bpkit.losses.binary import (
    binary_cross_entropy as binary_cross_entropy,
)
from bpkit.losses.binary import (
    binary_cross_entropy_with_logits as binary_cross_entropy_with_logits,
)
from bpkit.losses.cross_entropy import cross_entropy as cross_entropy
from bpkit.losses.regression import l1_loss as l1_loss
from bpkit.losses.regression import mse_loss as mse_loss
