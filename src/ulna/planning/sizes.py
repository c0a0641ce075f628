"""Patch, depth and batch: how much of an image a network sees at once, how deep it goes, how many it sees together."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ulna.data.pipeline.points import count_points
from ulna.errors import UsageError
from ulna.networks.network import Network
from ulna.networks.profile.cost import count_gmacs
from ulna.planning.drafts import Drafts
from ulna.planning.gpu_sizes import choose_gpu_batch, choose_gpu_patch
from ulna.planning.levels import Sizes, choose_strides, product, rounded, shortened
from ulna.planning.memory import MEMORY_GB
from ulna.recipe import Foreign
from ulna.system.device import Device

# What follows is for a CPU; `gpu_sizes` has the rules for a GPU.
# What a batch keeps for its backward pass, where the recipe does not say how much a training may take.
# Voxels of a training batch that a U-Net of 32 channels carries in that memory.
BATCH_VOXELS = {2: 16 * 96 * 96 * 4, 3: 2 * 96 * 96 * 96}
LARGEST_BATCH = {2: 8, 3: 4}
LARGEST_PATCH = {2: 512 * 512, 3: 96 * 96 * 96}
# What a forward pass of a training step may cost: where computing is the limit, several small steps teach more in an hour
# than one large one.
STEP_GMACS = 17.0
# An image of up to this many pixels is predicted in one piece, where the network answers by what surrounds a voxel alone.
WHOLE_IMAGE = {2: 1024 * 1024, 3: 64**3}


def choose_sizes(
    examples: tuple[int, str],
    size: tuple[int, ...],
    spacing: tuple[float, ...],
    drafts: Drafts,
    device: Device,
    reasons: dict[str, str],
) -> Sizes:
    """Patch, strides and batch for images of a median `size` at `spacing`; every reason is added to `reasons`.

    Args:
        examples: how many images an epoch shows, and what they are.

    Raises:
        UsageError: if what the recipe fixes does not fit, or the network cannot be built for these data.
    """
    recipe, dims = drafts.recipe, len(size)
    patch = _fixed_patch(dims, drafts, reasons) or (
        choose_gpu_patch(size, spacing, drafts, device, reasons)
        if device.gpu
        else _patch(size, spacing, drafts, reasons)
    )
    strides = choose_strides(patch, spacing, recipe.architecture, dims, reasons)
    patch = rounded(patch, strides, recipe, reasons)
    network = drafts.network(strides)
    if recipe.planning.parameters is not None:
        stated = ", ".join(map(str, drafts.architecture(strides).channels or ()))
        reasons["widths"] = f"{stated}: scaled to come close to {recipe.planning.parameters:,} parameters"
    if recipe.planning.batch is not None:
        batch, why = recipe.planning.batch, "fixed by the recipe"
    elif device.gpu:
        batch, why = choose_gpu_batch(patch, network, examples, recipe, device)
    else:
        batch, why = _batch(patch, network, examples, drafts)
    reasons["batch"] = f"{batch}: {why}"
    return Sizes(patch, strides, batch)


def _fixed_patch(dims: int, drafts: Drafts, reasons: dict[str, str]) -> tuple[int, ...] | None:
    wanted = drafts.recipe.planning.patch
    if wanted is None:
        return None
    if len(wanted) != dims or min(wanted) < 1:
        raise UsageError(f"planning.patch={list(wanted)} does not fit {dims}D images; give {dims} sizes from 1 up")
    reasons["patch"] = f"{product(wanted)}: fixed by the recipe"
    return wanted


def _patch(
    size: tuple[int, ...], spacing: tuple[float, ...], drafts: Drafts, reasons: dict[str, str]
) -> tuple[int, ...]:
    dims = len(size)
    memory_gb = drafts.recipe.planning.memory_gb or MEMORY_GB
    kept = drafts.kept_per_voxel(LARGEST_PATCH[dims])
    # so that two such patches, at 4 bytes a value, fit into the memory
    most = int(min(LARGEST_PATCH[dims] * min(1.0, memory_gb / MEMORY_GB), memory_gb * 1e9 / (2 * 4 * kept)))
    most = max(32**dims, most)
    patch = shortened(size, spacing, most)
    whole = "the median image" if patch == size else f"of the median image {product(size)}, at most {most:,} voxels"
    reasons["patch"] = f"{product(patch)}: {whole}"
    return patch


def _batch(patch: tuple[int, ...], network: Network, examples: tuple[int, str], drafts: Drafts) -> tuple[int, str]:
    """With the reason."""
    recipe, dims = drafts.recipe, len(patch)
    memory_gb = recipe.planning.memory_gb or MEMORY_GB
    room = int(BATCH_VOXELS[dims] * memory_gb / MEMORY_GB)
    points = count_points(recipe.points, math.prod(patch), sparse=network.head.sparse)
    # fewer voxels may share as many points
    kept = drafts.kept_per_voxel(LARGEST_PATCH[dims] if points is None else math.prod(patch))
    work = count_gmacs(network, patch, points=points)
    limits = {
        f"{memory_gb:g} GB for the {kept:,.0f} values that this network keeps per voxel": int(
            memory_gb * 1e9 / (4 * kept * math.prod(patch))
        ),
        "the most that is useful": LARGEST_BATCH[dims],
        f"the memory for {room:,} voxels": room // math.prod(patch),
        f"a quarter of the {examples[0]} {examples[1]}": max(2, examples[0] // 4),
        f"a step of {STEP_GMACS:g} GMACs at {work:.2g} an image, on a CPU": max(2, int(STEP_GMACS / work)),
    }
    why, batch = min(limits.items(), key=lambda limit: limit[1])
    return max(1, batch), why


def whole_image_limit(network: Network, foreign: Foreign | None, patch: Sequence[int], reasons: dict[str, str]) -> int:
    """Pixels or voxels up to which an image is predicted in one piece; 0, with the reason, where none is.

    A network of others that pads a patch has been taught nothing of what it says behind it. An image that reached there would
    be answered by that. One that takes means over all that it sees was taught those of patches, and of a network of others
    nobody knows that it does not. An image within the patch is one window.
    """
    why = ""
    if foreign is not None and _is_padded(foreign, patch):
        why = "which the network pads to a larger size, and it is trained to answer within the patch alone"
    elif foreign is not None or network.takes_means:
        does = "takes" if foreign is None else "of others may take"
        why = f"for the network {does} means over all that it sees, and is trained by those of patches"
    if why:
        reasons["whole_image_limit"] = f"none: images are predicted in windows of the patch, {why}"
        return 0
    return max(WHOLE_IMAGE[len(patch)], math.prod(patch))


def _is_padded(foreign: Foreign, patch: Sequence[int]) -> bool:
    stated = [side or (1,) for side in (foreign.divisor, foreign.least)]
    divisor, least = (side * len(patch) if len(side) == 1 else side for side in stated)  # one number is of every axis
    return any(n % d or n < smallest for n, d, smallest in zip(patch, divisor, least, strict=True))
