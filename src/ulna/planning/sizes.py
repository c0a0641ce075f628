"""Patch, depth and batch: how much of an image a network sees at once, how deep it goes, how many it sees together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from ulna.data.pipeline.points import count_points
from ulna.errors import UsageError
from ulna.networks.build import levels as levels_of
from ulna.networks.build import match_width, validate, widths
from ulna.networks.network import Network
from ulna.networks.profile.cost import count_gmacs, kept_per_voxel
from ulna.recipe import Architecture, Fingerprint, Labels, Plan, Recipe

# What a batch keeps for its backward pass, where the recipe does not say how much a training may take.
MEMORY_GB = 6.0
# Voxels of a training batch that a U-Net of 32 channels carries in that memory.
BATCH_VOXELS = {2: 16 * 96 * 96 * 4, 3: 2 * 96 * 96 * 96}
LARGEST_BATCH = {2: 8, 3: 4}
LARGEST_PATCH = {2: 512 * 512, 3: 96 * 96 * 96}
# What a forward pass of a training step may cost where there is no GPU.
STEP_GMACS = 17.0
# The deepest map keeps at least this many pixels along an axis.
SMALLEST_MAP = 4


class Sizes(NamedTuple):
    """What is chosen together, since each bounds the others."""

    patch: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    batch: int


class Drafts:
    """The networks that a recipe may become, by the strides between their levels; each is built once, without memory.

    Args:
        recipe: its architecture, and the budget that widths are scaled to.
        shape: `in_channels`, `classes`, `spatial_dims` and `multilabel` of the network.
    """

    def __init__(self, recipe: Recipe, shape: Mapping[str, Any]) -> None:
        self.recipe, self.shape = recipe, shape
        self._resolved: dict[tuple[tuple[int, ...], ...], Architecture] = {}
        self._built: dict[tuple[tuple[int, ...], ...], Network] = {}
        self._kept: dict[int, float] = {}

    def architecture(self, strides: tuple[tuple[int, ...], ...]) -> Architecture:
        """With widths and strides of every level stated.

        Raises:
            UsageError: if it cannot be scaled to the budget.
        """
        if strides not in self._resolved:
            architecture = self.recipe.architecture
            channels = widths(architecture, self.shape["spatial_dims"])[: len(strides) + 1]
            architecture = architecture.replaced(channels=channels, strides=strides, levels=None)
            if self.recipe.planning.parameters is not None:
                architecture = match_width(architecture, self.recipe.planning.parameters, **self.shape)
            self._resolved[strides] = architecture
        return self._resolved[strides]

    def network(self, strides: tuple[tuple[int, ...], ...]) -> Network:
        """Without memory.

        Raises:
            UsageError: if it cannot be built.
        """
        if strides not in self._built:
            self._built[strides] = validate(self.architecture(strides), **self.shape)
        return self._built[strides]

    def kept_per_voxel(self, voxels: int) -> float:
        """Values that a training step keeps per voxel of a patch, before its size and the strides are chosen.

        They are hardly a matter of the size. A step that reads points reads as large a share of the voxels as of a patch of
        `voxels`.
        """
        if voxels not in self._kept:
            network = self.network(_unplanned_strides(self.recipe.architecture, self.shape["spatial_dims"]))
            size = tuple(max(2 * divisor, 32) for divisor in network.divisor)
            points = count_points(self.recipe.points, voxels, sparse=network.head.sparse)
            share = None if points is None else max(1, round(points / voxels * math.prod(size)))
            self._kept[voxels] = kept_per_voxel(network, size, points=share)
        return self._kept[voxels]


def shape_of(plan: Plan) -> dict[str, Any]:
    """What the data say of a network: the keywords of `from_architecture`."""
    return network_shape(plan.in_channels, plan.spatial_dims, plan.labels)


def network_shape(channels: int, dims: int, labels: Labels) -> dict[str, Any]:
    return {
        "in_channels": channels,
        "classes": labels.outputs,
        "spatial_dims": dims,
        "multilabel": labels.multilabel,
    }


def choose_sizes(
    data: Fingerprint,
    size: tuple[int, ...],
    spacing: tuple[float, ...],
    drafts: Drafts,
    reasons: dict[str, str],
) -> Sizes:
    """Patch, strides and batch for images of a median `size` at `spacing`; every reason is added to `reasons`.

    Raises:
        UsageError: if what the recipe fixes does not fit, or the network cannot be built for these data.
    """
    recipe, dims = drafts.recipe, len(size)
    patch = _patch(size, spacing, drafts, reasons)
    strides = _strides(patch, spacing, recipe.architecture, dims, reasons)
    patch = _rounded(patch, strides, recipe, reasons)
    network = drafts.network(strides)
    if recipe.planning.parameters is not None:
        stated = ", ".join(map(str, drafts.architecture(strides).channels or ()))
        reasons["widths"] = f"{stated}: scaled to come close to {recipe.planning.parameters:,} parameters"
    return Sizes(patch, strides, _batch(patch, network, data.cases, drafts, reasons))


def _patch(
    size: tuple[int, ...], spacing: tuple[float, ...], drafts: Drafts, reasons: dict[str, str]
) -> tuple[int, ...]:
    recipe, dims = drafts.recipe, len(size)
    wanted = recipe.planning.patch
    if wanted is not None:
        if len(wanted) != dims or min(wanted) < 1:
            raise UsageError(f"planning.patch={list(wanted)} does not fit {dims}D images; give {dims} sizes from 1 up")
        reasons["patch"] = f"{product(wanted)}: fixed by the recipe"
        return wanted
    memory_gb = recipe.planning.memory_gb or MEMORY_GB
    kept = drafts.kept_per_voxel(LARGEST_PATCH[dims])
    # so that two such patches, at 4 bytes a value, fit into the memory
    most = int(min(LARGEST_PATCH[dims] * min(1.0, memory_gb / MEMORY_GB), memory_gb * 1e9 / (2 * 4 * kept)))
    most = max(32**dims, most)
    patch = list(size)
    while math.prod(patch) > most:
        # shorten the axis that is longest in space, so that the patch comes close to a cube
        extent = [n * distance for n, distance in zip(patch, spacing, strict=True)]
        patch[int(np.argmax(extent))] -= 1
    whole = (
        "the median image" if tuple(patch) == size else f"of the median image {product(size)}, at most {most:,} voxels"
    )
    reasons["patch"] = f"{product(patch)}: {whole}"
    return tuple(patch)


def _strides(
    patch: tuple[int, ...],
    spacing: tuple[float, ...],
    architecture: Architecture,
    dims: int,
    reasons: dict[str, str],
) -> tuple[tuple[int, ...], ...]:
    wanted = levels_of(architecture)
    if architecture.channels is not None or architecture.strides is not None or architecture.levels is not None:
        reasons["levels"] = f"{wanted}: fixed by the architecture"
        steps = _unplanned_strides(architecture, dims)
        for side, divisor in zip(patch, _divisor(steps, dims), strict=True):
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


def _unplanned_strides(architecture: Architecture, dims: int) -> tuple[tuple[int, ...], ...]:
    """The strides that the architecture states, else 2 at every step."""
    steps = architecture.strides or ((2,),) * (levels_of(architecture) - 1)
    return tuple(step * dims if len(step) == 1 else step for step in steps)


def _divisor(strides: tuple[tuple[int, ...], ...], dims: int) -> list[int]:
    return [math.prod(step[axis] for step in strides) for axis in range(dims)]


def _rounded(
    patch: tuple[int, ...], strides: tuple[tuple[int, ...], ...], recipe: Recipe, reasons: dict[str, str]
) -> tuple[int, ...]:
    """The patch with sides that the strides divide: else every training step would pad."""
    if recipe.planning.patch is not None:
        return patch
    divisor = _divisor(strides, len(patch))
    rounded = tuple(-(-n // d) * d for n, d in zip(patch, divisor, strict=True))
    if rounded != patch:
        reasons["patch"] += f"; rounded up to {product(rounded)}, multiples of {product(divisor)}"
    return rounded


def _batch(patch: tuple[int, ...], network: Network, cases: int, drafts: Drafts, reasons: dict[str, str]) -> int:
    recipe, dims = drafts.recipe, len(patch)
    if recipe.planning.batch is not None:
        reasons["batch"] = f"{recipe.planning.batch}: fixed by the recipe"
        return recipe.planning.batch
    memory_gb = recipe.planning.memory_gb or MEMORY_GB
    room = int(BATCH_VOXELS[dims] * memory_gb / MEMORY_GB)
    points = count_points(recipe.points, math.prod(patch), sparse=network.head.sparse)
    # fewer voxels may share as many points
    kept = drafts.kept_per_voxel(LARGEST_PATCH[dims] if points is None else math.prod(patch))
    limits = {
        f"{memory_gb:g} GB for the {kept:,.0f} values that this network keeps per voxel": int(
            memory_gb * 1e9 / (4 * kept * math.prod(patch))
        ),
        "the most that is useful": LARGEST_BATCH[dims],
        f"the memory for {room:,} voxels": room // math.prod(patch),
        f"a quarter of the {cases} training cases": max(2, cases // 4),
    }
    if not torch.cuda.is_available():
        # where computing is the limit, several small steps teach more in an hour than one large one
        work = count_gmacs(network, patch, points=points)
        limits[f"a step of {STEP_GMACS:g} GMACs at {work:.2g} an image, on a CPU"] = max(2, int(STEP_GMACS / work))
    why, batch = min(limits.items(), key=lambda limit: limit[1])
    reasons["batch"] = f"{max(1, batch)}: {why}"
    return max(1, batch)


def product(values: Sequence[int]) -> str:
    """Sizes in words: 96 x 96."""
    return " x ".join(str(v) for v in values)
