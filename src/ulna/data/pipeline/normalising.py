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
    values = _clipped(values, how)
    if how.kind == "zscore":
        return standardise(values, inside)
    if how.kind == "ct":
        return np.asarray((values.clip(how.low, how.high) - how.mean) / max(how.std, TINY), np.float32)
    if how.kind == "rescale":
        return np.asarray((values - how.low) / max(how.high - how.low, TINY), np.float32)
    return values


def _clipped(values: NDArray[np.float32], how: Normalization) -> NDArray[np.float32]:
    return values if how.clip is None else np.asarray(values.clip(*_bounds(how.clip)), np.float32)


def _bounds(clip: tuple[float | None, float | None]) -> tuple[float, float]:
    low, high = clip
    return -math.inf if low is None else low, math.inf if high is None else high


def standardise(values: NDArray[np.float32], inside: Index = ALL) -> NDArray[np.float32]:
    """Minus the mean, over the standard deviation, of what lies inside."""
    own = values[inside]
    return _standardised(values, own.mean(dtype=np.float64), float(own.std(dtype=np.float64)))


def _standardised(values: NDArray[np.float32], mean: np.float64, std: float) -> NDArray[np.float32]:
    return np.asarray((values - mean) / max(std, TINY), np.float32)


class Moments:
    """Count, mean and standard deviation of values that come part by part, in float64."""

    def __init__(self) -> None:
        self.count, self.mean, self._squares = 0, np.float64(0.0), np.float64(0.0)

    def add(self, values: NDArray[np.float32]) -> None:
        """Count some more. Source: chan1979."""
        count, mean = values.size, values.mean(dtype=np.float64)
        squares = values.var(dtype=np.float64) * count
        total = self.count + count
        apart = mean - self.mean
        self._squares += squares + apart**2 * self.count * count / total
        self.mean += apart * count / total
        self.count = total

    @property
    def std(self) -> float:
        """The standard deviation."""
        return float(np.sqrt(self._squares / max(self.count, 1)))


class ByParts:
    """`normalise` of an image that comes part by part, twice: all of it to `add`, and then what is to be normalised.

    Mean and deviation differ from those of the whole by rounding in float64; all else is the same.
    """

    def __init__(self, how: Sequence[Normalization]) -> None:
        self._how = how
        joint = Moments()
        self._moments = [joint if one.kind == JOINT else Moments() if one.kind == "zscore" else None for one in how]

    def add(self, part: NDArray[np.float32]) -> None:
        """A part of every channel: (C, *S)."""
        for values, one, moments in zip(part, self._how, self._moments, strict=True):
            if moments is not None:
                moments.add(_clipped(values, one))

    def normalise(self, part: NDArray[np.float32]) -> NDArray[np.float32]:
        """(C, *S) -> the same."""
        made = np.empty(part.shape, np.float32)
        for target, values, one, moments in zip(made, part, self._how, self._moments, strict=True):
            if moments is None:
                target[:] = normalise_channel(values, one)
            else:
                target[:] = _standardised(_clipped(values, one), moments.mean, moments.std)
        return made


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
