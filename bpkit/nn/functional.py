"""`torch.nn.functional`, with hand-written backwards: every name, bpkit's own where listed below."""

from torch.nn import functional as _functional
from torch.nn.functional import *  # noqa: F403

from bpkit.layers.activations import (
    celu as celu,
    celu_ as celu_,
    elu as elu,
    elu_ as elu_,
    gelu as gelu,
    logsigmoid as logsigmoid,
    mish as mish,
    selu as selu,
    selu_ as selu_,
    sigmoid as sigmoid,
    silu as silu,
    softplus as softplus,
    softsign as softsign,
    tanh as tanh,
    tanhshrink as tanhshrink,
)
from bpkit.layers.adaptiveavg import (
    adaptive_avg_pool1d as adaptive_avg_pool1d,
    adaptive_avg_pool2d as adaptive_avg_pool2d,
    adaptive_avg_pool3d as adaptive_avg_pool3d,
)
from bpkit.layers.adaptivemax import (
    adaptive_max_pool1d as adaptive_max_pool1d,
    adaptive_max_pool1d_with_indices as adaptive_max_pool1d_with_indices,
    adaptive_max_pool2d as adaptive_max_pool2d,
    adaptive_max_pool2d_with_indices as adaptive_max_pool2d_with_indices,
    adaptive_max_pool3d as adaptive_max_pool3d,
    adaptive_max_pool3d_with_indices as adaptive_max_pool3d_with_indices,
)
from bpkit.layers.attention import scaled_dot_product_attention as scaled_dot_product_attention
from bpkit.layers.avgpool import avg_pool1d as avg_pool1d, avg_pool2d as avg_pool2d, avg_pool3d as avg_pool3d
from bpkit.layers.batchnorm import batch_norm as batch_norm
from bpkit.layers.bilinear import bilinear as bilinear
from bpkit.layers.conv import conv1d as conv1d, conv2d as conv2d, conv3d as conv3d
from bpkit.layers.conv_transpose import (
    conv_transpose1d as conv_transpose1d,
    conv_transpose2d as conv_transpose2d,
    conv_transpose3d as conv_transpose3d,
)
from bpkit.layers.distance import (
    cosine_similarity as cosine_similarity,
    pairwise_distance as pairwise_distance,
    pdist as pdist,
)
from bpkit.layers.dropout import (
    alpha_dropout as alpha_dropout,
    dropout as dropout,
    dropout1d as dropout1d,
    dropout2d as dropout2d,
    dropout3d as dropout3d,
    feature_alpha_dropout as feature_alpha_dropout,
)
from bpkit.layers.embedding import embedding as embedding
from bpkit.layers.embedding_bag import embedding_bag as embedding_bag
from bpkit.layers.fold import fold as fold, unfold as unfold
from bpkit.layers.fractionalpool import (
    fractional_max_pool2d as fractional_max_pool2d,
    fractional_max_pool2d_with_indices as fractional_max_pool2d_with_indices,
    fractional_max_pool3d as fractional_max_pool3d,
    fractional_max_pool3d_with_indices as fractional_max_pool3d_with_indices,
)
from bpkit.layers.gates import (
    glu as glu,
    prelu as prelu,
    rrelu as rrelu,
    rrelu_ as rrelu_,
)
from bpkit.layers.gridsample import affine_grid as affine_grid, grid_sample as grid_sample
from bpkit.layers.groupnorm import group_norm as group_norm
from bpkit.layers.instancenorm import instance_norm as instance_norm
from bpkit.layers.interpolate import (
    interpolate as interpolate,
    upsample as upsample,
    upsample_bilinear as upsample_bilinear,
    upsample_nearest as upsample_nearest,
)
from bpkit.layers.layernorm import layer_norm as layer_norm
from bpkit.layers.linear import linear as linear
from bpkit.layers.lppool import lp_pool1d as lp_pool1d, lp_pool2d as lp_pool2d, lp_pool3d as lp_pool3d
from bpkit.layers.maxpool import (
    max_pool1d as max_pool1d,
    max_pool1d_with_indices as max_pool1d_with_indices,
    max_pool2d as max_pool2d,
    max_pool2d_with_indices as max_pool2d_with_indices,
    max_pool3d as max_pool3d,
    max_pool3d_with_indices as max_pool3d_with_indices,
)
from bpkit.layers.maxunpool import (
    max_unpool1d as max_unpool1d,
    max_unpool2d as max_unpool2d,
    max_unpool3d as max_unpool3d,
)
from bpkit.layers.multihead import multi_head_attention_forward as multi_head_attention_forward
from bpkit.layers.padding import (
    pad as pad,
)
from bpkit.layers.parametrized import normalize as normalize
from bpkit.layers.rectifiers import (
    hardshrink as hardshrink,
    hardsigmoid as hardsigmoid,
    hardswish as hardswish,
    hardtanh as hardtanh,
    hardtanh_ as hardtanh_,
    leaky_relu as leaky_relu,
    leaky_relu_ as leaky_relu_,
    relu as relu,
    relu6 as relu6,
    relu_ as relu_,
    softshrink as softshrink,
    threshold as threshold,
    threshold_ as threshold_,
)
from bpkit.layers.responsenorm import local_response_norm as local_response_norm
from bpkit.layers.rmsnorm import rms_norm as rms_norm
from bpkit.layers.shuffling import (
    channel_shuffle as channel_shuffle,
    pixel_shuffle as pixel_shuffle,
    pixel_unshuffle as pixel_unshuffle,
)
from bpkit.layers.softmax import (
    gumbel_softmax as gumbel_softmax,
    log_softmax as log_softmax,
    softmax as softmax,
    softmin as softmin,
)
from bpkit.losses.binary import (
    binary_cross_entropy as binary_cross_entropy,
    binary_cross_entropy_with_logits as binary_cross_entropy_with_logits,
)
from bpkit.losses.cross_entropy import cross_entropy as cross_entropy
from bpkit.losses.ctc import ctc_loss as ctc_loss
from bpkit.losses.embedding import (
    cosine_embedding_loss as cosine_embedding_loss,
    triplet_margin_loss as triplet_margin_loss,
    triplet_margin_with_distance_loss as triplet_margin_with_distance_loss,
)
from bpkit.losses.likelihood import (
    gaussian_nll_loss as gaussian_nll_loss,
    kl_div as kl_div,
    poisson_nll_loss as poisson_nll_loss,
)
from bpkit.losses.margin import (
    multi_margin_loss as multi_margin_loss,
    multilabel_margin_loss as multilabel_margin_loss,
)
from bpkit.losses.multilabel_soft_margin import multilabel_soft_margin_loss as multilabel_soft_margin_loss
from bpkit.losses.nll import nll_loss as nll_loss
from bpkit.losses.pointwise import (
    hinge_embedding_loss as hinge_embedding_loss,
    huber_loss as huber_loss,
    l1_loss as l1_loss,
    margin_ranking_loss as margin_ranking_loss,
    mse_loss as mse_loss,
    smooth_l1_loss as smooth_l1_loss,
    soft_margin_loss as soft_margin_loss,
)

if hasattr(_functional, "linear_cross_entropy"):  # a name that an older torch lacks is absent here, too
    from bpkit.losses.linear_cross_entropy import linear_cross_entropy as linear_cross_entropy
