"""Prediction in three stages for heads that read points: a coarse mesh, the cells on a boundary, the voxels of those.

Most of an image lies far from any boundary, where the coarse answer is the fine one. A structure that the mesh steps over,
smaller than its step, is not found.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ulna.blocks import nd
from ulna.inference.finite import check_finite_maps
from ulna.networks.heads import Reader, probabilities
from ulna.networks.network import Network
from ulna.recipe import Inference


@dataclass
class PointCounts:
    """How many points the head was asked for: of the mesh, and refined ones, among all voxels of all windows."""

    voxels: int = 0
    mesh: int = 0
    refined: int = 0


def by_stages(
    network: Network, windows: Tensor, *, settings: Inference, multilabel: bool, tally: PointCounts | None = None
) -> Tensor:
    """Probabilities of windows: encoded once, read at few points.

    With `settings.mesh_step` 1, or where every cell lies on a boundary, every voxel is asked and the answer is the dense one.

    With `settings.refine` "halving" what lies in a cell on a boundary is asked at half the step, then in the smaller cells
    that are still on one, down to single voxels: half as many points and fewer, for the same answers along boundaries.

    Source: Implicit U-Net (marimont2022), Sec. 2 (broad and fine boundary prediction; spacing 4; "once"). Reading: the
    mesh starts at index 0; a voxel belongs to the mesh point at or before it; a cell is on a boundary if the 3 x 3 x 3
    cells around it have more than one label; all voxels of such a cell are asked
    (docs/papers/implicit_unet.md, section 6).

    Args:
        network: with a head that reads points.
        windows: the image's windows.
        settings: step of the mesh and threshold.
        multilabel: every map has a label of its own.
        tally: what was asked is added to it.

    Shape:
        (N, C, *S) -> (N, K, *S), float32
    """
    maps, size = network.encode(windows)
    check_finite_maps(network, maps.values())  # the fused decoder makes numbers of NaN
    answers = []
    for number in range(len(windows)):
        read = network.head.reader({name: m[number : number + 1] for name, m in maps.items()}, size)
        answers.append(
            _one_window(read, windows.shape[2:], settings, multilabel, tally or PointCounts(), windows.device)
        )
    logits = torch.cat(answers)
    check_finite_maps(network, [logits])
    return probabilities(logits, multilabel=multilabel).float()  # as those of windows


def _one_window(
    read: Reader, size: torch.Size, settings: Inference, multilabel: bool, tally: PointCounts, device: torch.device
) -> Tensor:
    """Logits of one window, (1, K, *S)."""
    step = settings.mesh_step
    mesh = torch.cartesian_prod(*(torch.arange(0, n, step, device=device) for n in size))
    logits = read(mesh[None]).logits
    logits = logits.reshape(*logits.shape[:2], *(-(-n // step) for n in size))
    tally.voxels, tally.mesh = tally.voxels + size.numel(), tally.mesh + len(mesh)
    while step > 1:
        finer = step // 2 if settings.refine == "halving" and step % 2 == 0 else 1
        grid, times = [-(-n // finer) for n in size], step // finer
        cells = on_boundary(_labels(logits, settings.threshold, multilabel))
        logits = _spread(logits, times, grid)
        asked = _spread(cells[:, None], times, grid)[0, 0]
        points = asked.nonzero() * finer  # in the order of memory, as a dense answer is read
        if len(points):
            logits[:, :, asked] = read(points[None]).logits
        tally.refined += len(points)
        step = finer
    return logits


def on_boundary(labels: Tensor) -> Tensor:
    """Cells among whose 3 x 3 (x 3) neighbours, themselves included, there is more than one label in any map.

    Shape:
        (N, K, *S), whole numbers -> (N, *S), bool
    """
    pool = nd.max_pool(labels.ndim - 2, 1, kernel_size=3)
    values = labels.float()
    return (pool(values) != -pool(-values)).any(dim=1)


def smoothed(slabs: Iterable[Tensor], axis: int) -> Iterator[Tensor]:
    """The mean over the 3 x 3 (x 3) voxels around every voxel, inside the image, of probabilities that come in slabs.

    Source: Implicit U-Net (marimont2022), Sec. 2. Reading: probabilities are averaged, and what lies outside is not counted.

    Args:
        slabs: (K, *S) with some rows along `axis`, in order.
        axis: the spatial axis along which they follow each other.

    Yields:
        the same rows, in other portions.
    """
    held: Tensor | None = None  # the last row, which waits for the next one, behind the row before it
    waiting = 0  # where in `held` it stands
    for slab in slabs:
        rows = slab if held is None else torch.cat([held, slab], dim=axis + 1)
        count = rows.shape[axis + 1]
        if count - 1 > waiting:
            yield _mean(rows).narrow(axis + 1, waiting, count - 1 - waiting)
        waiting = min(count, 2) - 1
        held = rows.narrow(axis + 1, count - 1 - waiting, waiting + 1).clone()
    if held is not None:
        yield _mean(held).narrow(axis + 1, waiting, 1)


def _mean(maps: Tensor) -> Tensor:
    return nd.average_pool(maps.ndim - 1)(maps[None])[0]


def _labels(logits: Tensor, threshold: float, multilabel: bool) -> Tensor:
    """(N, K, *S) -> (N, 1, *S) class indices, or (N, K, *S) of 0 and 1 where every map has its own sigmoid."""
    if multilabel or logits.shape[1] == 1:
        return probabilities(logits, multilabel=multilabel) > threshold
    return logits.max(dim=1, keepdim=True).indices


def _spread(cells: Tensor, times: int, size: Sequence[int]) -> Tensor:
    """Every point of a finer grid gets the value of its cell: (N, K, *ceil(S / times)) -> (N, K, *S)."""
    for axis, length in enumerate(size, start=2):
        cells = cells.index_select(axis, torch.arange(length, device=cells.device) // times)
    return cells
