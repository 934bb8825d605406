"""`torch.nn`, with hand-written backwards: `import bpkit.nn as nn` is the only change to a model.

Every public name of torch.nn is here. Those listed below are bpkit's own; the rest (Module, Parameter,
containers, init, parallel, utils) are torch's very objects.
"""

from torch import nn as _nn
from torch.nn import *  # noqa: F403

import bpkit.nn.functional as functional  # noqa: F401 - `from bpkit.nn import` would find torch's
from bpkit.layers.activations import (
    CELU as CELU,
    ELU as ELU,
    GELU as GELU,
    SELU as SELU,
    LogSigmoid as LogSigmoid,
    Mish as Mish,
    Sigmoid as Sigmoid,
    SiLU as SiLU,
    Softplus as Softplus,
    Softsign as Softsign,
    Tanh as Tanh,
    Tanhshrink as Tanhshrink,
)
from bpkit.layers.adaptiveavg import (
    AdaptiveAvgPool1d as AdaptiveAvgPool1d,
    AdaptiveAvgPool2d as AdaptiveAvgPool2d,
    AdaptiveAvgPool3d as AdaptiveAvgPool3d,
)
from bpkit.layers.adaptivemax import (
    AdaptiveMaxPool1d as AdaptiveMaxPool1d,
    AdaptiveMaxPool2d as AdaptiveMaxPool2d,
    AdaptiveMaxPool3d as AdaptiveMaxPool3d,
)
from bpkit.layers.adaptivesoftmax import AdaptiveLogSoftmaxWithLoss as AdaptiveLogSoftmaxWithLoss
from bpkit.layers.avgpool import AvgPool1d as AvgPool1d, AvgPool2d as AvgPool2d, AvgPool3d as AvgPool3d
from bpkit.layers.batchnorm import (
    BatchNorm1d as BatchNorm1d,
    BatchNorm2d as BatchNorm2d,
    BatchNorm3d as BatchNorm3d,
    LazyBatchNorm1d as LazyBatchNorm1d,
    LazyBatchNorm2d as LazyBatchNorm2d,
    LazyBatchNorm3d as LazyBatchNorm3d,
)
from bpkit.layers.bilinear import Bilinear as Bilinear
from bpkit.layers.conv import (
    Conv1d as Conv1d,
    Conv2d as Conv2d,
    Conv3d as Conv3d,
    LazyConv1d as LazyConv1d,
    LazyConv2d as LazyConv2d,
    LazyConv3d as LazyConv3d,
)
from bpkit.layers.conv_transpose import (
    ConvTranspose1d as ConvTranspose1d,
    ConvTranspose2d as ConvTranspose2d,
    ConvTranspose3d as ConvTranspose3d,
    LazyConvTranspose1d as LazyConvTranspose1d,
    LazyConvTranspose2d as LazyConvTranspose2d,
    LazyConvTranspose3d as LazyConvTranspose3d,
)
from bpkit.layers.distance import CosineSimilarity as CosineSimilarity, PairwiseDistance as PairwiseDistance
from bpkit.layers.dropout import (
    AlphaDropout as AlphaDropout,
    Dropout as Dropout,
    Dropout1d as Dropout1d,
    Dropout2d as Dropout2d,
    Dropout3d as Dropout3d,
    FeatureAlphaDropout as FeatureAlphaDropout,
)
from bpkit.layers.embedding import Embedding as Embedding
from bpkit.layers.embedding_bag import EmbeddingBag as EmbeddingBag
from bpkit.layers.fold import Fold as Fold, Unfold as Unfold
from bpkit.layers.fractionalpool import (
    FractionalMaxPool2d as FractionalMaxPool2d,
    FractionalMaxPool3d as FractionalMaxPool3d,
)
from bpkit.layers.gates import (
    GLU as GLU,
    PReLU as PReLU,
    RReLU as RReLU,
)
from bpkit.layers.groupnorm import GroupNorm as GroupNorm
from bpkit.layers.gru import GRU as GRU
from bpkit.layers.grucell import GRUCell as GRUCell
from bpkit.layers.instancenorm import (
    InstanceNorm1d as InstanceNorm1d,
    InstanceNorm2d as InstanceNorm2d,
    InstanceNorm3d as InstanceNorm3d,
    LazyInstanceNorm1d as LazyInstanceNorm1d,
    LazyInstanceNorm2d as LazyInstanceNorm2d,
    LazyInstanceNorm3d as LazyInstanceNorm3d,
)
from bpkit.layers.interpolate import (
    Upsample as Upsample,
    UpsamplingBilinear2d as UpsamplingBilinear2d,
    UpsamplingNearest2d as UpsamplingNearest2d,
)
from bpkit.layers.layernorm import LayerNorm as LayerNorm
from bpkit.layers.linear import LazyLinear as LazyLinear, Linear as Linear
from bpkit.layers.lppool import LPPool1d as LPPool1d, LPPool2d as LPPool2d, LPPool3d as LPPool3d
from bpkit.layers.lstm import LSTM as LSTM
from bpkit.layers.lstmcell import LSTMCell as LSTMCell
from bpkit.layers.maxpool import MaxPool1d as MaxPool1d, MaxPool2d as MaxPool2d, MaxPool3d as MaxPool3d
from bpkit.layers.maxunpool import (
    MaxUnpool1d as MaxUnpool1d,
    MaxUnpool2d as MaxUnpool2d,
    MaxUnpool3d as MaxUnpool3d,
)
from bpkit.layers.multihead import (
    MultiheadAttention as MultiheadAttention,
    NonDynamicallyQuantizableLinear as NonDynamicallyQuantizableLinear,
)
from bpkit.layers.padding import (
    CircularPad1d as CircularPad1d,
    CircularPad2d as CircularPad2d,
    CircularPad3d as CircularPad3d,
    ConstantPad1d as ConstantPad1d,
    ConstantPad2d as ConstantPad2d,
    ConstantPad3d as ConstantPad3d,
    ReflectionPad1d as ReflectionPad1d,
    ReflectionPad2d as ReflectionPad2d,
    ReflectionPad3d as ReflectionPad3d,
    ReplicationPad1d as ReplicationPad1d,
    ReplicationPad2d as ReplicationPad2d,
    ReplicationPad3d as ReplicationPad3d,
    ZeroPad1d as ZeroPad1d,
    ZeroPad2d as ZeroPad2d,
    ZeroPad3d as ZeroPad3d,
)
from bpkit.layers.rectifiers import (
    Hardshrink as Hardshrink,
    Hardsigmoid as Hardsigmoid,
    Hardswish as Hardswish,
    Hardtanh as Hardtanh,
    LeakyReLU as LeakyReLU,
    ReLU as ReLU,
    ReLU6 as ReLU6,
    Softshrink as Softshrink,
    Threshold as Threshold,
)
from bpkit.layers.responsenorm import CrossMapLRN2d as CrossMapLRN2d, LocalResponseNorm as LocalResponseNorm
from bpkit.layers.rmsnorm import RMSNorm as RMSNorm
from bpkit.layers.rnn import RNN as RNN
from bpkit.layers.rnncell import RNNCell as RNNCell
from bpkit.layers.shuffling import (
    ChannelShuffle as ChannelShuffle,
    PixelShuffle as PixelShuffle,
    PixelUnshuffle as PixelUnshuffle,
)
from bpkit.layers.softmax import (
    LogSoftmax as LogSoftmax,
    Softmax as Softmax,
    Softmax2d as Softmax2d,
    Softmin as Softmin,
)
from bpkit.layers.syncbatchnorm import SyncBatchNorm as SyncBatchNorm
from bpkit.layers.transformer import (
    Transformer as Transformer,
    TransformerDecoder as TransformerDecoder,
    TransformerEncoder as TransformerEncoder,
)
from bpkit.layers.transformer_layers import (
    TransformerDecoderLayer as TransformerDecoderLayer,
    TransformerEncoderLayer as TransformerEncoderLayer,
)
from bpkit.layers.views import (
    Flatten as Flatten,
    Identity as Identity,
    Unflatten as Unflatten,
)
from bpkit.losses.binary import BCELoss as BCELoss, BCEWithLogitsLoss as BCEWithLogitsLoss
from bpkit.losses.cross_entropy import CrossEntropyLoss as CrossEntropyLoss
from bpkit.losses.ctc import CTCLoss as CTCLoss
from bpkit.losses.embedding import (
    CosineEmbeddingLoss as CosineEmbeddingLoss,
    TripletMarginLoss as TripletMarginLoss,
    TripletMarginWithDistanceLoss as TripletMarginWithDistanceLoss,
)
from bpkit.losses.likelihood import (
    GaussianNLLLoss as GaussianNLLLoss,
    KLDivLoss as KLDivLoss,
    PoissonNLLLoss as PoissonNLLLoss,
)
from bpkit.losses.margin import (
    MultiLabelMarginLoss as MultiLabelMarginLoss,
    MultiMarginLoss as MultiMarginLoss,
)
from bpkit.losses.multilabel_soft_margin import MultiLabelSoftMarginLoss as MultiLabelSoftMarginLoss
from bpkit.losses.nll import NLLLoss as NLLLoss, NLLLoss2d as NLLLoss2d
from bpkit.losses.pointwise import (
    HingeEmbeddingLoss as HingeEmbeddingLoss,
    HuberLoss as HuberLoss,
    L1Loss as L1Loss,
    MarginRankingLoss as MarginRankingLoss,
    MSELoss as MSELoss,
    SmoothL1Loss as SmoothL1Loss,
    SoftMarginLoss as SoftMarginLoss,
)

if hasattr(_nn, "LinearCrossEntropyLoss"):  # a name that an older torch lacks is absent here, too
    from bpkit.losses.linear_cross_entropy import LinearCrossEntropyLoss as LinearCrossEntropyLoss
