"""The grid of the network where a recipe fixes sizes: every image resampled to one, or cropped and padded to one."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ulna.errors import UsageError, counted
from ulna.planning.levels import divisor_of, product, unplanned_strides
from ulna.recipe import Architecture, Fingerprint, Plan
from ulna.recipe.choices import Planning


def check_grid(planning: Planning) -> None:
    """Refuse sizes that contradict each other; nothing of the data is known yet.

    Raises:
        UsageError: with the first.
    """
    given = {
        name: values for name in ("spacing", "size", "crop", "patch") if (values := getattr(planning, name)) is not None
    }
    lengths = {name: len(values) for name, values in given.items()}
    volumes = dict(lengths)
    if planning.spatial_dims != 3 and lengths.get("spacing") == 3:
        del volumes["spacing"]  # of volumes, beside sizes of their slices
    if len(set(lengths.values())) > 1 and set(volumes.values()) != {2}:
        told = " and ".join(f"planning.{name}={_list(values)}" for name, values in given.items())
        raise UsageError(
            f"{told} are of different numbers of axes; give one entry for each axis, null to leave one open"
        )
    size, crop = given.get("size", ()), given.get("crop", ())
    alike = lengths.get("spacing") == lengths.get("size")  # else it is looked at again once slices are known
    for axis, (spacing, voxels) in enumerate(zip(given["spacing"], size, strict=True) if alike and size else ()):
        if spacing is not None and voxels is not None:
            raise UsageError(
                f"planning.spacing={_list(given['spacing'])} and planning.size={_list(size)} both fix axis {axis}; "
                "set one of them to null there"
            )
    if any(c is not None and n is not None and c > n for c, n in zip(crop, size, strict=False)):
        raise UsageError(
            f"planning.crop={_list(crop)} is larger than planning.size={_list(size)}, to which every image is resampled "
            "before; crop to no more than that, or leave one of them out"
        )


def check_axes(planning: Planning, dims: int) -> None:
    """Refuse sizes and spacings of another number of axes than the images.

    Raises:
        UsageError: with the first.
    """
    spacing = planning.spacing
    if spacing is not None and (len(spacing) != dims or any(s is not None and s <= 0 for s in spacing)):
        raise UsageError(
            f"planning.spacing={_list(spacing)} does not fit {dims}D images; give {dims} lengths above 0, or null along an "
            "axis where every image keeps its own"
        )
    for name, values in (("size", planning.size), ("crop", planning.crop)):
        if values is not None and len(values) != dims:
            raise UsageError(
                f"planning.{name}={_list(values)} does not fit {dims}D images; give {dims} numbers of voxels, or null along "
                "an axis that it leaves open"
            )


def fixed_sizes(
    data: Fingerprint,
    planning: Planning,
    spacing: tuple[float, ...],
    size: tuple[int, ...],
    reasons: dict[str, str],
) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Spacing and median size of the grid with what `planning.size` and `planning.crop` fix; adds the reasons.

    Args:
        data: the training cases.
        planning: of the recipe, for as many axes as the images have.
        spacing: of the grid without them.
        size: of the median image there.
    """
    if planning.size is not None:
        wanted = planning.size
        extents = zip(wanted, data.size.median, data.spacing.median, spacing, strict=True)
        spacing = tuple(s if w is None else float(n) * float(own) / w for w, n, own, s in extents)
        size = tuple(n if w is None else w for w, n in zip(wanted, size, strict=True))
        low, high = (product(f"{n:g}" for n in end) for end in (data.size.min, data.size.max))
        reasons["size"] = (
            f"{_list(wanted)}: every image is resampled to it, as the recipe asks, and its answer back; the cases "
            + (f"have {low}" if low == high else f"reach from {low} to {high}")
        )
        fixed = f"{product(f'{s:.4g}' for s in spacing)} {data.unit}"
        if all(w is not None for w in wanted):
            reasons["spacing"] = f"{fixed}: that of the median image at planning.size"
        else:
            reasons["spacing"] += f"; {fixed} with planning.size"
    if planning.crop is not None:
        reasons["crop"] = (
            f"{_list(planning.crop)}: what is kept about the middle of every image, as the recipe asks; what is shorter is "
            "padded with its outermost voxels, and beyond it every answer is background"
        )
        size = tuple(n if c is None else c for c, n in zip(planning.crop, size, strict=True))
    return spacing, size


