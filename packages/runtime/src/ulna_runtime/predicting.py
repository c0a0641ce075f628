"""One image through a network or several: probabilities in the image's own geometry, in slabs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ulna_runtime.cropping import put_back, without_margins
from ulna_runtime.labels import background, probabilities
from ulna_runtime.network import Network
from ulna_runtime.points import mean_of_neighbours, smoothed
from ulna_runtime.preparing import Prepared, pad_to_patch, prepare
from ulna_runtime.resampling import restore
from ulna_runtime.sliding import by_slices, by_windows
from ulna_runtime.turning import AS_STORED, Turn
from ulna_runtime.volume import Volume

Maps = NDArray[np.float32]


class Slabs(NamedTuple):
    """Maps of an image on its own grid, in slabs along the axes as the network sees them.

    Args:
        parts: (K, *S) with some rows along `axis`, in order; each is good until the next is asked for.
        size: *S of all of them together, turned.
        axis: the axis, turned, along which they follow each other.
        turn: from the axes of the file to these.
    """

    parts: Iterator[Maps]
    size: tuple[int, ...]
    axis: int
    turn: Turn = AS_STORED

    def joined(self, convert: Callable[[Maps], NDArray[Any]]) -> NDArray[Any]:
        """What `convert` makes of every part, along the axes of the file; one part at a time is held."""
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


class Compare(NamedTuple):
    """What is done with two answers to one window or slab: those of mirrored copies, or of several networks.

    Args:
        add: called with the probabilities of both, (K, *S) each.
        aside: mirrored copies are made for it alone, and the answer stays that to the image as it is.
    """

    add: Callable[[Maps, Maps], None]
    aside: bool = False


def predict_slabs(network: Network, volume: Volume, *, tta: bool = False, compare: Compare | None = None) -> Slabs:
    """Probabilities of an image by one network; they are computed as they are asked for."""
    plan = network.member.plan
    prepared = prepare(volume, plan)
    axis = int(np.argmax(prepared.size)) if plan.slices is None else plan.slices.axis
    if network.by_patches:
        patch = dict(zip(plan.patch_axes, network.member.graphs.fixed or plan.patch, strict=True))
        prepared = pad_to_patch(prepared, [patch.get(axis, 1) for axis in range(plan.image_dims)])
    slabs = _windowed(network, prepared, axis, tta or network.member.settings.tta, compare)
    outside = background(plan.labels)
    if prepared.crop is None:
        parts = restore(slabs, prepared.grid, prepared.size, prepared.step, axis)
    else:
        parts = put_back(slabs, prepared.crop, prepared.size, prepared.step, axis, outside)
    return Slabs(parts, prepared.size, axis, prepared.turn)


def mean_of(networks: Sequence[Network], volume: Volume, *, tta: bool = False, compare: Compare | None = None) -> Slabs:
    """The mean of the probabilities of several networks on the image's own grid.

    Args:
        networks: with the same classes.
        volume: the image.
        tta: average over mirrored copies.
        compare: the answers of each two networks; of one, those to mirrored copies with that to the image as it is.
    """
    if len(networks) == 1:
        return predict_slabs(networks[0], volume, tta=tta, compare=compare)
    each = [predict_slabs(network, volume, tta=tta) for network in networks]
    # along the axes of the first that is turned, else of the first; another way through the volume comes in one piece
    first = next((slabs for slabs in each if slabs.turn != AS_STORED), each[0])
    parts = _mean([_along(first, slabs) for slabs in each], first.axis, compare)
    return Slabs(parts, first.size, first.axis, first.turn)


def _along(first: Slabs, slabs: Slabs) -> Iterator[Maps]:
    if slabs.turn == first.turn and slabs.axis == first.axis:
        yield from slabs.parts
        return
    yield np.ascontiguousarray(first.turn.forward(slabs.joined(lambda part: part)))


def _mean(members: Sequence[Iterator[Maps]], axis: int, compare: Compare | None) -> Iterator[Maps]:
    """The mean of several streams of slabs of one volume, whatever the heights of their slabs."""
    held: list[Maps | None] = [None] * len(members)
    while True:
        slabs = [next(stream, None) if slab is None else slab for slab, stream in zip(held, members, strict=True)]
        here = [slab for slab in slabs if slab is not None]
        if len(here) < len(members):
            return
        rows = min(slab.shape[axis + 1] for slab in here)
        alike = [np.take(slab, range(rows), axis + 1) for slab in here]
        if compare is not None:
            for a, b in itertools.combinations(alike, 2):
                compare.add(a, b)
        yield np.mean(alike, axis=0, dtype=np.float32)
        rest = [np.take(slab, range(rows, slab.shape[axis + 1]), axis + 1) for slab in here]
        held = [slab if slab.size else None for slab in rest]


def _windowed(network: Network, prepared: Prepared, axis: int, tta: bool, compare: Compare | None) -> Iterator[Maps]:
    """Probabilities on the grid of the plan, without margins, windows by windows."""
    plan, settings = network.member.plan, network.member.settings
    aside = compare is not None and compare.aside and not tta
    flipped = flips(plan.mirror_axes if tta or aside else ())
    image = prepared.image
    grid = tuple(image.shape[1 + along] for along in plan.patch_axes)
    whole = math.prod(grid) <= plan.whole_image_limit and not network.by_patches
    patch = grid if whole else network.member.graphs.fixed or plan.patch

    def ask(window: Maps) -> Maps:
        total: Maps | None = None
        straight: Maps | None = None  # the answer to the image as it is
        for axes in flipped:
            along = tuple(a + 1 for a in axes)
            copy = np.flip(window, along) if along else window
            maps = probabilities(network.logits(copy), plan.labels.multilabel)
            maps = np.flip(maps, along) if along else maps
            if straight is None:
                straight = maps
            elif compare is not None:
                compare.add(straight, maps)
            if total is None or not aside:
                total = maps if total is None else total + maps
        assert total is not None
        return total if len(flipped) == 1 or aside else total / np.float32(len(flipped))

    if plan.slices is None:
        windows = by_windows(ask, image, patch, overlap=settings.overlap, axis=axis)
    else:
        windows = by_slices(ask, image, plan.slices, patch, overlap=settings.overlap)
    slabs: Iterable[Maps] = without_margins(windows, prepared.margins, axis)
    if network.member.graphs.kind == "points" and settings.smooth:
        if plan.slices is None:
            slabs = smoothed(slabs, axis)
        else:
            plane = plan.slices.plane
            slabs = (mean_of_neighbours(slab, plane) for slab in slabs)
    yield from slabs


def flips(axes: Sequence[int]) -> list[tuple[int, ...]]:
    """Every set of axes to flip, none at first.

    Example:
        >>> flips((0, 1))
        [(), (0,), (1,), (0, 1)]
    """
    return [some for count in range(len(axes) + 1) for some in itertools.combinations(axes, count)]
