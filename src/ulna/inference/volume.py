"""One image through a network: probabilities and labels in the image's own geometry.

This is the one way from a prepared image to an answer, whatever the verb: in slabs, so that a label map never needs the
probabilities of all classes everywhere.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ulna.blocks import nd
from ulna.data.pipeline.cropping import without_margins
from ulna.data.pipeline.orientation import AS_STORED, Turn
from ulna.data.pipeline.preprocess import Prepared, pad_to_patch, restored
from ulna.data.volume import label_dtype
from ulna.inference.finite import FiniteCheck
from ulna.inference.forward import Forward
from ulna.inference.slices import by_slices, smoothed_in_plane
from ulna.inference.sliding import Column, Grid, Seen, by_windows, count_windows, on_grid
from ulna.inference.sparse import PointCounts, by_stages, smoothed
from ulna.inference.spread import Agreement, count_agreement
from ulna.networks.heads import probabilities
from ulna.networks.network import Network
from ulna.recipe import Inference, Labels, Plan
from ulna.system.device import autocast, to_device, to_host
from ulna.system.progress import bar


class Slabs(NamedTuple):
    """Maps of an image on its own grid, in slabs along the axes as the network sees them.

    Args:
        parts: (K, *S), float32, on the device that computed them, with some rows along `axis`, in order; each is good until
            the next is asked for.
        size: *S of all of them together, turned.
        axis: the axis, turned, along which they follow each other.
        turn: from the axes of the file to these.
    """

    parts: Iterator[Tensor]
    size: tuple[int, ...]
    axis: int
    turn: Turn = AS_STORED

    def maps(self) -> Tensor:
        """All in one on the CPU, along the axes of the file: (K, *S)."""
        return torch.from_numpy(self._joined(lambda part: to_host(part).numpy()))

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
    if not network.head.sparse:
        return prepared
    patch = dict(zip(plan.patch_axes, plan.patch, strict=True))
    return pad_to_patch(prepared, [patch.get(axis, 1) for axis in range(plan.image_dims)])


def axis_of_slabs(size: Sequence[int], plan: Plan) -> int:
    """The axis, turned, that the slabs of a prediction lie along: that of the slices, or the longest of a volume."""
    return slab_axis(size) if plan.slices is None else plan.slices.axis


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
    forward: Forward | None = None,
    agreement: Agreement | None = None,
    given: Grid | None = None,
) -> Slabs:
    """Probabilities of an image; they are computed as they are asked for.

    Args:
        network: in evaluation mode, on the device.
        plan: of its training.
        prepared: the image, from `prepare`.
        settings: of the recipe.
        device: where the windows are computed.
        precision: "fp32" or "bf16".
        axis: that the slabs lie along, turned; by default `axis_of_slabs`, and never another one with slices.
        tally: what a head that reads points is asked for is added to it.
        forward: how this very network is run on this device in this precision, kept from an image before.
        agreement: how much the heads agree with the answer is added to it where `forward` compares them, else how much
            mirrored copies do, which may be made for it alone.
        given: the same image, of which boxes are read, where it lies elsewhere than on the device.
    """
    if axis is None or plan.slices is not None:
        axis = axis_of_slabs(prepared.size, plan)
    prepared = as_given(prepared, network, plan)
    forward = forward or Forward(network, plan, device, precision)
    if given is None or network.head.sparse:
        given = on_grid(to_device(prepared.image, device))
    parts = windowed(forward, given, axis, settings, tally, agreement)
    parts = without_margins(parts, prepared.margins, axis)
    if network.head.sparse and settings.smooth:
        parts = smoothed(parts, axis) if plan.slices is None else smoothed_in_plane(parts, plan.slices)
    return on_own_grid(parts, prepared, axis, _background(plan.labels))


def on_own_grid(parts: Iterable[Tensor], prepared: Prepared, axis: int, outside: Tensor | None = None) -> Slabs:
    """Slabs of maps on the grid of the plan, without margins, as slabs on the image's own.

    Args:
        parts: in order.
        prepared: the image.
        axis: that they lie along, turned.
        outside: (K), the value of every map beyond what the plan keeps of an image; None for 0.
    """
    return Slabs(restored(parts, prepared, axis, outside), prepared.size, axis, prepared.turn)


def _background(labels: Labels) -> Tensor:
    """The probabilities of a voxel that no network saw: (K)."""
    maps = torch.zeros(labels.outputs)
    if not labels.multilabel and labels.outputs > 1:
        maps[0] = 1.0
    return maps


def windowed(
    forward: Forward,
    given: Grid | Tensor,
    axis: int,
    settings: Inference,
    tally: PointCounts | None = None,
    agreement: Agreement | None = None,
    column: Column | None = None,
    seen: Seen | None = None,
) -> Iterator[Tensor]:
    """Probabilities on the grid that a network is given, windows by windows, in slabs along an axis.

    Args:
        forward: how the network is run.
        given: the image, (C, *S').
        axis: of *S'.
        settings: of the recipe.
        tally: of a head that reads points.
        agreement: what answers have in common is added to it.
        column: what of the image is wanted, where windows are not of slices; None for all of it.
        seen: kept from column to column, so that nothing is added to `agreement` twice.
    """
    network, plan, device = forward.network, forward.plan, forward.device
    aside = agreement is not None and agreement.copies and not settings.tta  # the copies change no answer
    flipped = flips([a + 2 for a in plan.mirror_axes] if settings.tta or aside else ())  # axes of (N, C, *S)
    multilabel, sparse = plan.labels.multilabel, network.head.sparse
    image = on_grid(given)
    grid = tuple(image.shape[1 + along] for along in plan.patch_axes)
    patch = window_of(plan, grid, sparse=sparse)
    batch = forward.together(patch)
    finite = FiniteCheck(network, device)

    def add(counts: Tensor) -> None:
        assert agreement is not None
        if seen is None or all(seen.new) or len(seen.new) != len(counts):
            agreement.add(counts)
        elif any(seen.new):
            agreement.add(counts[torch.tensor(seen.new, device=counts.device)])

    def ask(windows: Tensor) -> Tensor:
        if sparse:
            with autocast(forward.precision, device):
                return by_stages(network, windows, settings=settings, multilabel=multilabel, tally=tally)
        logits, counts = forward.counted(windows)
        finite.add(logits)
        if counts is not None and agreement is not None:
            add(counts)
        return probabilities(logits, multilabel=multilabel)

    @torch.inference_mode()
    def from_windows(windows: Tensor) -> Tensor:
        # the layout that is fastest here, whatever layout the weights came in
        layout = nd.layout(plan.spatial_dims, True, device, forward.precision)
        windows = windows.contiguous(memory_format=layout)
        # flipped copies, where windows alone do not fill a batch; beside others an answer may change in its last bit
        at_once = 1 if aside or seen is not None else max(1, batch // len(windows))
        maps: Tensor | None = None
        straight: Tensor | None = None  # the answer to the image as it is
        for first in range(0, len(flipped), at_once):
            axes = flipped[first : first + at_once]
            copies = [windows.flip(along) if along else windows for along in axes]
            answers = forward.within_memory(ask, copies[0] if len(copies) == 1 else torch.cat(copies))
            advance(len(axes) * len(windows))
            for along, p in zip(axes, torch.split(answers, len(windows)), strict=True):
                p = p.flip(along) if along else p
                if agreement is not None and not forward.heads:
                    if straight is None:
                        straight = p.clone()
                    else:
                        add(count_agreement(straight, p, plan.labels))
                if maps is None or not aside:
                    maps = p if maps is None else maps + p
        assert maps is not None
        return maps if len(flipped) == 1 or aside else maps / len(flipped)

    if plan.slices is None:
        slabs = by_windows(
            from_windows, image, patch, overlap=settings.overlap, axis=axis, batch=batch, column=column, seen=seen
        )
    else:
        slabs = by_slices(from_windows, image, plan.slices, patch, overlap=settings.overlap, batch=batch)
    count = count_windows(grid, patch, settings.overlap, column) * len(flipped)
    if plan.slices is not None:
        count *= image.shape[plan.slices.axis + 1]
    with bar("windows", count) if count > 1 else nullcontext(_untold) as advance:
        for slab in slabs:
            finite.finish()
            yield slab


def window_of(plan: Plan, grid: Sequence[int], *, sparse: bool) -> tuple[int, ...]:
    """The size of a window of an image whose size along the axes of a patch is `grid`."""
    if plan.takes_whole(grid, sparse=sparse):
        return tuple(grid)
    return tuple(min(p, n) for p, n in zip(plan.patch, grid, strict=True))


def _untold(steps: int) -> None:
    """Of an image that is one window nothing is drawn."""


def mean_slabs(members: Sequence[Iterator[Tensor]], axis: int, agreement: Agreement | None = None) -> Iterator[Tensor]:
    """The mean of several streams of slabs of one volume, whatever the heights of their slabs.

    How much each two of them agree is added to `agreement`.
    """
    held: list[Tensor | None] = [None] * len(members)
    while True:
        slabs = [next(stream, None) if slab is None else slab for slab, stream in zip(held, members, strict=True)]
        here = [slab for slab in slabs if slab is not None]
        if len(here) < len(members):
            return
        rows = min(slab.shape[axis + 1] for slab in here)
        alike = torch.stack([slab.narrow(axis + 1, 0, rows) for slab in here])
        if agreement is not None:
            for a, b in itertools.combinations(alike, 2):
                agreement.add(count_agreement(a[None], b[None], agreement.labels))
        yield alike.mean(0)
        rest = [slab.narrow(axis + 1, rows, slab.shape[axis + 1] - rows) for slab in here]
        held = [slab if slab.numel() else None for slab in rest]


def to_labels(maps: Tensor, labels: Labels, threshold: float = 0.5) -> NDArray[Any]:
    """Probabilities to a label map in the smallest unsigned type: (K, *S) -> (*S), or (K, *S) of 0 and 1 if multilabel.

    It is made on the device of the maps: a small integer for every voxel comes back in place of K numbers.
    """
    if labels.multilabel:
        return to_host((maps > threshold).to(torch.uint8)).numpy()
    if maps.shape[0] == 1:
        return to_host((maps[0] > threshold).to(torch.uint8)).numpy()
    wanted = label_dtype(maps.shape[0] - 1)
    # the indices of `max` are those of `argmax`, ten times as fast along an axis that is not the last
    found = maps.max(dim=0).indices.to(torch.uint8 if wanted == np.uint8 else torch.int32)
    return to_host(found).numpy().astype(wanted, copy=False)


def flips(axes: Sequence[int]) -> list[tuple[int, ...]]:
    """Every set of axes to flip, none at first.

    Example:
        >>> flips((0, 1))
        [(), (0,), (1,), (0, 1)]
    """
    return [some for count in range(len(axes) + 1) for some in itertools.combinations(axes, count)]
