"""The one way from a volume to what the network sees, and back. Training and prediction both take it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ulna.data.whitening import whiten
from ulna.errors import UsageError
from ulna.recipe import Normalization, Plan
from ulna.volume import Volume

_CHUNK = 1 << 22  # values of a slab on its way back: a few MB, whatever the number of classes


class Prepared(NamedTuple):
    """An image on the grid of the plan.

    Args:
        image: (C, *S'), float32, normalised.
        size: *S of the volume it came from.
        margins: what `framed` put before and behind the image along every axis of S'; empty for nothing.
    """

    image: Tensor
    size: tuple[int, ...]
    margins: tuple[tuple[int, int], ...] = ()

    @property
    def inside(self) -> tuple[Any, ...]:
        """The index of what lies between the margins, in an array whose last axes are S'."""
        sides = zip(self.margins, self.image.shape[1:], strict=True) if self.margins else ()
        return (..., *(slice(before, length - behind) for (before, behind), length in sides))


def margins(size: Sequence[int], patch: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """What an image lacks of a patch, before and behind it along every axis: half each, the larger half behind.

    Example:
        >>> margins((35, 56, 60), (40, 56, 40))
        ((2, 3), (0, 0), (0, 0))
    """
    missing = [max(p - n, 0) for n, p in zip(size, patch, strict=True)]
    return tuple((m // 2, m - m // 2) for m in missing)


def extend(maps: Tensor, sides: Sequence[tuple[int, int]]) -> Tensor:
    """Repeat the outermost voxels: (K, *S) -> (K, *S with its margins)."""
    if not any(itertools.chain(*sides)):
        return maps
    return F.pad(maps[None], [*itertools.chain(*reversed(sides))], mode="replicate")[0]


def framed(prepared: Prepared, patch: Sequence[int]) -> Prepared:
    """An image as training sees it, never smaller than a patch: for networks that go by the place in one."""
    sides = margins(prepared.image.shape[1:], patch)
    return Prepared(extend(prepared.image, sides), prepared.size, sides)


def check_fit(volume: Volume, plan: Plan) -> None:
    """Refuse an image of another kind than the plan is for.

    Raises:
        UsageError: if the volume has other dimensions, channels or units of length.
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


def prepare(volume: Volume, plan: Plan) -> Prepared:
    """Resample to the plan's spacing (linear), normalise every channel, and whiten: Volume (C, *S) -> (C, *S').

    Raises:
        UsageError: if the volume has other dimensions or channels than the plan.
    """
    check_fit(volume, plan)
    name = volume.path or "image"
    array = np.ascontiguousarray(volume.array, dtype=np.float32)
    if not np.isfinite(array).all():
        bad = array.size - int(np.count_nonzero(np.isfinite(array)))
        raise UsageError(f"{name}: {bad} values are NaN or infinite; replace them, or export the image again")
    channels = [normalise(channel, how) for channel, how in zip(array, plan.normalization, strict=True)]
    image = torch.from_numpy(np.stack(channels))
    if plan.whitening is not None:
        image = whiten(image, plan.whitening)
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


def restore(slabs: Iterable[Tensor], grid: tuple[int, ...], size: tuple[int, ...], axis: int = 0) -> Iterator[Tensor]:
    """Back to the grid of the volume, linearly, slab by slab: the way back from `prepare` for maps such as probabilities.

    Args:
        slabs: (K, *S') with some rows along `axis`, in order and together all of them; each is used before the next.
        grid: *S', of all slabs together.
        size: *S of the volume.
        axis: the spatial axis that the slabs lie along.

    Yields:
        (K, *S) with some rows along `axis`, in order and together all of them; good until the next one is asked for.
    """
    if grid == size:
        yield from slabs
        return
    place = ((torch.arange(size[axis]) + 0.5) * grid[axis] / size[axis] - 0.5).clamp_min(0)  # between rows of the grid
    below = place.long()
    above = (below + 1).clamp_max(grid[axis] - 1)
    share = place - below
    done, first, before = 0, 0, None  # rows handed out; the first row of the slab, and the row before it
    for slab in slabs:
        end = first + slab.shape[axis + 1]
        ready = int(torch.searchsorted(above, end))
        some = max(1, _CHUNK // (slab.shape[0] * math.prod(size) // size[axis]))
        for start in range(done, ready, some):
            chosen = slice(start, min(start + some, ready))
            near, far = (_rows(slab, rows[chosen] - first, before, axis + 1) for rows in (below, above))
            weight = share[chosen].reshape([-1 if a == axis + 1 else 1 for a in range(slab.ndim)])
            between = torch.lerp(near, far, weight.to(slab))
            yield _resize(between, (*size[:axis], between.shape[axis + 1], *size[axis + 1 :]), "linear")
        done, first, before = ready, end, slab.narrow(axis + 1, slab.shape[axis + 1] - 1, 1).clone()


def _rows(slab: Tensor, rows: Tensor, before: Tensor | None, axis: int) -> Tensor:
    """Rows of a slab along an axis; row -1 is the one before it."""
    chosen = slab.index_select(axis, rows.clamp_min(0).to(slab.device))
    count = int((rows < 0).sum())
    if count and before is not None:
        chosen.narrow(axis, 0, count).copy_(before)
    return chosen


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
