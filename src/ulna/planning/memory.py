"""How much memory a training or a prediction will take, before it takes it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ulna.data.formats.limits import memory
from ulna.data.pipeline.orientation import turn_of
from ulna.data.pipeline.points import count_points
from ulna.data.pipeline.preprocess import grid_of
from ulna.data.volume import Volume
from ulna.errors import UsageError
from ulna.kernels.allocator import allocator_in_use, allocator_when_tuned
from ulna.losses import make_loss
from ulna.losses.criteria import HeadsLoss
from ulna.losses.sharing import is_mean_of_samples
from ulna.networks.heads import Outputs
from ulna.networks.network import Network
from ulna.networks.profile.memory import peak_bytes
from ulna.planning.grid import median_grid
from ulna.recipe import Plan, Recipe
from ulna.system.device import Device, find_device
from ulna.system.held import held_bytes

# Buffers of convolution libraries, the loss, and what an allocator cannot fill, times the maps of a step. Measured 0.7 to 1.3
# with ulna's allocator, 0.8 to 1.5 with torch's, 0.8 to 1.9 where glibc alone keeps what is freed (U-Net, UNet++, nnU-Net,
# omega-Net, SDNU-Net, Implicit U-Net; 2D and 3D; float32 and bf16; with and without gradients)
OVERHEAD = {"ulna": 1.25, "torch": 1.55, "glibc": 1.95}
# The same on a GPU, where norms keep no more than is counted (their input, and what the next layer reads). An H100 with bf16
# and channels last took 1.07 to 1.17 times the maps for U-Net, UNet++ and nnU-Net in 2D and 3D, each step launched on its
# own. Fused norms and captured steps are not checked against `max_memory_allocated` yet; benchmarks/gpu.py does.
GPU_OVERHEAD = 1.25
# A captured step has a pool of its own, with the batch that it reads, and gaps that nothing else may fill; what the steps
# before the capture took is given back first.
GPU_GRAPH = 0.1
# CUDA, its libraries and their workspaces
GPU_CONTEXT = 10**9
# Of the memory of a GPU that a training is planned to take; prepared cases, validation and other programs have the rest.
GPU_SHARE = 0.85
# Code that the first step loads: 30 MB were seen
LIBRARIES = 60 * 10**6
# Of a step on a CPU, where nobody says how much it may take
MEMORY_GB = 6.0
# Python and its libraries, where the system does not tell, and of a process that has yet to begin
PROGRAM = 500 * 10**6
# Slices that a GPU computes together
SLICES_AT_ONCE = 32
# Points that a head which reads points is asked for at once
MESH_POINTS = 32 * 1024


# Parts that lie in the memory of the GPU where there is one
ON_THE_GPU = (
    "maps of a step",
    "pool of the captured step",
    "weights, gradients and moments",
    "CUDA",
    "maps of a window",
    "slab",
)


class MemoryEstimate(NamedTuple):
    """Bytes at the peak, by what takes them."""

    parts: dict[str, float]

    @property
    def total(self) -> float:
        """Bytes of all parts."""
        return sum(self.parts.values())

    def __str__(self) -> str:
        largest = sorted(self.parts.items(), key=lambda part: -part[1])
        return f"{self.total / 1e9:.1f} GB ({', '.join(f'{name} {size / 1e9:.1f}' for name, size in largest)})"

    @property
    def on_the_gpu(self) -> float:
        """Bytes of the parts that lie in the memory of the GPU where there is one."""
        return sum(size for name, size in self.parts.items() if name in ON_THE_GPU)

    def check(self, what: str, remedy: str, device: Device | None = None) -> None:
        """Refuse what this machine cannot hold, before it is tried.

        Args:
            what: is to be done.
            remedy: what a person may change.
            device: left out, that of this machine.

        Raises:
            UsageError: with the parts and the remedy.
        """
        taken, device = self.total, device or find_device()
        if device.gpu:
            room, held = device.memory_bytes, self.on_the_gpu
            if held > room:
                need = f"{held / 1e9:.1f} GB of GPU memory ({self})"
                raise UsageError(f"{what} needs about {need}, and the GPU has {room / 1e9:.1f} GB; {remedy}")
            taken -= held
        if taken > memory():
            raise UsageError(f"{what} needs about {self}, and this machine has {memory() / 1e9:.1f} GB; {remedy}")


def training_memory(
    network: Network,
    plan: Plan,
    recipe: Recipe,
    *,
    device: Device,
    cases: int,
    elsewhere: bool = False,
    devices: int = 1,
) -> MemoryEstimate:
    """A training: the maps of a step, the weights with gradients and moments, and the cases that are kept.

    Args:
        network: on any device; not changed.
        plan: of the data set.
        recipe: its points, optimiser and workers.
        device: that it would run on.
        cases: training and validation cases; a quarter of the memory holds them at most.
        elsewhere: in a process of its own, as a study trains: with its allocator, and without what this one holds.
        devices: that share every batch, each in a process of its own, which keeps all cases. Given is what lies on one GPU,
            and in the memory of the machine what all of them take.
    """
    held = _image_bytes(median_grid(plan), plan) * cases
    step = step_memory(
        network, plan.patch, plan.batch, recipe, device,
        elsewhere=elsewhere, devices=devices, ignored=plan.labels.ignored is not None,
    )  # fmt: skip
    if not device.gpu:
        step = {name: devices * size for name, size in step.items()}
    own = (PROGRAM if device.gpu or elsewhere else program_bytes()) + LIBRARIES
    return MemoryEstimate(
        {
            **step,
            "cases kept": min(devices * held, 2 * memory() / 4),
            "program": own + (devices - 1) * (PROGRAM + LIBRARIES),
        }
    )


def step_memory(
    network: Network,
    patch: tuple[int, ...],
    batch: int,
    recipe: Recipe,
    device: Device,
    *,
    elsewhere: bool = False,
    devices: int = 1,
    ignored: bool = False,
) -> dict[str, float]:
    """Bytes of a training step by what takes them, all of which lies on a GPU; `elsewhere` as for `training_memory`.

    Of several devices it is what each takes: its share of the batch, and for a loss that reads all of it, as every loss does
    where labels have a value to ignore, the logits of the others.
    """
    bf16 = device.precision(recipe.training.precision) == "bf16"
    points = count_points(recipe.points, math.prod(patch), sparse=network.head.sparse)
    # on a CPU the share of the loss is in what was measured for the allocators
    own = -(-batch // devices)
    criterion = _criterion(recipe)
    others = batch - own if ignored or not is_mean_of_samples(criterion) else 0
    loss = _loss(criterion, (own, *patch), others, devices) if device.gpu or others else None
    maps = peak_bytes(network, patch, batch=own, training=True, bf16=bf16, points=points, loss=loss)
    moments = 1 if recipe.optimizer.kind == "sgd" else 2
    parts = {
        "maps of a step": _overhead(device, elsewhere=elsewhere) * maps,
        "weights, gradients and moments": float((2 + moments) * _weight_bytes(network)),
    }
    return {**parts, "pool of the captured step": GPU_GRAPH * maps, "CUDA": float(GPU_CONTEXT)} if device.gpu else parts


def _criterion(recipe: Recipe) -> HeadsLoss:
    """The loss of a recipe; overlapping classes take no more than exclusive ones."""
    return make_loss(recipe.loss.kind, options=recipe.loss.options, heads=recipe.loss.heads, multilabel=False)


def _loss(criterion: HeadsLoss, size: tuple[int, ...], others: int, devices: int) -> Callable[[Outputs], Tensor]:
    """That of labels (N, *S) without memory; with `others`, after so many samples of other devices were taken in."""
    own, *rest = size
    labels = torch.zeros((own + others, *rest), dtype=torch.uint8, device="meta")

    def taken_in(logits: Tensor) -> Tensor:  # as `Ranks.whole` does: all shares, then one tensor of them
        shares = [torch.empty_like(logits) for _ in range(devices)]
        return torch.cat([logits, *shares[1:]])[: own + others]

    def loss(outputs: Outputs) -> Tensor:
        if others:
            heads = {name: taken_in(logits) for name, logits in outputs.heads.items()}
            points = None if outputs.points is None else taken_in(outputs.points)
            outputs = Outputs(next(iter(heads.values())), heads, points)
        made: Tensor = criterion(outputs, labels)[0]
        return made

    return loss


def prediction_memory(
    plan: Plan, volume: Volume, weights: Network, *, maps_per_voxel: float, probabilities: bool
) -> MemoryEstimate:
    """The prediction of one image: the maps of a window, the probabilities of a slab, and the image itself.

    Args:
        plan: of the run.
        volume: the image, read already.
        weights: the network.
        maps_per_voxel: from `maps_per_voxel`.
        probabilities: they are held for the whole image, else only the mask is.
    """
    size, classes = turn_of(volume, plan).order(volume.size), plan.labels.outputs
    grid = grid_of(volume, plan)
    sparse = weights.head.sparse
    plane = [grid[axis] for axis in plan.patch_axes]
    whole = plan.takes_whole(plane, sparse=sparse)
    window = plane if whole else [p if sparse else min(p, n) for p, n in zip(plan.patch, plane, strict=True)]
    if plan.slices is None:
        axis = max(range(len(size)), key=lambda a: size[a])
        share = min(1.0, window[axis] / grid[axis])  # of the image that a slab is
    else:
        share = min(1.0, (SLICES_AT_ONCE if find_device().gpu else 1) / grid[plan.slices.axis])
    return MemoryEstimate(
        {
            "maps of a window": _overhead(find_device()) * maps_per_voxel * math.prod(window),
            "slab": 4 * share * ((classes + 1) * math.prod(grid) + classes * math.prod(size)),
            "image": _image_bytes(grid, plan) + 4 * plan.in_channels * math.prod(size),
            "result": (4 * classes if probabilities else 0) * math.prod(size)
            + math.prod(size) * (classes if plan.labels.multilabel else 1),
            "program": program_bytes(),
        }
    )


def maps_per_voxel(network: Network, plan: Plan, *, bf16: bool) -> float:
    """Bytes that the maps of one window take at their peak, a voxel: hardly a matter of its size."""
    voxels = math.prod(plan.patch)
    points = min(MESH_POINTS, voxels) if network.head.sparse else None
    return peak_bytes(network, plan.patch, training=False, bf16=bf16, points=points) / voxels


def window_bytes(maps_per_voxel: float, voxels: int, plan: Plan, *, copies: bool) -> float:
    """One window on its way: its maps, then its probabilities, and with mirrored copies their sum and the first of them."""
    maps = plan.labels.outputs * (4 if copies else 2)
    return voxels * (_overhead(find_device()) * maps_per_voxel + 4.0 * (maps + 3 * plan.inputs))


def _overhead(device: Device, *, elsewhere: bool = False) -> float:
    """What is taken for a byte of maps: with the allocator of the process, or that of a GPU."""
    if device.gpu:
        return GPU_OVERHEAD
    return OVERHEAD[allocator_when_tuned() if elsewhere else allocator_in_use()]


def _image_bytes(size: Sequence[float], plan: Plan) -> float:
    """An image as float32 and its labels."""
    return math.prod(size) * (4 * plan.in_channels + 1)


def _weight_bytes(network: Network) -> int:
    return sum(p.numel() * 4 for p in network.parameters())


def program_bytes() -> float:
    """Bytes that this process holds now."""
    return PROGRAM if find_device().gpu else held_bytes(PROGRAM)
