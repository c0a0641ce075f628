"""The one way from a volume to what the network sees, and back. Training and prediction both take it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ulna.data.pipeline import format_1
from ulna.data.pipeline.cropping import Crop, crop_of, cut, extend, inside, margins, put_back
from ulna.data.pipeline.normalising import Index, normalise, normalise_there
from ulna.data.pipeline.orientation import AS_STORED, PLANES, Turn, codes, turn_of, world_of
from ulna.data.pipeline.resampling import nearest, points, resample, restore, steps
from ulna.data.pipeline.whitening import whiten
from ulna.data.volume import Volume, spacing_text
from ulna.errors import UsageError, counted
from ulna.recipe import Plan
from ulna.system.device import to_device

SENT = ("uint8", "int8", "int16")  # types in which values go to a GPU as they are stored
FAR = 1.05  # times the spacings of the training: an image beyond them is noted


class Prepared(NamedTuple):
    """An image on the grid of the plan.

    Args:
        image: (C, *S'), float32, normalised.
        size: *S of the volume it came from, turned as the network sees it.
        margins: what the plan's crop or `pad_to_patch` put before and behind the image along every axis of S'; empty for
            nothing.
        turn: how the volume was turned.
        step: of the grid, in voxels of the volume along the turned axes; None where both cover one field of view: the
            volume's own grid, or that of a plan of format 1.
        crop: what is kept of the grid of the whole volume; None for all of it.
    """

    image: Tensor
    size: tuple[int, ...]
    margins: tuple[tuple[int, int], ...] = ()
    turn: Turn = AS_STORED
    step: tuple[float, ...] | None = None
    crop: Crop | None = None

    @property
    def inside(self) -> tuple[Any, ...]:
        """The index of what lies between the margins, in an array whose last axes are S'."""
        sides = zip(self.margins, self.image.shape[1:], strict=True) if self.margins else ()
        return (..., *(slice(before, length - behind) for (before, behind), length in sides))


def pad_to_patch(prepared: Prepared, patch: Sequence[int]) -> Prepared:
    """An image as training sees it, never smaller than a patch: for networks that go by the place in one."""
    more = margins(prepared.image.shape[1:], patch)
    sides = tuple((b + c, a + d) for (b, a), (c, d) in zip(_sides(prepared), more, strict=True))
    return prepared._replace(image=extend(prepared.image, more), margins=sides)


def check_fit(volume: Volume, plan: Plan) -> None:
    """Refuse an image of another kind than the plan is for.

    Raises:
        UsageError: if the volume has other dimensions or channels, or does not say how it lies where the plan needs it.
    """
    name = volume.path or "image"
    if volume.spatial_dims != plan.image_dims:
        slices = "" if plan.slices is None else ", whose slices it reads"
        raise UsageError(
            f"{name}: a {volume.spatial_dims}D image; this model was planned for {plan.image_dims}D images{slices}"
        )
    if volume.channels != plan.in_channels:
        raise UsageError(
            f"{name}: {counted(volume.channels, 'channel')}; this model reads {plan.in_channels} "
            f"({', '.join(plan.channel_names)}); {_give_channels(volume, plan)}"
        )
    if plan.spacing is None:
        return
    # a plan in pixels takes any image pixel by pixel
    lost = plan.unit == "mm" and plan.needs_spacing and not _one_spacing(plan)
    if volume.unit != plan.unit and (lost or plan.format == 1):
        raise UsageError(
            f"{name}: its spacing is in {volume.unit}, this model works on a grid of {plan.spacing} {plan.unit}; "
            "give an image that states its spacing as the training images did"
        )
    if plan.orientation is not None and volume.affine is None:
        raise UsageError(
            f"{name}: states no orientation, and this model reads images turned to {plan.orientation}; "
            "give a file that states it, such as NIfTI"
        )


def _give_channels(volume: Volume, plan: Plan) -> str:
    """What to do about other channels than those of the training."""
    if plan.in_channels == 1:
        return "save the channel that it was trained on as an image of its own"
    files = f"CASE_0000 to CASE_{plan.in_channels - 1:04d}"
    if volume.channels == 1 and plan.in_channels == 3 and plan.image_dims == 2:
        return f"save it as red, green and blue, or give a file for every channel ({files})"
    return f"give a file for every channel ({files})"


def _one_spacing(plan: Plan) -> bool:
    """Whether all training images had one spacing and no orientation: an image that states none is one more of them."""
    spacing = plan.fingerprint.spacing
    return plan.orientation is None and spacing.min == spacing.max


def grid_spacing(volume: Volume, plan: Plan) -> tuple[float, ...]:
    """The spacing of a volume along the axes that the network sees, in the unit of the plan.

    An image in pixels for a plan in mm lies on the plan's own grid (`check_fit` lets it pass where all training images did);
    a plan in pixels takes every image pixel by pixel.
    """
    if volume.unit == plan.unit:
        return turn_of(volume, plan).order(volume.spacing)
    return (plan.spacing or volume.spacing) if plan.unit == "mm" else (1.0,) * volume.spatial_dims


def differences(volume: Volume, plan: Plan) -> tuple[str, ...]:
    """Where an image differs from those of the training in a way that a person should know of; nothing for format 1."""
    if plan.format == 1 or plan.spacing is None:
        return ()
    name, notes = volume.path or "the image", []
    sized = plan.sized_axes
    if volume.unit != plan.unit and len(sized) < plan.image_dims:
        notes.append(
            f"{name}: states a spacing in {volume.unit}, the training images none; its pixels and axes are taken as stored"
            if plan.unit == "px"
            else f"{name}: states no spacing; it is taken to have that of all training images, {spacing_text(plan.spacing)}"
        )
        return tuple(notes)
    spacing = grid_spacing(volume, plan)
    low, high = plan.fingerprint.spacing.min, plan.fingerprint.spacing.max
    known = enumerate(zip(spacing, low, high, strict=True))
    far = {axis for axis, (s, a, b) in known if axis not in sized and not a / FAR <= s <= b * FAR}
    if far and far <= set(plan.kept_axes):
        notes.append(
            f"{name}: has a spacing of {spacing_text(spacing)}, the training images "
            + (spacing_text(low) if low == high else f"{spacing_text(low)} to {spacing_text(high)}")
            + "; its own is kept there, and it may be segmented less well"
        )
    elif far:
        resampled = (
            f"it is resampled to {spacing_text(plan.spacing)}, and "
            if plan.size is None and not plan.kept_axes
            else "it "
        )
        notes.append(
            f"{name}: has a spacing of {spacing_text(spacing)}, the training images "
            + (spacing_text(low) if low == high else f"{spacing_text(low)} to {spacing_text(high)}")
            + f"; {resampled}may be segmented less well"
        )
    if plan.orientation is not None and volume.affine is not None and not volume.meta.oriented:
        assumed = codes(volume.affine, volume.spatial_dims)
        notes.append(f"{name}: states no orientation; {assumed} is assumed: see that left and right are not exchanged")
    worlds = plan.fingerprint.worlds
    if plan.orientation is not None and plan.image_dims == 2 and worlds and volume.affine is not None:
        own = list(world_of(volume.affine, 2))
        if own != list(worlds):
            notes.append(
                f"{name}: is a slice that lies {PLANES[tuple(own)]}, those of the training {PLANES[tuple(worlds)]}"
            )
    return tuple(notes)


def prepare(volume: Volume, plan: Plan, device: torch.device | None = None) -> Prepared:
    """Turn to the plan's orientation, normalise every channel, whiten, resample to the plan's spacing or size (linear,
    smoothed along axes that get coarser), and crop or pad: Volume (C, *S) -> (C, *S').

    Args:
        volume: the image.
        plan: of the run.
        device: where the image is computed and lies; by default the CPU. A GPU gets the values as they are stored, and
            differs from a CPU by rounding.

    Raises:
        UsageError: if the volume has other dimensions or channels than the plan, does not state its spacing or orientation
            where the plan needs it, or holds NaN or infinity.
    """
    check_fit(volume, plan)
    name = volume.path or "image"
    turn = turn_of(volume, plan)
    values = turn.forward(format_1.stored_values(volume) if plan.format == 1 else volume.array)
    size, step = tuple(values.shape[1:]), steps_of(volume, plan)
    crop = None if step is None else crop_of(size, step, plan.crop)
    if device is None or device.type == "cpu":
        image = _normalised(values, plan, name, inside(crop))
    else:
        image = normalised_on(device, values, plan, name, inside(crop))
    if plan.whitening is not None:
        image = whiten(image, plan.whitening)
    if step is None:
        image = format_1.resize(image, grid_of(volume, plan))
    else:
        image = cut(resample(image, step), crop)
    return Prepared(image, size, () if crop is None else crop.margins, turn, step, crop)


def _normalised(values: NDArray[Any], plan: Plan, name: object, inside: Index) -> Tensor:
    array = np.ascontiguousarray(values, dtype=np.float32)
    if not np.isfinite(array).all():
        raise not_finite(array.size - int(np.count_nonzero(np.isfinite(array))), name)
    return torch.from_numpy(normalise(array, plan.normalization, inside))


def normalised_on(
    device: torch.device, values: NDArray[Any], plan: Plan, name: object, inside: Index = (...,)
) -> Tensor:
    """Stored values (C, *S) -> every channel normalised on a device, (C, *S), float32; `inside` as for `normalise`.

    Raises:
        UsageError: if they hold NaN or infinity.
    """
    small = values.dtype in SENT  # else torch has no such type, or it is no smaller
    stored = np.require(values, None if small else np.float32, ["C", "W"])
    array = to_device(torch.from_numpy(stored), device).float()
    if not small and (bad := int((~torch.isfinite(array)).sum())):
        raise not_finite(bad, name)
    return normalise_there(array, plan.normalization, inside)


def not_finite(bad: int, name: object) -> UsageError:
    """The error for an image with values that are NaN or infinite."""
    return UsageError(f"{name}: {bad} values are NaN or infinite; replace them, or export the image again")


def prepare_labels(labels: NDArray[Any], volume: Volume, plan: Plan, *, padded: bool = True) -> Tensor:
    """A reference on the grid of the plan, by nearest neighbour: (*S) or (K, *S) -> (*S') or (K, *S'), uint8 or int32.

    Args:
        labels: on the grid of the image, as the file stores it.
        volume: the image.
        plan: of the run.
        padded: with the margins of the plan's crop, as `prepare` makes an image.
    """
    exclusive = labels.ndim == plan.image_dims
    small = labels.astype(np.uint8 if labels.max(initial=0) < 256 else np.int32)
    small = np.ascontiguousarray(turn_of(volume, plan).forward(small))
    maps = torch.from_numpy(small[None] if exclusive else small)
    step = steps_of(volume, plan)
    if step is None:
        maps = format_1.resize_labels(maps, grid_of(volume, plan))
    else:
        maps = cut(nearest(maps, step), crop_of(maps.shape[1:], step, plan.crop), padded=padded)
    return maps[0] if exclusive else maps


def restored(
    slabs: Iterable[Tensor], prepared: Prepared, axis: int = 0, outside: Tensor | None = None
) -> Iterator[Tensor]:
    """Back from the grid of the plan to that of the image, turned as the network sees it; see `resampling.restore`.

    Args:
        slabs: (K, *S') without margins, some rows along `axis` each.
        prepared: the image.
        axis: the spatial axis, turned, that the slabs lie along.
        outside: (K), the value of every map beyond what the plan keeps of an image; None for 0.
    """
    grid = tuple(
        n - before - behind for n, (before, behind) in zip(prepared.image.shape[1:], _sides(prepared), strict=True)
    )
    if prepared.step is None:
        return format_1.restore(slabs, grid, prepared.size, axis)
    if prepared.crop is not None:
        return put_back(slabs, prepared.crop, prepared.size, prepared.step, axis, outside)
    return restore(slabs, grid, prepared.size, prepared.step, axis)


def grid_of(volume: Volume, plan: Plan) -> tuple[int, ...]:
    """*S' of an image on the grid of the plan, cropped or padded as it says."""
    step = steps_of(volume, plan)
    size = turn_of(volume, plan).order(volume.size)
    if step is None:
        return (
            format_1.grid_size(size, turn_of(volume, plan).order(volume.spacing), plan.spacing)
            if plan.spacing
            else size
        )
    crop = crop_of(size, step, plan.crop)
    return points(size, step) if crop is None else crop.size


def steps_of(volume: Volume, plan: Plan) -> tuple[float, ...] | None:
    """The step of the plan's grid in voxels of a volume; None: see `Prepared`."""
    if plan.spacing is None or plan.format == 1:
        return None
    by_spacing = steps(grid_spacing(volume, plan), plan.spacing)
    size, wanted = turn_of(volume, plan).order(volume.size), plan.size or (None,) * plan.image_dims
    return tuple(
        n / voxels if voxels is not None else 1.0 if axis in plan.kept_axes else step
        for axis, (step, n, voxels) in enumerate(zip(by_spacing, size, wanted, strict=True))
    )


def _sides(prepared: Prepared) -> Sequence[tuple[int, int]]:
    return prepared.margins or ((0, 0),) * len(prepared.size)
