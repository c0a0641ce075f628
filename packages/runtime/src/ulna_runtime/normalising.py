"""The values of an image as the network sees them: clipped, then standardised or rescaled, then whitened."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ulna_runtime.pipeline import Normalization, Whitening

Image = NDArray[np.float32]

TINY = 1e-8  # the least that is divided by: a constant image becomes 0


def normalise(array: Image, how: Sequence[Normalization], inside: tuple[Any, ...] = (...,)) -> Image:
    """Every channel of an image by what is said of it: (C, *S) -> the same.

    Args:
        array: the image.
        how: one a channel.
        inside: the index of what an image's own mean and deviation are of, in an array whose last axes are *S.
    """
    channels = [_channel(values, one, inside) for values, one in zip(array, how, strict=True)]
    joint = [number for number, one in enumerate(how) if one.kind == "zscore_joint"]
    if joint:
        together = _standardise(np.stack([channels[n] for n in joint]), inside)
        for number, values in zip(joint, together, strict=True):
            channels[number] = values
    return np.stack(channels)


def _channel(values: Image, how: Normalization, inside: tuple[Any, ...]) -> Image:
    if how.clip is not None:
        low, high = how.clip
        values = np.asarray(
            values.clip(-math.inf if low is None else low, math.inf if high is None else high), np.float32
        )
    if how.kind == "zscore":
        return _standardise(values, inside)
    if how.kind == "ct":
        return np.asarray((values.clip(how.low, how.high) - how.mean) / max(how.std, TINY), np.float32)
    if how.kind == "rescale":
        return np.asarray((values - how.low) / max(how.high - how.low, TINY), np.float32)
    return values


def _standardise(values: Image, inside: tuple[Any, ...]) -> Image:
    own = values[inside]
    mean, std = own.mean(dtype=np.float64), float(own.std(dtype=np.float64))
    return np.asarray((values - mean) / max(std, TINY), np.float32)


def whiten(image: Image, how: Whitening) -> Image:
    """Every voxel x becomes W (x - mean): (C, *S) -> the same."""
    mean, matrix = np.array(how.mean, np.float32), np.array(how.matrix, np.float32)
    return (matrix @ (image.reshape(len(image), -1) - mean[:, None])).reshape(image.shape)
