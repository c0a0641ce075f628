"""One image in bounded memory: read by slabs, answered in columns, its mask kept on disk until it is written by slabs.

The arithmetic is that of `ulna.inference.volume`: windows are summed in the same order, whatever the column. So masks are the
same voxel for voxel, but where the mean of an image, which is summed by slabs, differs in its last bit and two classes tie.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ulna.data.as_format import mask_as
from ulna.data.formats.bricks import Bricks
from ulna.data.formats.label_maps import boxes_in_file
from ulna.data.formats.limits import allowing
from ulna.data.formats.opening import OpenImage, open_image
from ulna.data.formats.whole_boxes import Boxed
from ulna.data.formats.write import keeps_values, streamed, write_labels_slabs
from ulna.data.layout.case import Case
from ulna.data.pipeline.orientation import Turn
from ulna.data.pipeline.preprocess import grid_of, steps_of
from ulna.data.pipeline.resampling import on_grid, read_at
from ulna.data.quality.intensity import Sampled, Shape
from ulna.data.streaming import OnGrid, prepare_on_disk, stored_box, streams
from ulna.data.volume import Volume, label_dtype
from ulna.errors import UsageError, counted
from ulna.inference.exported import ExportedSegmenter
from ulna.inference.result import Beside
from ulna.inference.segmenter import Segmenter
from ulna.inference.sliding import Column, Seen, count_windows
from ulna.inference.spread import Agreement
from ulna.inference.trusting import clean_up
from ulna.inference.volume import mean_slabs, to_labels, window_of, windowed
from ulna.planning.bounded import LIBRARIES as LOADED
from ulna.planning.bounded import MARGIN, PREPARING, WORKING, Columns, Needs, least, plan_columns, ring_bytes
from ulna.planning.memory import program_bytes, window_bytes
from ulna.recipe import Labels, Plan
from ulna.trust.comparing import Comparison
from ulna.trust.structures import structures_of, unit_of

AT_ONCE = 1 << 22  # voxels whose class is chosen at once


class BoundedMask(NamedTuple):
    """A mask on disk.

    Args:
        volume: the image, without its values.
        mask: (K, *S) as stored: class indices with K = 1, or 0 and 1 of overlapping classes.
        compared: the image with the training data.
        beside: what is known of the mask beside it.
    """

    volume: Volume
    mask: Bricks
    compared: Comparison
    beside: Beside

    def _boxed(self) -> Boxed:
        return Boxed(self.mask.shape, self.mask.dtype, self.mask.read)

    def trust(self, segmenter: Segmenter) -> dict[str, Any]:
        """How far it can be trusted, as `Segmenter.trust` says it."""
        found = structures_of(self._boxed(), segmenter.plan.labels, unit_of(self.volume)[1])
        return segmenter.trust_in(self.volume, found, self.beside, self.compared)

    def write(self, segmenter: Segmenter, stem: Path, format: str | None) -> Path:
        """Write it as `Result.write` does."""
        labels, plan = segmenter.plan.labels, segmenter.plan
        values = plan.mask_values if keeps_values(self.volume, format) else None
        like, maps = mask_as(self.volume, boxes_in_file(self._boxed(), labels, values), format)
        channels = labels.multilabel and labels.order is None
        return write_labels_slabs(stem, maps, like, format, channels=channels)


def why_whole(segmenter: Segmenter, case: Case, formats: Sequence[str], *, probabilities: bool) -> str:
    """Why a case is held whole, whatever its format; empty where it is not."""
    source = case.images[0]
    if source.row is not None:
        return "rows of an .npz are read from memory"
    if (source.series is not None and not formats) or {"seg", "rtstruct"} & set(formats):
        return "a mask is written as DICOM from memory; --format nifti is not"
    if isinstance(segmenter, ExportedSegmenter):
        return "an exported file predicts from memory"
    if probabilities:
        return "--probabilities keeps all maps"
    if segmenter.instances is not None:
        return "objects are numbered in the whole mask"
    for member in members_of(segmenter):
        if member.network.head.sparse:
            return "a head that reads points looks at an image as a whole"
        if not streams(member.plan):
            return "the plan crops images to fixed sizes, or is of an earlier format"
    return ""


@contextmanager
def opened_within(
    segmenter: Segmenter, case: Case, limit: float, scratch: Path, *, whole: bool
) -> Iterator[OpenImage | Volume]:
    """The image of a case, opened; or read, where `whole` or where colours are converted for the network.

    What has to be read whole may unpack to half of what the limit leaves.
    """
    room = limit - program_bytes() - LOADED
    if room <= 0 and whole:
        raise UsageError(
            f"without any image it takes {(limit - room) / 1e9:.2f} GB, more than --max-ram {limit / 1e9:g} allows; raise it"
        )
    with ExitStack() as stack:
        with allowing(None, limit / 1e9, (limit - room) / 1e9):
            image: OpenImage | None = None
            if not whole:
                image = stack.enter_context(open_image(case.images, case.spatial_dims, scratch))
                if segmenter.as_trained(image.volume) is not image.volume:
                    image.close()
                    image = None
            volume = segmenter.as_trained(case.read_image()) if image is None else image.volume
        yield volume if image is None else image


def check_whole(segmenter: Segmenter, volume: Volume, limit: float, why: str, *, probabilities: bool) -> None:
    """Refuse an image that is held whole and would take more than a limit in bytes.

    Raises:
        UsageError: with what it takes, and why it is held whole.
    """
    need = segmenter.forecast(volume, probabilities=probabilities)
    total = MARGIN * (need.total + LOADED + WORKING)
    if total > limit:
        size = " x ".join(map(str, volume.size))
        why = why or "its colours are converted for the network"
        raise UsageError(
            f"an image of {size} needs about {total / 1e9:.2f} GB ({why}), "
            f"more than --max-ram {limit / 1e9:g} allows; raise it"
        )


def members_of(segmenter: Segmenter) -> tuple[Segmenter, ...]:
    """The networks that answer."""
    return tuple(getattr(segmenter, "members", (segmenter,)))


def layout_of(segmenter: Segmenter, volume: Volume) -> tuple[Turn, tuple[int, ...], int]:
    """How an image is turned, its size then, and the axis of the slabs: of all networks that answer.

    Raises:
        UsageError: if they differ.
    """
    ways = {(member.turn(volume), member.slab_axis(volume)) for member in members_of(segmenter)}
    if len(ways) > 1:
        raise UsageError(
            f"{volume.path or 'image'}: these networks go through it along different axes, and each would hold all of its "
            "maps; leave --max-ram out, or predict with each alone"
        )
    ((turn, axis),) = ways
    return turn, turn.order(volume.size), axis


def needs_of(segmenter: Segmenter, image: OpenImage, formats: Sequence[str] = ()) -> Needs:
    """What predicting an image takes, with masks of some formats (none: its own).

    Raises:
        UsageError: if it does not fit the plan.
    """
    volume, members = image.volume, members_of(segmenter)
    _, size, axis = layout_of(segmenter, volume)
    column = column_axis(size, axis) if all(member.plan.slices is None for member in members) else None
    maps, plans = segmenter.plan.labels.outputs, [member.plan for member in members]
    grids = [grid_of(volume, plan) for plan in plans]
    windows = [
        window_of(plan, [grid[a] for a in plan.patch_axes], sparse=False)
        for plan, grid in zip(plans, grids, strict=True)
    ]
    each = [
        window_bytes(
            member.maps_per_voxel,
            math.prod(window),
            member.plan,
            copies=member.recipe.inference.tta or member.compares == "copies",
        )
        for member, window in zip(members, windows, strict=True)
    ]
    others = [a for a in range(len(size)) if a not in (axis, column)]

    def ring(across: int) -> float:
        found = 0.0
        for plan, grid, window in zip(plans, grids, windows, strict=True):
            reach = 2 if plan.slices is not None else window[axis]
            if column is None:
                wide = max(grid[others[0]], size[others[0]]) if others else 1
                rest, own = [grid[a] for a in others[1:]], [size[a] for a in others[1:]]
            else:
                step = grid[column] / size[column]
                wide = min(grid[column], math.ceil(across * step) + 2)
                wide = max(wide, across)
                rest, own = [grid[a] for a in others], [size[a] for a in others]
            found = max(found, ring_bytes(maps, len(members), reach, wide, rest, own))
        return found

    def count(ends: tuple[int, int] | None) -> int:
        total = 0
        for plan, grid, window, member in zip(plans, grids, windows, members, strict=True):
            part = None if ends is None or column is None else _on_grid(ends, size, plan, volume, grid, column)
            total += count_windows(grid, window, member.recipe.inference.overlap, part)
        return total

    shape = volume.array.shape
    row = 6 * 4 * math.prod(shape) / shape[image.axis + 1]
    mask = math.prod(volume.size) * (maps if segmenter.plan.labels.multilabel else 1)
    by_slabs = all(streamed(volume, format) for format in formats or (None,))
    whole = 4.0 * mask if cleans(segmenter) or not by_slabs else 0.0
    return Needs(
        program=program_bytes() + LOADED,
        window=max(each),
        ring=ring,
        preparing=max(PREPARING, 4 * row),
        finishing=whole + PREPARING,
        width=0 if column is None else size[column],
        count=count,
    )


def cleans(segmenter: Segmenter) -> bool:
    """Whether masks are cleaned, for which all of one is held."""
    found = segmenter.calibration
    wanted = segmenter.recipe.inference.post_processing
    return wanted and found is not None and bool(found.post_processing) and found.structures is not None


def fit(segmenter: Segmenter, image: OpenImage, limit: float, formats: Sequence[str] = ()) -> Columns:
    """How an image is predicted within a limit in bytes, and its mask written in some formats (none: its own).

    Raises:
        UsageError: with the least that works.
    """
    needs = needs_of(segmenter, image, formats)
    found = plan_columns(needs, limit)
    if found is None:
        size = " x ".join(map(str, image.volume.size))
        narrow = max(1, needs.width and -(-needs.width // max(1, needs.width // 8)))
        raise UsageError(
            f"an image of {size} with {counted(segmenter.plan.labels.outputs, 'map')} needs {least(needs) / 1e9:.2f} GB at "
            f"least ({needs.estimate(narrow)}), more than --max-ram {limit / 1e9:g} allows; raise it"
            + (", or give --no-post-processing" if cleans(segmenter) else "")
        )
    return found


def segment_within(
    segmenter: Segmenter,
    image: OpenImage,
    columns: Columns,
    scratch: Path,
    compare: Callable[[Sequence[Shape | None]], Comparison],
) -> BoundedMask:
    """Segment an image in columns.

    Args:
        segmenter: one for which `why_whole` says nothing.
        image: opened.
        columns: from `fit`.
        scratch: the folder for what is kept on disk.
        compare: the image with the training data, by the distribution of its values; what it raises ends this.

    Raises:
        UsageError: if it does not fit the plan.
    """
    volume, members = image.volume, members_of(segmenter)
    segmenter.check(volume)
    turn, size, axis = layout_of(segmenter, volume)
    sampled = [Sampled(volume.size) for _ in range(volume.channels)]

    def see(box: Sequence[slice], values: NDArray[Any]) -> None:
        for one, channel in zip(sampled, values, strict=True):
            one.add(box, channel)

    prepared: list[OnGrid] = []
    try:
        for member in members:
            unseen = see if not prepared else lambda box, values: None
            prepared.append(prepare_on_disk(image, member.plan, scratch, PREPARING, unseen, member.device))
        compared = compare([one.shape() for one in sampled])
        labels = segmenter.plan.labels
        agreement = None if segmenter.compares is None else Agreement(labels, copies=segmenter.compares == "copies")
        kept = Bricks((labels.outputs if labels.multilabel else 1, *volume.size), _dtype(labels), scratch)
        seen = [Seen() for _ in members]
        own = agreement if len(members) == 1 else None
        along = column_axis(size, axis)
        for ends in columns.ends:
            streams_ = [
                _answers(member, given, volume, axis, None if len(columns.ends) == 1 else (along, *ends), own, one)
                for member, given, one in zip(members, prepared, seen, strict=True)
            ]
            parts = streams_[0] if len(members) == 1 else mean_slabs(streams_, axis, agreement)
            row = 0
            for part in parts:
                for piece in _pieces(part, axis):
                    found = to_labels(piece, labels, segmenter.recipe.inference.threshold)
                    found = found if labels.multilabel else found[None]
                    rows = piece.shape[axis + 1]
                    place = [slice(0, n) for n in size]
                    if len(columns.ends) > 1:
                        place[along] = slice(*ends)
                    place[axis] = slice(row, row + rows)
                    kept.write(stored_box(place, turn, size), turn.back(found))
                    row += rows
    finally:
        for one in prepared:
            one.close()
    beside = Beside(agreement)
    if cleans(segmenter):
        everywhere = [slice(0, n) for n in volume.size]
        whole = kept.read(everywhere)
        beside = beside._replace(changed=clean_up(whole if labels.multilabel else whole[0], volume, segmenter))
        kept.write(everywhere, whole)
    return BoundedMask(volume, kept, compared, beside)


def column_axis(size: Sequence[int], axis: int) -> int:
    """The axis, turned, along which columns follow each other: the longest but that of the slabs."""
    return max((a for a in range(len(size)) if a != axis), key=lambda a: size[a])


def _dtype(labels: Labels) -> np.dtype[Any]:
    return np.dtype(np.uint8) if labels.multilabel or labels.outputs == 1 else label_dtype(labels.outputs - 1)


def _on_grid(
    ends: tuple[int, int], size: Sequence[int], plan: Plan, volume: Volume, grid: Sequence[int], axis: int
) -> Column:
    """The points of a grid from which some voxels of the image are made."""
    step = (steps_of(volume, plan) or (1.0,) * len(size))[axis]
    if step == 1:
        return Column(axis, *ends)
    places = on_grid(size[axis], step, grid[axis])[ends[0] : ends[1]].clamp(0, grid[axis] - 1)
    return Column(axis, int(places[0]), min(int(places[-1]) + 2, grid[axis]))


def _answers(
    member: Segmenter,
    given: OnGrid,
    volume: Volume,
    axis: int,
    column: tuple[int, int, int] | None,
    agreement: Agreement | None,
    seen: Seen,
) -> Iterator[Tensor]:
    """Probabilities of a column on the grid of the image, turned, in slabs."""
    grid = given.shape[1:]
    part = None if column is None else _on_grid(column[1:], given.size, member.plan, volume, grid, column[0])
    slabs = windowed(
        member.forward,
        given,
        axis,
        member.recipe.inference,
        member.tally,
        agreement,
        part,
        seen if part is not None else None,
    )
    places = [on_grid(n, r, count) for n, r, count in zip(given.size, given.step, grid, strict=True)]
    begin = [0] * len(grid)
    if column is not None and part is not None:
        places[column[0]] = places[column[0]][column[1] : column[2]]
        begin[column[0]] = part.first
    return read_at(slabs, places, tuple(grid), given.step, axis, begin)


def _pieces(part: Tensor, axis: int) -> Iterator[Tensor]:
    """A slab in parts of some million voxels."""
    each = math.prod(part.shape[1:]) // part.shape[axis + 1]
    yield from torch.split(part, max(1, AT_ONCE // max(each, 1)), dim=axis + 1)
