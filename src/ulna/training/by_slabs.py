"""A case that is prepared a slab at a time, on a disk: for images larger than the memory that may be taken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ulna.data.formats.bricks import Bricks
from ulna.data.formats.opening import OpenImage, open_image
from ulna.data.formats.source import data_error
from ulna.data.layout.case import Case
from ulna.data.pipeline.orientation import turn_of
from ulna.data.pipeline.preprocess import Prepared, steps_of
from ulna.data.streaming import labels_on_disk, nearest_rows, prepare_on_disk
from ulna.data.volume import Volume, same_geometry
from ulna.errors import UsageError
from ulna.planning.bounded import PREPARING
from ulna.recipe import Plan
from ulna.training.spool import Spool

PART = 1 << 24  # bytes that are copied at once


def prepare_by_slabs(case: Case, plan: Plan, spool: Spool, *, on_grid: bool) -> tuple[Prepared, Tensor]:
    """A case as `prepare` and `prepare_labels` make it, or with its reference on its own grid, as maps of a file.

    The mean and the deviation of an image are equal within rounding; all else is to the bit.

    Args:
        case: labelled; its image and its label map are read by slabs.
        plan: one that `streams`.
        spool: that keeps it.
        on_grid: the reference on the grid of the plan, else on that of the file.

    Raises:
        UsageError: if it does not fit the plan, or the disk does not hold it.
        DataError: if values are damaged.
    """
    assert case.label is not None
    scratch, exclusive = spool.folder, not plan.labels.multilabel
    with ExitStack() as held, _on_the_disk(case, scratch):
        image = held.enter_context(open_image(case.images, case.spatial_dims, scratch))
        volume = image.volume
        made = prepare_on_disk(image, plan, scratch, PREPARING, lambda box, values: None, torch.device("cpu"))
        held.callback(made.close)
        kept = spool.put_parts(made.shape, torch.float32, _rows(made.values))
        map_ = held.enter_context(_open_labels(case, volume, scratch))
        encoded = labels_on_disk(map_, plan.labels, scratch, PREPARING)
        held.callback(encoded.close)
        channels = range(encoded.shape[0])
        grid = made.shape[1:] if on_grid else volume.size
        kind = torch.from_numpy(np.empty(0, encoded.dtype)).dtype
        if on_grid:  # as `prepare_labels` has it
            kind = torch.uint8 if encoded.dtype.itemsize == 1 else torch.int32
        parts = (
            _on_grid(encoded, [channel], volume, plan) if on_grid else _rows(encoded, [channel]) for channel in channels
        )
        shape = grid if exclusive else (len(channels), *grid)
        labels = spool.put_parts(shape, kind, (part.to(kind) for channel in parts for part in channel))
    if kept is None or labels is None:
        raise _full(case, scratch)
    turn = turn_of(volume, plan)
    return Prepared(kept, turn.order(volume.size), turn=turn, step=steps_of(volume, plan)), labels


@contextmanager
def _on_the_disk(case: Case, scratch: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _full(case, scratch, f" ({error.strerror or error})") from None


def _full(case: Case, scratch: Path, why: str = "") -> UsageError:
    return UsageError(
        f"case {case.id}: is larger than --max-ram lets lie in memory, and the disk of {scratch} does not hold it "
        f"prepared{why}; free some of it, or raise --max-ram"
    )


def _open_labels(case: Case, volume: Volume, scratch: Path) -> OpenImage:
    """The label map of a case, which lies on the grid of its image."""
    assert case.label is not None
    opened = open_image([case.label], case.spatial_dims or volume.spatial_dims, scratch)
    if opened.volume.size != volume.size or not same_geometry(opened.volume, volume):
        opened.close()
        what = f"lies on another grid than its image ({opened.volume.size}, and {volume.size})"
        raise data_error(case.label, what, "see ulna check")
    return opened


def _on_grid(encoded: Bricks, channels: Sequence[int], volume: Volume, plan: Plan) -> Iterator[Tensor]:
    for part in nearest_rows(encoded, volume, plan, PART, channels):
        yield torch.from_numpy(part)


def _rows(values: Bricks, channels: Sequence[int] | None = None) -> Iterator[Tensor]:
    """(C, *S) in the order of memory: channel by channel, some rows at a time."""
    size = values.shape[1:]
    row = values.dtype.itemsize
    for n in size[1:]:
        row *= n
    rows = max(1, PART // row)
    for channel in range(values.shape[0]) if channels is None else channels:
        for first in range(0, size[0], rows):
            here = slice(first, min(first + rows, size[0]))
            yield torch.from_numpy(values.read([here, *(slice(0, n) for n in size[1:])], [channel]))
