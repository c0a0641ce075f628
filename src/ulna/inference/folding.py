"""Normalisation folded into weights: batch norm into the convolution before it, weight norm into its layer."""

from __future__ import annotations

import copy
from itertools import pairwise

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ulna.networks.foreign import ForeignNetwork
from ulna.networks.heads.decoder import WeightNormLinear
from ulna.networks.network import Network


def fuse_batchnorm(network: Network) -> Network:
    """A copy for prediction in which every batch norm that directly follows a convolution is part of it.

    Batch norm is a fixed scale and shift once training is over, so the convolution's weights and bias can carry them. The
    answers differ by rounding. Instance norm depends on the image and stays. The weights of the implicit decoder are
    normalised once, too.
    """
    fused = copy.deepcopy(network).eval()
    if isinstance(network, ForeignNetwork):  # what its modules do with a sequence of layers is not known
        return fused
    for sequence in [module for module in fused.modules() if isinstance(module, nn.Sequential)]:
        for (name, conv), (after, norm) in pairwise(list(sequence.named_children())):
            if isinstance(conv, nn.Conv2d | nn.Conv3d) and isinstance(norm, nn.BatchNorm2d | nn.BatchNorm3d):
                setattr(sequence, name, fuse_conv_bn_eval(conv, norm))
                setattr(sequence, after, nn.Identity())
    for layer in [module for module in fused.modules() if isinstance(module, WeightNormLinear)]:
        layer.fold()
    return fused
