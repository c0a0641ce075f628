"""What happens at a node: four slots of interchangeable blocks.

    conv(spatial_dims, in_channels, out_channels, **options)            (N, Cin, *S) -> (N, self.out_channels, *S)
    skip(spatial_dims, up_channels, skip_channels, **options)           up, [skips]  -> (N, self.out_channels, *S)
    up(spatial_dims, in_channels, out_channels, stride, **options)      (N, Cin, *S) -> (N, self.out_channels, *S * stride)
    down(spatial_dims, in_channels, out_channels, stride, **options)    (N, Cin, *S) -> (N, self.out_channels, *S / stride)

`out_channels` is what the level wants; a block may give another number and says so in `self.out_channels`. A skip block
that ends in a concatenation may also give its maps apart (`maps`), for a conv block that `takes_maps`.
"""

from collections.abc import Callable
from functools import partial

from torch import nn

from ulna.blocks.attention_gate import AttentionGate
from ulna.blocks.cascade import CascadeMultiScale
from ulna.blocks.conv import ConvBlock, Identity
from ulna.blocks.full_scale import FullScale
from ulna.blocks.mbconv import MBConv
from ulna.blocks.mednext import MedNeXtDown, MedNeXtStack, MedNeXtUp
from ulna.blocks.nasnet import NormalCell, ReductionCell
from ulna.blocks.resample import Linear, MaxPool, Strided, Transpose
from ulna.blocks.residual import PreActivatedDown, PreActivatedUnit, ResidualBlock, ResidualStack
from ulna.blocks.self_attention import MultiDimensionalAttention
from ulna.blocks.skip import Add, Concat
from ulna.blocks.spatial_dependency import SpatialDependencyBlock

CONV: dict[str, Callable[..., nn.Module]] = {
    "double_conv": ConvBlock,
    "residual": partial(ConvBlock, residual=True),
    "residual_stack": ResidualStack,
    "preactivated": PreActivatedUnit,
    "identity": Identity,
    "nas_normal": NormalCell,
    "mbconv": MBConv,
    "mednext": MedNeXtStack,
    "cascade_msc": CascadeMultiScale,
    "sdn": SpatialDependencyBlock,
}
SKIP: dict[str, Callable[..., nn.Module]] = {
    "concat": Concat,
    "add": Add,
    "attention_gate": AttentionGate,
    "mdsa": MultiDimensionalAttention,
    "full_scale": FullScale,
}
UP: dict[str, Callable[..., nn.Module]] = {"transpose": Transpose, "linear": Linear, "mednext": MedNeXtUp}
DOWN: dict[str, Callable[..., nn.Module]] = {
    "max": MaxPool,
    "strided": Strided,
    "nas_reduction": ReductionCell,
    "residual": ResidualBlock,
    "preactivated": PreActivatedDown,
    "mednext": MedNeXtDown,
}
SLOTS = {"conv": CONV, "skip": SKIP, "up": UP, "down": DOWN}

__all__ = ["CONV", "DOWN", "SKIP", "SLOTS", "UP"]
