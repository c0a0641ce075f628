"""From a volume to what the network sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ulna_runtime.cropping import Crop, Sides, crop_of, cut, extend, inside, margins
from ulna_runtime.errors import UsageError
from ulna_runtime.normalising import normalise, whiten
from ulna_runtime.pipeline import Plan
from ulna_runtime.resampling import resample, steps
from ulna_runtime.turning import AS_STORED, Turn, to_canonical
from ulna_runtime.volume import Volume


class Prepared(NamedTuple):
    """An image on the grid of the plan.

    Args:
        image: (C, *S'), float32, normalised.
        size: *S of the volume it came from, turned as the network sees it.
        margins: what was put before and behind the image along every axis.
        turn: how the volume was turned.
        step: of the grid, in voxels of the volume along the turned axes.
        crop: what is kept of the grid of the whole volume; None for all of it.
    """

    image: NDArray[np.float32]
    size: tuple[int, ...]
    margins: Sides
    turn: Turn
    step: tuple[float, ...]
    crop: Crop | None

    @property
    def grid(self) -> tuple[int, ...]:
        """*S' without the margins."""
        return tuple(n - b - a for n, (b, a) in zip(self.image.shape[1:], self.margins, strict=True))


def check_fit(volume: Volume, plan: Plan) -> None:
    """Refuse an image of another kind than the plan is for.

    Raises:
        UsageError: if it has other dimensions or channels, or does not say how it lies where the plan needs it.
    """
    name, channels = volume.name, len(volume.array)
    if len(volume.size) != plan.image_dims:
        raise UsageError(f"{name}: a {len(volume.size)}D image; this model reads {plan.image_dims}D images")
    if channels != plan.in_channels:
        raise UsageError(
            f"{name}: {channels} channels; this model reads {plan.in_channels} ({', '.join(plan.channel_names)})"
        )
    one_spacing = plan.orientation is None and plan.spacing_min == plan.spacing_max
    if volume.unit != plan.unit and plan.unit == "mm" and plan.needs_spacing and not one_spacing:
        spacing = ", ".join(f"{s:g}" for s in plan.spacing)
        raise UsageError(
            f"{name}: its spacing is in {volume.unit}, this model works on a grid of ({spacing}) {plan.unit}; "
            "give an image that states its spacing as the training images did"
        )
    if plan.orientation is not None and volume.affine is None:
        raise UsageError(
            f"{name}: states no orientation, and this model reads images turned to {plan.orientation}; "
            "give a file that states it, such as NIfTI"
        )


def turn_of(volume: Volume, plan: Plan) -> Turn:
    """How a volume is turned for the network; not at all where the plan or the file has no orientation."""
    if plan.orientation is None or volume.affine is None:
        return AS_STORED
    return to_canonical(volume.affine, len(volume.size))


def prepare(volume: Volume, plan: Plan) -> Prepared:
    """Turn, normalise every channel, whiten, resample, and crop or pad: Volume (C, *S) -> (C, *S').

    Raises:
        UsageError: if the volume does not fit the plan, or holds NaN or infinity.
    """
    check_fit(volume, plan)
    turn = turn_of(volume, plan)
    values = np.ascontiguousarray(turn.forward(volume.array), dtype=np.float32)
    bad = values.size - int(np.count_nonzero(np.isfinite(values)))
    if bad:
        raise UsageError(f"{volume.name}: {bad} values are NaN or infinite; replace them, or export the image again")
    size, step = tuple(values.shape[1:]), _steps(volume, plan, turn)
    crop = crop_of(size, step, plan.crop)
    image = normalise(values, plan.normalization, inside(crop))
    if plan.whitening is not None:
        image = whiten(image, plan.whitening)
    sides = ((0, 0),) * len(size) if crop is None else crop.margins
    return Prepared(cut(resample(image, step), crop), size, sides, turn, step, crop)


def pad_to_patch(prepared: Prepared, patch: Sequence[int]) -> Prepared:
    """An image as training sees it, never smaller than a patch: for networks that go by the place in one."""
    more = margins(prepared.image.shape[1:], patch)
    sides = tuple((b + c, a + d) for (b, a), (c, d) in zip(prepared.margins, more, strict=True))
    return prepared._replace(image=extend(prepared.image, more), margins=sides)


def _steps(volume: Volume, plan: Plan, turn: Turn) -> tuple[float, ...]:
    """The step of the plan's grid in voxels of a volume."""
    if volume.unit == plan.unit:
        spacing = turn.order(volume.spacing)
    else:  # an image in pixels lies on the plan's own grid; a plan in pixels takes every image pixel by pixel
        spacing = plan.spacing if plan.unit == "mm" else (1.0,) * len(volume.size)
    by_spacing = steps(spacing, plan.spacing)
    size, wanted = turn.order(volume.size), plan.size or (None,) * plan.image_dims
    return tuple(
        n / voxels if voxels is not None else 1.0 if axis in plan.kept_axes else step
        for axis, (step, n, voxels) in enumerate(zip(by_spacing, size, wanted, strict=True))
    )
