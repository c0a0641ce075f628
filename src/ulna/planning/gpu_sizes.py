"""Patch and batch for a GPU: for its memory, and no more than a network can use.

Source: nnU-Net's planner (isensee2021) plans for the memory of a GPU with two patches a step at least, and about 128 voxels
along an axis in 8 GB; where there is more memory, its later presets take more, up to 192.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache

from ulna.networks.network import Network
from ulna.planning.drafts import Drafts
from ulna.planning.levels import Strides, choose_strides, divisor_of, product, rounded, shortened
from ulna.planning.memory import GPU_SHARE, step_memory
from ulna.recipe import Recipe
from ulna.system.device import Device

# Two convolutions of 3 a level, and a step of 2 from each level to the next, show a voxel of the deepest map about six of its
# own size along an axis: a patch of as many shows it all that it can see.
SEEN = 6
# Networks of few levels see less than this, and get it: answers at the border of a patch are worse than those within.
LEAST_SEEN = {2: 512 * 512, 3: 128 * 128 * 128}
# No patch is cut further for the memory.
SMALLEST_PATCH = 32
LEAST_BATCH = 2
LARGEST_BATCH = {2: 32, 3: 16}
# Voxels of a step beyond which a larger batch makes a training longer, not better.
STEP_VOXELS = 1 << 23


def choose_gpu_patch(
    size: tuple[int, ...], spacing: tuple[float, ...], drafts: Drafts, device: Device, reasons: dict[str, str]
) -> tuple[int, ...]:
    """The largest part of the median image, until the deepest map has seen enough or memory ends; before it is rounded.

    Raises:
        UsageError: if the network cannot be built for these data.
    """
    recipe, dims = drafts.recipe, len(size)
    deepest = divisor_of(choose_strides(size, spacing, recipe.architecture, dims, {}), dims)
    enough = max(LEAST_SEEN[dims], math.prod(SEEN * step for step in deepest))
    room, batch = _room(recipe, device), recipe.planning.batch or LEAST_BATCH
    candidates = list(_candidates(shortened(size, spacing, enough), spacing, drafts))

    @cache
    def taken(number: int) -> float:
        _, whole, strides = candidates[number]
        return sum(step_memory(drafts.network(strides), whole, batch, recipe, device).values())

    number = _first_that_fits([math.prod(whole) for _, whole, _ in candidates], room, taken)
    patch = candidates[number][0]
    if patch == size:
        why = "the median image"
    elif number == 0:
        why = f"of the median image {product(size)}, at most {enough:,} voxels, all that the deepest map can use"
    else:
        why = f"of the median image {product(size)}, as much as {room / 1e9:.3g} GB of the GPU hold {batch} times"
    reasons["patch"] = f"{product(patch)}: {why}"
    return patch


def choose_gpu_batch(
    patch: tuple[int, ...], network: Network, examples: tuple[int, str], recipe: Recipe, device: Device
) -> tuple[int, str]:
    """With the reason."""
    room, dims = _room(recipe, device), len(patch)
    two, one = (sum(step_memory(network, patch, batch, recipe, device).values()) for batch in (2, 1))
    limits = {
        f"as many as {room / 1e9:.3g} GB of the GPU hold": 2 + int((room - two) // (two - one)),
        "the most that is useful": LARGEST_BATCH[dims],
        f"a step of {STEP_VOXELS:,} voxels": STEP_VOXELS // math.prod(patch),
        f"a quarter of the {examples[0]} {examples[1]}": examples[0] // 4,
    }
    why, batch = min(limits.items(), key=lambda limit: limit[1])
    return max(LEAST_BATCH, batch), why if batch >= LEAST_BATCH else f"the least, beyond {why}"


def _room(recipe: Recipe, device: Device) -> float:
    """Bytes of the GPU that a training is planned to take."""
    stated = recipe.planning.memory_gb, recipe.planning.gpu_memory_gb
    return min([GPU_SHARE * device.memory_bytes, *(gb * 1e9 for gb in stated if gb is not None)])


def _candidates(
    largest: tuple[int, ...], spacing: tuple[float, ...], drafts: Drafts
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], Strides]]:
    """Patches from the largest down, each smaller than the one before it once it is rounded: as cut, as rounded, strides."""
    dims, recipe = len(largest), drafts.recipe
    patch, before = largest, math.inf
    while True:
        strides = choose_strides(patch, spacing, recipe.architecture, dims, {})
        whole = rounded(patch, strides, recipe, {"patch": ""})
        if math.prod(whole) < before:
            before = math.prod(whole)
            yield patch, whole, strides
        patch = shortened(patch, spacing, math.prod(patch) - 1)
        too_small = math.prod(patch) < SMALLEST_PATCH**dims
        # where the architecture fixes them, strides of twice a side would leave nothing
        if too_small or any(step >= 2 * side for step, side in zip(divisor_of(strides, dims), patch, strict=True)):
            return


def _first_that_fits(voxels: Sequence[int], room: float, taken: Callable[[int], float]) -> int:
    """The number of the first patch of which a step fits, else of the last.

    Small patches take no less memory a voxel than large ones, so those that are too large by that are not counted.
    """
    number = 0
    while taken(number) > room and number + 1 < len(voxels):
        most = voxels[number] * room / taken(number)
        number = next((n for n in range(number + 1, len(voxels)) if voxels[n] <= most), len(voxels) - 1)
    return number
