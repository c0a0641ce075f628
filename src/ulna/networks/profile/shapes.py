"""Layers that multiply nothing and whose size is known, passed over while a network without memory is counted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
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
    """Within, norms, activations and upsamplings of a network on the meta device give a map of the right size, nothing else.

    torch works these out on that device by dozens of operations of Python's, which take most of the time of a count. On any
    other device nothing changes: there the values are wanted.
    """
    counted = all(parameter.is_meta for parameter in network.parameters())
    passed: list[Any] = []
    for module in network.modules() if counted else ():
        if type(module) in _KEEP_THE_SIZE:
            forward: Any = partial(_same, getattr(module, "check", None))
        elif type(module) is nn.Upsample and module.scale_factor is not None:
            forward = partial(_scaled, module.scale_factor)
        else:
            continue
        module.forward = forward
        passed.append(module)
    try:
        yield
    finally:
        for module in passed:
            del module.forward


def _same(check: Callable[[Tensor], None] | None, x: Tensor, *_: Any) -> Tensor:
    if check is not None:  # what a norm cannot be trained on is refused here, too
        check(x)
    return torch.empty_like(x)


def _scaled(factor: float | Sequence[float], x: Tensor) -> Tensor:
    size = x.shape[2:]
    factors = factor if isinstance(factor, Sequence) else (factor,) * len(size)
    return x.new_empty(*x.shape[:2], *(math.floor(n * f) for n, f in zip(size, factors, strict=True)))
