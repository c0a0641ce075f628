"""Work under the rules of ptflops, the counter that the SDU-Net paper used: to hold a network to printed figures.

It goes by modules: products and biases of convolutions, 2 operations an element of a norm, 1 of an activation or an
upsampled map, 1 an element that a pooling reads. What is no such module, attention or a sweep, it does not see.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ulna.blocks import nd
from ulna.blocks.resample import Linear
from ulna.networks.heads.decoder import PointDecoder
from ulna.networks.network import Network
from ulna.networks.profile.shapes import shapes_alone

_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (nn.BatchNorm2d, nn.BatchNorm3d, nd.InstanceNorm)
_POOLS = (nn.MaxPool2d, nn.MaxPool3d)
_BY_ELEMENT = (*nd.ACTIVATIONS.values(), nn.Upsample)


def count_ptflops_gmacs(network: Network, size: tuple[int, ...], *, points: int | None = None) -> float:
    """Billions of operations of one forward pass over one image of `size`, as ptflops counts them.

    With `points`, the image is read at so many points alone.

    Source: SDU-Net (carvalho2021), Table 4; rules and the inputs of its figures: docs/papers/sdu_net.md, section 2.
    Reading: recurrent cells are not counted: only so does SDU-Net have its printed work. The projection of a linear
    upsampling, here ahead of it on the small map, is counted where the paper's network has it, behind it.
    """
    with torch.no_grad(), shapes_alone(network), counting(network) as operations:
        device = next(network.parameters()).device
        at = None if points is None else torch.zeros(1, points, len(size), dtype=torch.long, device=device)
        network.outputs(torch.zeros(1, network.in_channels, *size, device=device), at)
    return sum(operations) / 1e9


@contextmanager
def counting(network: Network) -> Iterator[list[int]]:
    """Within, every module that is called adds its operations to the list."""
    operations: list[int] = []

    def add(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        operations.append(_operations(module, inputs[0], output))

    hooks = [module.register_forward_hook(add) for module in network.modules()]
    try:
        yield operations
    finally:
        for hook in hooks:
            hook.remove()


def _operations(module: Any, source: Any, output: Any) -> int:
    if isinstance(module, _CONVOLUTIONS):
        return _convolution(module, output[0, 0].numel())
    if isinstance(module, _TRANSPOSED):
        return source[0, 0].numel() * module.weight.numel() + (output.numel() if module.bias is not None else 0)
    if isinstance(module, nn.Linear):
        return output.numel() * (source.shape[-1] + 1)
    if isinstance(module, PointDecoder):  # its layers are multiplied together, not called as modules
        return output[..., 0].numel() * module.operations()
    if isinstance(module, _NORMS):
        return 2 * source.numel()
    if isinstance(module, _BY_ELEMENT):
        return output.numel()
    if isinstance(module, _POOLS):
        return source.numel()
    if isinstance(module, Linear) and isinstance(module.project, _CONVOLUTIONS):
        large, small = output[0, 0].numel(), source[0, 0].numel()
        widened = large * (source.shape[1] - output.shape[1])
        return _convolution(module.project, large) - _convolution(module.project, small) + widened
    return 0


def _convolution(module: Any, positions: int) -> int:
    a_position = math.prod(module.weight.shape) + (module.out_channels if module.bias is not None else 0)
    return positions * a_position