def check_divisor(planning: Planning, size: tuple[int, ...], architecture: Architecture, model: str) -> None:
    """Refuse a fixed size that is smaller than what a network of fixed depth divides an image by.

    Raises:
        UsageError: naming both.
    """
    if architecture.channels is None and architecture.strides is None and architecture.levels is None:
        return
    strides = unplanned_strides(architecture, len(size))
    divisor = divisor_of(strides, len(size))
    name = _fixing(planning)
    if name and any(d > n for d, n in zip(divisor, size, strict=True)):
        raise UsageError(
            f"planning.{name}={_list(getattr(planning, name))} is smaller than what the "
            f"{counted(len(strides) + 1, 'level')} of {model} "
            f"divide an image by, {product(divisor)}; take a larger one, or fewer levels"
        )


def check_patch(planning: Planning, size: tuple[int, ...], patch: tuple[int, ...], divisor: Sequence[int]) -> None:
    """Refuse a fixed patch that is larger than the fixed size of all images, rounded up to what the network divides by.

    Raises:
        UsageError: naming both.
    """
    name = _fixing(planning)
    if not name or planning.patch is None:
        return
    fixed = [
        c if c is not None else s for c, s in zip(_open(planning.crop, size), _open(planning.size, size), strict=True)
    ]
    if any(n is not None and p > math.ceil(n / d) * d for p, n, d in zip(patch, fixed, divisor, strict=True)):
        raise UsageError(
            f"planning.patch={_list(patch)} is larger than planning.{name}={_list(getattr(planning, name))}, which every "
            f"image has then; take a patch of at most {product(size)}, or a larger {name}"
        )


def kept_axes(planning: Planning) -> tuple[int, ...]:
    """The axes along which every image keeps its own spacing."""
    sized = {axis for axis, voxels in enumerate(planning.size or ()) if voxels is not None}
    return tuple(a for a, step in enumerate(planning.spacing or ()) if step is None and a not in sized)


def median_grid(plan: Plan) -> tuple[int, ...]:
    """The size of the median image of the training on the plan's grid, cropped or padded as it says."""
    found, dims = plan.fingerprint, plan.image_dims
    spacing = plan.spacing or found.spacing.median
    lengths = zip(found.size.median, found.spacing.median, spacing, strict=True)
    grid = [max(1, round(n * own / step)) for n, own, step in lengths]
    for fixed in (plan.size, plan.crop):
        grid = [n if f is None else f for n, f in zip(grid, fixed or (None,) * dims, strict=True)]
    return tuple(grid)


def stated_spacing(plan: Plan) -> tuple[float | None, ...] | None:
    """The spacing of a plan as a recipe states it: null where every image keeps its own, or is resampled to a size."""
    open_axes = {*plan.kept_axes, *plan.sized_axes}
    return None if plan.spacing is None else tuple(None if a in open_axes else s for a, s in enumerate(plan.spacing))


def _fixing(planning: Planning) -> str:
    """What gives all images one size along some axis: the last of what is done."""
    for name in ("crop", "size"):
        if any(n is not None for n in getattr(planning, name) or ()):
            return name
    return ""


def _open(values: Sequence[int | None] | None, like: Sequence[int]) -> Sequence[int | None]:
    return (None,) * len(like) if values is None else values


def _list(values: Sequence[float | None]) -> str:
    """As YAML has it."""
    return "[" + ", ".join("null" if value is None else f"{value:g}" for value in values) + "]"
