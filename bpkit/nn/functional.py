"""`torch.nn.functional`, with hand-written backwards: every name, bpkit's own where listed below."""

from torch.nn.functional import *  # noqa: F403

from bpkit.layers.activations import (
    elu as elu,
    gelu as gelu,
    leaky_relu as leaky_relu,
    relu as relu,
    selu as selu,
    sigmoid as sigmoid,
    silu as silu,
    softplus as softplus,
    tanh as tanh,
)
from bpkit.layers.batchnorm import batch_norm as batch_norm
from bpkit.layers.conv import conv2d as conv2d
from bpkit.layers.dropout import dropout as dropout
from bpkit.layers.embedding import embedding as embedding
from bpkit.layers.layernorm import layer_norm as layer_norm
from bpkit.layers.linear import linear as linear
from bpkit.layers.pooling import avg_pool2d as avg_pool2d, max_pool2d as max_pool2d
from bpkit.layers.softmax import log_softmax as log_softmax, softmax as softmax
from bpkit.losses.binary import (
    binary_cross_entropy as binary_cross_entropy,
    binary_cross_entropy_with_logits as binary_cross_entropy_with_logits,
)
from bpkit.losses.cross_entropy import cross_entropy as cross_entropy
from bpkit.losses.regression import l1_loss as l1_loss, mse_loss as mse_loss
