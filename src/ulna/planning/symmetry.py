"""Along which axes an image may be flipped and turned without becoming an image that its labels do not fit."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Sequence

import numpy as np

from ulna.data.pipeline.orientation import DIRECTIONS

# An axis that turns this much to the side (the sine, 17 degrees) is not free of the direction.
OBLIQUE = 0.3
ASKEW = -1  # in place of an axis: slices lie oblique to this direction
# Words for the two ends of each world axis (R, A, S)
OPPOSITES = (
    {"left": "right", "l": "r", "lt": "rt"},
    {"anterior": "posterior", "ant": "post", "ventral": "dorsal", "front": "back"},
    {"superior": "inferior", "sup": "inf", "cranial": "caudal", "upper": "lower"},
)


def mirror_axes(
    names: Sequence[str], dims: int, world_axes: Sequence[int | None] | None
) -> tuple[tuple[int, ...], str]:
    """The axes along which a mirrored image is labelled as rightly as the image, and why.

    Args:
        names: of the classes.
        dims: spatial dimensions.
        world_axes: from `world_axes`, of slices from `slice_axes`; None where the files do not say.
    """
    axes, told = tuple(range(dims)), told_apart(names)
    if not told:
        return axes, "flips along every axis: no structures are named after opposite sides"
    taken, reasons = [], []
    for world in told:
        words = "left and right" if world == 0 else " and ".join(_pair(names, world))
        axis = world_axes[world] if world_axes is not None else None
        if axis == ASKEW:
            return (), (
                f"no flips: classes are named {words}, a mirrored image would be labelled wrongly, and slices lie oblique to "
                f"the direction from {DIRECTIONS[world]}"
            )
        if axis is None and dims == 2 and world_axes is not None:
            continue  # a slice is flat along it, so that no flip exchanges its ends
        if axis is None:
            return (), (
                f"no flips: classes are named {words}, a mirrored image would be labelled wrongly, and the files do not "
                f"say which axis goes from {DIRECTIONS[world]}"
            )
        taken.append(axis)
        reasons.append(f"no flips along axis {axis}, which goes from {DIRECTIONS[world]}: classes are named {words}")
    why = (
        "; ".join(reasons) or "flips along both axes: slices are flat along the axis whose ends classes are named after"
    )
    return tuple(axis for axis in axes if axis not in taken), why


def told_apart(names: Sequence[str]) -> list[int]:
    """The world axes (0: left to right, 1: back to front, 2: foot to head) whose ends the names of classes tell apart.

    One structure named left or right is enough; along the other axes both of a pair must be there.

    Example:
        >>> told_apart(["kidney_l", "kidney_r"]), told_apart(["Anterior", "Posterior"]), told_apart(["inferior vena cava"])
        ([0], [1], [])
    """
    sided = any(re.search("(?<!c)left|(?<!b)right", name.lower()) for name in names)  # not cleft, bright
    return [world for world in range(3) if (world == 0 and sided) or _pair(names, world)]


def _pair(names: Sequence[str], world: int) -> tuple[str, ...]:
    """Two names that differ in the ends of an axis alone; nothing if there are none."""
    swap = OPPOSITES[world] | {there: here for here, there in OPPOSITES[world].items()}
    words = [tuple(re.split(r"[^a-z]+", name.lower())) for name in names]
    for name, parts in zip(names, words, strict=True):
        other = tuple(swap.get(part, part) for part in parts)
        if other != parts and other in words:
            return name, names[words.index(other)]
    return ()


def world_axes(affines: Iterable[Sequence[Sequence[float]] | None]) -> list[int | None]:
    """The voxel axes that go from left to right, back to front and foot to head in all of these affines.

    None for an axis that is oblique or differs, and for all where an affine is unknown.

    Example:
        >>> world_axes([[(0, -2, 0, 9), (1, 0, 0, 9), (0, 0, 3, 9), (0, 0, 0, 1)]])
        [1, 0, 2]
    """
    found: list[set[int | None]] = [set(), set(), set()]
    for affine in affines:
        if affine is None:
            return [None, None, None]
        axes = np.abs(np.asarray(affine, dtype=np.float64)[:3, :3])
        for world in range(3):
            shares = axes[world] / np.linalg.norm(axes, axis=0)  # how far a step along each axis goes this way
            axis = int(np.argmax(shares))
            found[world].add(None if np.delete(shares, axis).max() > OBLIQUE else axis)
    return [next(iter(one)) if len(one) == 1 else None for one in found]


def slice_axes(affines: Iterable[Sequence[Sequence[float]]], worlds: Sequence[int]) -> list[int | None]:
    """The pixel axes of slices that go from left to right, back to front and foot to head.

    None for the direction that the slices do not span; ASKEW where another axis than its own goes along a direction too, in
    any of these affines: slices turned in their plane, or tilted out of it.

    Args:
        affines: of slices along the canonical axes.
        worlds: the world axes that the two of them go along.

    Example:
        >>> slice_axes([[(0.8, -0.6, 0, 9), (0.6, 0.8, 0, 9), (0, 0, 3, 9), (0, 0, 0, 1)]], (0, 1))
        [-1, -1, None]
    """
    found: list[int | None] = [worlds.index(world) if world in worlds else None for world in range(3)]
    for affine in affines:
        axes = np.abs(np.asarray(affine, dtype=np.float64)[:3, :2])
        shares = axes / np.linalg.norm(axes, axis=0)
        for world, axis in itertools.product(range(3), range(2)):
            if worlds[axis] != world and shares[world, axis] > OBLIQUE:
                found[world] = ASKEW
    return found


def turn_axes(
    patch: Sequence[int], spacing: Sequence[float], mirror: Sequence[int], *, oriented: bool
) -> tuple[tuple[int, int] | None, str]:
    """Two axes that a quarter turn may exchange, and why: equal in the patch and in space, and free to be mirrored.

    Args:
        patch: what is turned.
        spacing: of its grid.
        mirror: the axes that may be flipped.
        oriented: the files say how the patient lies, so that no image ever comes turned.
    """
    if oriented:
        return None, "no quarter turns: the files say how the patient lies, so no image will come turned"
    for a, b in ((0, 1), (1, 2), (0, 2)):
        free = b < len(patch) and {a, b} <= set(mirror)
        if free and patch[a] == patch[b] and math.isclose(spacing[a], spacing[b], rel_tol=0.01):
            return (a, b), f"quarter turns exchange axes {a} and {b}: equal in size and spacing"
    return None, "no quarter turns: no two axes are equal in size and spacing and free to be mirrored"
