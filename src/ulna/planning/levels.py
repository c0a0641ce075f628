"""How deep a network goes for a patch, and the patch that its strides divide."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from ulna.errors import UsageError
from ulna.networks.build import levels as levels_of
from ulna.recipe import Architecture, Recipe

Strides = tuple[tuple[int, ...], ...]

# The deepest map keeps at least this many pixels along an axis.
SMALLEST_MAP = 4


class Sizes(NamedTuple):
    """What is chosen together, since each bounds the others."""

    patch: tuple[int, ...]
    strides: Strides
    batch: int


def shortened(size: Sequence[int], spacing: Sequence[float], most: int) -> tuple[int, ...]:
    """The size with at most so many voxels: the axis that is longest in space is cut, so that it comes close to a cube."""
    patch = list(size)
    while math.prod(patch) > most:
        extent = [n * distance for n, distance in zip(patch, spacing, strict=True)]
        patch[int(np.argmax(extent))] -= 1
    return tuple(patch)


def choose_strides(
    patch: tuple[int, ...],
    spacing: tuple[float, ...],
    architecture: Architecture,
    dims: int,
    reasons: dict[str, str],
) -> Strides:
    """Between every two levels of a patch, as deep as the architecture goes and the patch has voxels; adds the reason.

    Raises:
        UsageError: if the architecture fixes more levels than the patch has voxels for.
    """
    if architecture.foreign is not None:
        steps = unplanned_strides(architecture, dims)
        sides = product(divisor_of(steps, dims))
        reasons["levels"] = f"its own: a network of others, whose images are padded to multiples of {sides}"
        return steps
    wanted = levels_of(architecture)
    if architecture.channels is not None or architecture.strides is not None or architecture.levels is not None:
        reasons["levels"] = f"{wanted}: fixed by the architecture"
        steps = unplanned_strides(architecture, dims)
        for side, divisor in zip(patch, divisor_of(steps, dims), strict=True):
            if divisor >= 2 * side:
                most = 1 + int(math.log2(side))
                raise UsageError(
                    f"architecture: {wanted} levels divide {side} pixels by {divisor}, and the deepest map would have "
                    f"none; take at most {most} levels, or strides of 1 along short axes"
                )
        return steps
    shape, distance = list(patch), list(spacing)
    strides: list[tuple[int, ...]] = []
    while len(strides) < wanted - 1:
        # an axis waits while it is much coarser than the finest, so that kernels see cubes of tissue
        fine = min(d for d, n in zip(distance, shape, strict=True) if n >= 2 * SMALLEST_MAP or n == max(shape))
        step = tuple(2 if n >= 2 * SMALLEST_MAP and d <= 2 * fine else 1 for n, d in zip(shape, distance, strict=True))
        if max(step) == 1:
            break
        strides.append(step)
        shape = [-(-n // s) for n, s in zip(shape, step, strict=True)]
        distance = [d * s for d, s in zip(distance, step, strict=True)]
    depth = len(strides) + 1
    why = f"the deepest map of a patch is {product(shape)}"
    if depth < wanted:
        why += f"; one level more of the {wanted} would leave fewer than {SMALLEST_MAP} along an axis"
    reasons["levels"] = f"{depth}: {why}"
    return tuple(strides)


def unplanned_strides(architecture: Architecture, dims: int) -> Strides:
    """The strides that the architecture states, else 2 at every step; of a network of others its divisor as one step."""
    if architecture.foreign is not None:
        divisor = architecture.foreign.divisor or (1,)
        return () if max(divisor) == 1 else (divisor * dims if len(divisor) == 1 else divisor,)
    steps = architecture.strides or ((2,),) * (levels_of(architecture) - 1)
    return tuple(step * dims if len(step) == 1 else step for step in steps)


def divisor_of(strides: Strides, dims: int) -> list[int]:
    """What the sides of a patch are divided by in the end."""
    return [math.prod(step[axis] for step in strides) for axis in range(dims)]


def rounded(patch: tuple[int, ...], strides: Strides, recipe: Recipe, reasons: dict[str, str]) -> tuple[int, ...]:
    """The patch with sides that the strides divide: else every training step would pad."""
    if recipe.planning.patch is not None:
        return patch
    divisor = divisor_of(strides, len(patch))
    divided = tuple(-(-n // d) * d for n, d in zip(patch, divisor, strict=True))
    if divided != patch:
        reasons["patch"] += f"; rounded up to {product(divided)}, multiples of {product(divisor)}"
    return divided


def product(values: Iterable[object]) -> str:
    """Sizes in words: 96 x 96."""
    return " x ".join(str(v) for v in values)
