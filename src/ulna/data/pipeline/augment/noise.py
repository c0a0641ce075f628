"""Random numbers that depend on a key and their own number alone: on no device, batch or order.

SplitMix64 (steele2014) started at the key; the Box-Muller transform of two parts of what it yields.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ulna.system.device import to_device

STEP, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
BITS = 24  # of a number, as many as float32 holds


def normals(keys: Sequence[int], count: int, device: torch.device) -> Tensor:
    """The first `count` normal numbers of every key: (len(keys), count), float32."""
    pairs = torch.arange(1, -(-count // 2) + 1, device=device) * _signed(STEP)
    bits = _mixed(to_device(torch.tensor(keys), device)[:, None] + pairs)
    one, other = (bits >> (64 - BITS)) & (2**BITS - 1), bits & (2**BITS - 1)
    radius = ((one + 1).float() * 2.0**-BITS).log_().mul_(-2).sqrt_()  # of a number above 0, up to 1
    angle = other.float() * (2 * math.pi * 2.0**-BITS)
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :count]


def _mixed(z: Tensor) -> Tensor:
    """The output of SplitMix64 for a state, int64 that wraps."""
    z = (z ^ _shifted(z, 30)) * _signed(FIRST)
    z = (z ^ _shifted(z, 27)) * _signed(SECOND)
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, by: int) -> Tensor:
    """To the right, with zeros: torch's own shift repeats the sign."""
    return (z >> by) & (2 ** (64 - by) - 1)


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value
