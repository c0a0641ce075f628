"""Layers that keep a map's size and multiply nothing, passed over while a network without memory is counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ulna.blocks import nd

# exactly these: a class of somebody else's may do more, and torch's own batch norm refuses some maps
_KEEP_THE_SIZE = {
    *nd.ACTIVATIONS.values(), nn.GELU, nn.Sigmoid, nn.PReLU,
    nd.BatchNorm2d, nd.BatchNorm3d, nd.InstanceNorm, nn.LayerNorm,
}  # fmt: skip


@contextmanager
def shapes_alone(network: nn.Module) -> Iterator[None]:
    """Within, norms and activations of a network on the meta device give a map of their input's size and nothing else.

    torch works out a norm on that device by a dozen operations of Python's, which take most of the time of a count. On any
    other device nothing changes: there the values are wanted.
    """
    counted = all(parameter.is_meta for parameter in network.parameters())
    passed: list[Any] = [module for module in network.modules() if counted and type(module) in _KEEP_THE_SIZE]

    for module in passed:
        module.forward = partial(_same, getattr(module, "check", None))
    try:
        yield
    finally:
        for module in passed:
            del module.forward


def _same(check: Callable[[Tensor], None] | None, x: Tensor, *_: Any) -> Tensor:
    if check is not None:  # what a norm cannot be trained on is refused here, too
        check(x)
    return torch.empty_like(x)
