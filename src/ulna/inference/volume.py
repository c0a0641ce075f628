"""One image through a network: probabilities and labels in the image's own geometry.

This is the one way from a prepared image to an answer, whatever the verb: in slabs, so that a label map never needs the
probabilities of all classes everywhere.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ulna.blocks import nd
from ulna.data.pipeline.orientation import AS_STORED, Turn
from ulna.data.pipeline.preprocess import Prepared, pad_to_patch, restored
from ulna.data.volume import label_dtype
from ulna.inference.finite import check_finite_maps
from ulna.inference.sliding import by_windows
from ulna.inference.sparse import PointCounts, by_stages, smoothed
from ulna.networks.heads import probabilities
from ulna.networks.network import Network
from ulna.recipe import Inference, Labels, Plan
from ulna.system.device import autocast


class Slabs(NamedTuple):
    """Maps of an image on its own grid, in slabs along the axes as the network sees them.

    Args:
        parts: (K, *S), float32, on the CPU, with some rows along `axis`, in order; each is good until the next is asked for.
        size: *S of all of them together, turned.
        axis: the axis, turned, along which they follow each other.
        turn: from the axes of the file to these.
    """

    parts: Iterator[Tensor]
    size: tuple[int, ...]
    axis: int
    turn: Turn = AS_STORED

    def maps(self) -> Tensor:
        """All in one, along the axes of the file: (K, *S)."""
        return torch.from_numpy(self._joined(Tensor.numpy))

    def label_map(self, labels: Labels, threshold: float = 0.5) -> NDArray[Any]:
        """What they say as probabilities, along the axes of the file: (*S), or (K, *S) if multilabel; see `to_labels`.

        One part at a time is held.
        """
        return self._joined(lambda part: to_labels(part, labels, threshold))

    def _joined(self, convert: Callable[[Tensor], NDArray[Any]]) -> NDArray[Any]:
        whole: NDArray[Any] | None = None
        row, dims = 0, len(self.size)
        for part in self.parts:
            values = convert(part)
            if whole is None:
                whole = np.empty((*values.shape[: values.ndim - dims], *self.turn.stored(self.size)), values.dtype)
            rows = values.shape[values.ndim - dims + self.axis]
            here: tuple[Any, ...] = (..., slice(row, row + rows), *(slice(None),) * (dims - self.axis - 1))
            self.turn.forward(whole)[here] = values
            row += rows
        assert whole is not None
        return whole


def slab_axis(size: Sequence[int]) -> int:
    """The axis along which slabs of a volume are smallest: its longest."""
    return int(np.argmax(size))


def as_given(prepared: Prepared, network: Network, plan: Plan) -> Prepared:
    """An image as a network is given it: with margins, where it goes by the place in a patch, to the size of one."""
    return pad_to_patch(prepared, plan.patch) if network.head.sparse else prepared


def predict_slabs(
    network: Network,
    plan: Plan,
    prepared: Prepared,
    *,
    settings: Inference,
    device: torch.device,
    precision: str = "fp32",
    axis: int | None = None,
    tally: PointCounts | None = None,
) -> Slabs:
    """Probabilities of an image; they are computed as they are asked for.

    Args:
        network: in evaluation mode, on the device.
        plan: of its training.
        prepared: the image, from `prepare`.
        settings: of the recipe.
        device: where the windows are computed.
        precision: "fp32" or "bf16".
        axis: that the slabs lie along, turned; by default the one that makes them smallest.
        tally: what a head that reads points is asked for is added to it.
    """
    axis = slab_axis(prepared.size) if axis is None else axis
    prepared = as_given(prepared, network, plan)
    parts = _windowed(network, plan, prepared, axis, settings, device, precision, tally)
    return on_own_grid(parts, prepared, axis)


def on_own_grid(parts: Iterable[Tensor], prepared: Prepared, axis: int) -> Slabs:
    """Slabs of maps on the grid of the plan, without margins, as slabs on the image's own."""
    return Slabs(restored(parts, prepared, axis), prepared.size, axis, prepared.turn)


def _windowed(
    network: Network,
    plan: Plan,
    prepared: Prepared,
    axis: int,
    settings: Inference,
    device: torch.device,
    precision: str,
    tally: PointCounts | None,
) -> Iterator[Tensor]:
    """Probabilities on the grid of the plan, without margins, window by window."""
    flipped = flips([a + 2 for a in plan.mirror_axes] if settings.tta else ())  # axes of (N, C, *S)
    multilabel, sparse = plan.labels.multilabel, network.head.sparse
    image = prepared.image.to(device)
    grid = tuple(image.shape[1:])
    patch = grid if plan.takes_whole(grid, sparse=sparse) else plan.patch

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
        windows = windows.contiguous(memory_format=nd.layout(plan.spatial_dims, True, device, precision))
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
    yield from (slab.cpu() for slab in slabs)


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
