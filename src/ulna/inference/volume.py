"""One image through a network: probabilities and labels in the image's own geometry."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ulna.blocks import nd
from ulna.data.pipeline.orientation import AS_STORED, Turn
from ulna.data.pipeline.preprocess import Prepared, pad_to_patch, prepare, restored
from ulna.data.volume import Volume, label_dtype
from ulna.inference.finite import check_finite_maps
from ulna.inference.sliding import by_windows
from ulna.inference.sparse import PointCounts, by_stages, smoothed
from ulna.networks.heads import probabilities
from ulna.networks.network import Network
from ulna.recipe import Inference, Labels, Plan
from ulna.system.device import autocast


def predict_volume(
    network: Network, plan: Plan, volume: Volume, *, settings: Inference, device: torch.device, precision: str = "fp32"
) -> Tensor:
    """Probabilities on the volume's own grid: Volume (C, *S) -> (K, *S), float32, on the CPU.

    Raises:
        UsageError: if the volume does not fit the plan.
    """
    prepared = prepare(volume, plan)
    axis = slab_axis(prepared.size)
    slabs = predict_slabs(network, plan, prepared, axis, settings=settings, device=device, precision=precision)
    return collect(slabs, prepared.size, axis, prepared.turn)


def slab_axis(size: Sequence[int]) -> int:
    """The axis along which slabs of a volume are smallest: its longest."""
    return int(np.argmax(size))


def predict_slabs(
    network: Network,
    plan: Plan,
    prepared: Prepared,
    axis: int,
    *,
    settings: Inference,
    device: torch.device,
    precision: str,
    tally: PointCounts | None = None,
) -> Iterator[Tensor]:
    """Probabilities on the volume's own grid, turned as the network sees it, slab by slab: what `predict_volume` collects.

    What a head that reads points was asked for is added to `tally`.

    Yields:
        (K, *S), float32, on the CPU, with some rows along `axis`, in order; good until the next one is asked for.
    """
    grid = tuple(prepared.image.shape[1:])
    flipped = flips([axis + 2 for axis in plan.mirror_axes] if settings.tta else ())  # axes of (N, C, *S)
    multilabel, sparse = plan.labels.multilabel, network.head.sparse
    if sparse:  # it goes by the place in a patch of the size that it was trained on
        prepared = pad_to_patch(prepared, plan.patch)
    image = prepared.image.to(device)
    whole = math.prod(grid) <= plan.whole_image_limit and not sparse
    patch = grid if whole else plan.patch

    def ask(windows: Tensor) -> Tensor:
        with autocast(precision, device):
            if sparse:
                return by_stages(network, windows, settings=settings, multilabel=multilabel, tally=tally)
            logits = network(windows)
        check_finite_maps(network, [logits])
        return probabilities(logits, multilabel=multilabel)

    @torch.inference_mode()
    def from_windows(windows: Tensor) -> Tensor:
        # the layout that is fastest here, whatever layout the weights came in
        windows = windows.contiguous(memory_format=nd.layout(plan.spatial_dims, True, device))
        maps: Tensor | None = None
        for axes in flipped:
            p = ask(windows.flip(axes) if axes else windows)
            p = p.flip(axes) if axes else p
            maps = p if maps is None else maps + p
        assert maps is not None
        return maps / len(flipped)

    # an axis with margins is one window long, so a slab has all of it
    windows = by_windows(from_windows, image, patch, overlap=settings.overlap, axis=axis)
    slabs: Iterator[Tensor] = (slab[prepared.inside] for slab in windows)
    if sparse and settings.smooth:
        slabs = smoothed(slabs, axis)
    yield from restored((slab.cpu() for slab in slabs), prepared, axis)


def collect(slabs: Iterable[Tensor], size: tuple[int, ...], axis: int, turn: Turn = AS_STORED) -> Tensor:
    """All slabs in one, along the axes of the file: (K, *S).

    Args:
        slabs: along the turned axes, with some rows along `axis` each.
        size: of all of them together, turned.
        axis: of the turned ones.
        turn: from the axes of the file to these.
    """
    maps: NDArray[np.float32] | None = None
    row = 0
    for slab in slabs:
        if maps is None:
            maps = np.empty((slab.shape[0], *turn.stored(size)), np.float32)
        rows = slab.shape[axis + 1]
        turn.forward(maps)[_rows(row, rows, axis, size)] = slab.numpy()
        row += rows
    assert maps is not None
    return torch.from_numpy(maps)


def label_slabs(
    slabs: Iterable[Tensor],
    size: tuple[int, ...],
    axis: int,
    labels: Labels,
    threshold: float,
    turn: Turn = AS_STORED,
) -> NDArray[Any]:
    """The label map of slabs of probabilities, of which one at a time is held: (*S), or (K, *S) if multilabel.

    Arguments are those of `collect`.
    """
    mask: NDArray[Any] | None = None
    row = 0
    for slab in slabs:
        part = to_labels(slab, labels, threshold)
        if mask is None:
            mask = np.empty((*part.shape[: -len(size)], *turn.stored(size)), part.dtype)
        rows = part.shape[axis - len(size)]
        turn.forward(mask)[_rows(row, rows, axis, size)] = part
        row += rows
    assert mask is not None
    return mask


def _rows(first: int, count: int, axis: int, size: Sequence[int]) -> tuple[Any, ...]:
    """The index of some rows along one of the last axes."""
    return (..., slice(first, first + count), *(slice(None),) * (len(size) - axis - 1))


def mean_slabs(members: Sequence[Iterator[Tensor]], axis: int) -> Iterator[Tensor]:
    """The mean of several streams of slabs of one volume, whatever the heights of their slabs."""
    held: list[Tensor | None] = [None] * len(members)
    while True:
        slabs = [next(stream, None) if slab is None else slab for slab, stream in zip(held, members, strict=True)]
        here = [slab for slab in slabs if slab is not None]
        if len(here) < len(members):
            return
        rows = min(slab.shape[axis + 1] for slab in here)
        yield torch.stack([slab.narrow(axis + 1, 0, rows) for slab in here]).mean(0)
        rest = [slab.narrow(axis + 1, rows, slab.shape[axis + 1] - rows) for slab in here]
        held = [slab if slab.numel() else None for slab in rest]


def to_labels(maps: Tensor, labels: Labels, threshold: float = 0.5) -> NDArray[Any]:
    """Probabilities to a label map in the smallest unsigned type: (K, *S) -> (*S), or (K, *S) of 0 and 1 if multilabel."""
    if labels.multilabel:
        return (maps > threshold).numpy().astype(np.uint8)
    if maps.shape[0] == 1:
        return (maps[0] > threshold).numpy().astype(np.uint8)
    # the indices of `max` are those of `argmax`, ten times as fast along an axis that is not the last
    return maps.max(dim=0).indices.numpy().astype(label_dtype(maps.shape[0] - 1))


def flips(axes: Sequence[int]) -> list[tuple[int, ...]]:
    """Every set of axes to flip, none at first.

    Example:
        >>> flips((0, 1))
        [(), (0,), (1,), (0, 1)]
    """
    return [some for count in range(len(axes) + 1) for some in itertools.combinations(axes, count)]
