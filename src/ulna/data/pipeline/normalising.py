"""The values of an image as the network sees them: clipped, then standardised or rescaled, as a plan says of each channel.

On the CPU in numpy, with statistics in float64; on a GPU in torch's operations, with statistics in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ulna.recipe import Normalization

TINY = 1e-8  # the least that is divided by: a constant image becomes 0
JOINT = "zscore_joint"
ALL = (...,)

Index = tuple[Any, ...]
A = TypeVar("A", NDArray[np.float32], Tensor)


def normalise(array: NDArray[np.float32], how: Sequence[Normalization], inside: Index = ALL) -> NDArray[np.float32]:
    """Every channel of an image by what is said of it: (C, *S) -> the same; see `Normalization`.

    Args:
        array: the image.
        how: one a channel.
        inside: the index of what an image's own mean and deviation are of, in an array whose last axes are *S.
    """
    return _each(array, how, inside, normalise_channel, standardise, np.stack)


def normalise_there(array: Tensor, how: Sequence[Normalization], inside: Index = ALL) -> Tensor:
    """`normalise` in torch's operations, on the device of the image."""
    return _each(array, how, inside, _channel_there, _standardise_there, torch.stack)


def _each(
    array: A,
    how: Sequence[Normalization],
    inside: Index,
    one_channel: Callable[[A, Normalization, Index], A],
    standardise: Callable[[A, Index], A],
    stack: Callable[[Any], A],
) -> A:
    channels: list[A] = [one_channel(values, one, inside) for values, one in zip(array, how, strict=True)]
    joint = [number for number, one in enumerate(how) if one.kind == JOINT]
    if joint:
        for number, values in zip(joint, standardise(stack([channels[n] for n in joint]), inside), strict=True):
            channels[number] = values
    return stack(channels)


def normalise_channel(values: NDArray[np.float32], how: Normalization, inside: Index = ALL) -> NDArray[np.float32]:
    """One channel, (*S) -> (*S). A constant image becomes 0; what is standardised with other channels is clipped alone."""
    if how.clip is not None:
        values = np.asarray(values.clip(*_bounds(how.clip)), np.float32)
    if how.kind == "zscore":
        return standardise(values, inside)
    if how.kind == "ct":
        return np.asarray((values.clip(how.low, how.high) - how.mean) / max(how.std, TINY), np.float32)
    if how.kind == "rescale":
        return np.asarray((values - how.low) / max(how.high - how.low, TINY), np.float32)
    return values


def _bounds(clip: tuple[float | None, float | None]) -> tuple[float, float]:
    low, high = clip
    return -math.inf if low is None else low, math.inf if high is None else high


def standardise(values: NDArray[np.float32], inside: Index = ALL) -> NDArray[np.float32]:
    """Minus the mean, over the standard deviation, of what lies inside."""
    own = values[inside]
    mean, std = own.mean(dtype=np.float64), float(own.std(dtype=np.float64))
    return np.asarray((values - mean) / max(std, TINY), np.float32)


def _channel_there(values: Tensor, how: Normalization, inside: Index) -> Tensor:
    if how.clip is not None:
        values = values.clamp(*_bounds(how.clip))
    if how.kind == "zscore":
        return _standardise_there(values, inside)
    if how.kind == "ct":
        return (values.clamp(how.low, how.high) - how.mean) / max(how.std, TINY)
    if how.kind == "rescale":
        return (values - how.low) / max(how.high - how.low, TINY)
    return values


def _standardise_there(values: Tensor, inside: Index) -> Tensor:
    variance, mean = torch.var_mean(values[inside], correction=0)
    return (values - mean) / variance.sqrt().clamp_min(TINY)
