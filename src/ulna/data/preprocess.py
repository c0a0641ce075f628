"""The one way from a volume to what the network sees, and back. Training and prediction both take it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ulna.errors import UsageError
from ulna.recipe import Normalization, Plan
from ulna.volume import Volume


class Prepared(NamedTuple):
    """An image on the grid of the plan.

    Args:
        image: (C, *S'), float32, normalised.
        size: *S of the volume it came from.
    """

    image: Tensor
    size: tuple[int, ...]


def prepare(volume: Volume, plan: Plan) -> Prepared:
    """Resample to the plan's spacing (linear) and normalise every channel: Volume (C, *S) -> (C, *S').

    Raises:
        UsageError: if the volume has other dimensions or channels than the plan.
    """
    name = volume.path or "image"
    if volume.spatial_dims != plan.spatial_dims:
        raise UsageError(
            f"{name}: a {volume.spatial_dims}D image; this model was planned for {plan.spatial_dims}D images"
        )
    if volume.channels != plan.in_channels:
        raise UsageError(
            f"{name}: {volume.channels} channels; this model reads {plan.in_channels} ({', '.join(plan.channel_names)})"
        )
    if plan.spacing is not None and volume.unit != plan.unit:
        raise UsageError(
            f"{name}: its spacing is in {volume.unit}, this model works on a grid of {plan.spacing} {plan.unit}; "
            "give an image that states its spacing as the training images did"
        )
    array = np.ascontiguousarray(volume.array, dtype=np.float32)
    if not np.isfinite(array).all():
        bad = array.size - int(np.count_nonzero(np.isfinite(array)))
        raise UsageError(f"{name}: {bad} values are NaN or infinite; replace them, or export the image again")
    channels = [normalise(channel, how) for channel, how in zip(array, plan.normalization, strict=True)]
    image = torch.from_numpy(np.stack(channels))
    return Prepared(_resize(image, grid_size(volume.size, volume.spacing, plan), "linear"), volume.size)


def prepare_labels(labels: NDArray[Any], spacing: tuple[float, ...], plan: Plan) -> Tensor:
    """A reference on the grid of the plan, by nearest neighbour: (*S) or (K, *S) -> (*S') or (K, *S'), uint8 or int32."""
    exclusive = labels.ndim == plan.spatial_dims
    small = labels.astype(np.uint8 if labels.max(initial=0) < 256 else np.int32)
    maps = torch.from_numpy(small[None] if exclusive else small)
    size = grid_size(tuple(maps.shape[1:]), spacing, plan)
    if tuple(maps.shape[1:]) != size:
        maps = _resize(maps.float(), size, "nearest").to(maps.dtype)
    return maps[0] if exclusive else maps


def restore(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """Back to the grid of the volume, linearly: probabilities (K, *S') -> (K, *S)."""
    return _resize(maps, size, "linear")


def grid_size(size: tuple[int, ...], spacing: tuple[float, ...], plan: Plan) -> tuple[int, ...]:
    """*S' of an image of `size` and `spacing` on the grid of the plan."""
    if plan.spacing is None:
        return size
    return tuple(max(1, round(n * s / t)) for n, s, t in zip(size, spacing, plan.spacing, strict=True))


def normalise(values: NDArray[np.float32], how: Normalization) -> NDArray[np.float32]:
    """One channel, (*S) -> (*S); see `Normalization`. A constant image becomes 0."""
    if how.kind == "zscore":
        return np.asarray(
            (values - values.mean(dtype=np.float64)) / max(float(values.std(dtype=np.float64)), 1e-8), np.float32
        )
    if how.kind == "ct":
        return np.asarray((values.clip(how.low, how.high) - how.mean) / max(how.std, 1e-8), np.float32)
    if how.kind == "rescale":
        return np.asarray((values - how.low) / max(how.high - how.low, 1e-8), np.float32)
    return values


def _resize(maps: Tensor, size: tuple[int, ...], how: str) -> Tensor:
    """(C, *S) -> (C, *size), cell centres aligned; untouched where the size stays."""
    if tuple(maps.shape[1:]) == tuple(size):
        return maps
    if how == "nearest":
        return F.interpolate(maps[None], size=size, mode="nearest-exact")[0]
    mode = "bilinear" if len(size) == 2 else "trilinear"
    return F.interpolate(maps[None], size=size, mode=mode, align_corners=False)[0]
