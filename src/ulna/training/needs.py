"""What every part of a training takes of a case, in bytes, counted from the headers of its files.

Legend: C channels, V voxels of an image, G of it on the plan's grid.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

from ulna.data.formats.opening import peek_image
from ulna.data.layout.case import Case
from ulna.data.pipeline.orientation import turn_of
from ulna.data.pipeline.preprocess import grid_of
from ulna.data.streaming import WORKING as TIMES
from ulna.data.volume import Volume, label_dtype
from ulna.planning.bounded import LIBRARIES, PREPARING, WORKING
from ulna.planning.memory import program_bytes, window_bytes
from ulna.planning.plan import Planned
from ulna.recipe import Plan

SCANNED = 4  # bytes of a voxel of a label map that is looked through, beside those in its file
ENCODED = 8  # the same of one that is brought to the grid of a plan, and of which the structures are found
SCORED = 25  # bytes of a voxel while the surfaces of a mask are compared, if a quarter of all voxels is surface
REFERENCED = 10  # the same while pieces of a reference are looked for
COMPARED = 16  # the same while post-processing is tried
OVERLAP = 6  # the same for overlap alone
MAPPED = 64 * 10**6  # bytes from which on an image is looked through part by part
PARTS = 64 * 10**6  # of images and maps that are gone through part by part
ROW = 6  # of a row of voxels of a mask, for the runs that a structure has in a part of them
PIECE = 2  # a sample is taken from so many times its voxels: it may be turned


_known: ContextVar[dict[str, Seen] | None] = ContextVar("known", default=None)
_libraries = [float(LIBRARIES)]  # that this process has yet to load


class Seen(NamedTuple):
    """A case by its headers.

    Args:
        case: of the data set.
        volume: its image, without values.
        mapped: its image is read box by box.
        by_slabs: its label map, too.
        map_bytes: of its label map as it is stored.
    """

    case: Case
    volume: Volume
    mapped: bool
    by_slabs: bool
    map_bytes: float

    @property
    def voxels(self) -> int:
        """Of a channel."""
        return math.prod(self.volume.size)

    @property
    def stored(self) -> float:
        """Bytes of the image as it is read."""
        return float(math.prod(self.volume.array.shape) * self.volume.array.dtype.itemsize)

    @property
    def reading(self) -> float:
        """Bytes while it is looked through: a large image part by part, its label map whole."""
        image = self.stored if self.stored < MAPPED or not self.mapped else 0.0
        return image + self.map_bytes + SCANNED * self.voxels + PARTS


@contextmanager
def remembering() -> Iterator[None]:
    """What is seen of a case inside is not read again: of some formats a header takes the whole file."""
    before = _known.set({})
    try:
        yield
    finally:
        _known.reset(before)


def seen(case: Case) -> Seen:
    """A case by its headers.

    Raises:
        DataError: if they cannot be read.
    """
    known, key = _known.get(), repr((case.images, case.label, case.spatial_dims))
    if known is None or key not in known:
        found = _look_at(case)
        if known is None:
            return found
        known[key] = found
        own = found.volume.spatial_dims  # as it is asked for once the dimensions of the data set are known
        known.setdefault(repr((case.images, case.label, own)), found)
    return known[key]._replace(case=case)


def _look_at(case: Case) -> Seen:
    volume, mapped = peek_image(case.images, case.spatial_dims)
    voxels = float(math.prod(volume.size))
    if case.label is None:
        return Seen(case, volume, mapped, mapped, 0.0)
    if case.label.series is not None or case.label.row is not None or case.label.path.is_dir():
        return Seen(case, volume, mapped, False, voxels)
    map_, whole = peek_image([case.label], case.spatial_dims or volume.spatial_dims)
    plain = whole and not map_.meta.colour and not map_.meta.palette and map_.size == volume.size
    size = math.prod(map_.array.shape) * map_.array.dtype.itemsize
    return Seen(case, volume, mapped, mapped and plain and len(map_.array) == 1, float(size))


def program_at_work() -> float:
    """Bytes of the program once it trains."""
    return program_bytes() + _libraries[0]


def has_trained() -> None:
    """From now on the program holds all that a training loads."""
    _libraries[0] = 0.0


def base_bytes(planned: Planned) -> float:
    """What is held all the time: the program, and the weights with their gradients and moments."""
    parts = planned.memory.parts
    return program_at_work() + (0.0 if planned.device.gpu else parts["weights, gradients and moments"])


def step_bytes(planned: Planned, readers: int) -> float:
    plan = planned.plan
    batch = plan.batch * math.prod(plan.patch) * (4 * plan.inputs + mask_bytes(plan))
    maps = 0.0 if planned.device.gpu else planned.memory.parts["maps of a step"]
    return maps + (3 + PIECE * (readers + 1)) * batch + PARTS


def mask_bytes(plan: Plan) -> int:
    """Of a voxel of a mask."""
    labels = plan.labels
    return len(labels.foreground) if labels.multilabel else label_dtype(max(labels.outputs, 2)).itemsize


def grid_voxels(one: Seen, plan: Plan) -> int:
    return math.prod(grid_of(one.volume, plan))


def whole_bytes(one: Seen, plan: Plan) -> float:
    """Preparing a case in memory: its values as float32, normalised, joined and resampled, and then its labels."""
    values = max(one.voxels, grid_voxels(one, plan))
    own = 4.0 * one.volume.channels
    image = own * (2 * one.voxels + 2 * values) + one.voxels
    slices = 0.0 if plan.slices is None else 2 * own * plan.slices.thickness * grid_voxels(one, plan)
    labels = own * grid_voxels(one, plan) + one.map_bytes + ENCODED * maps_of(plan) * values + slices
    return one.stored + max(image, labels) + PARTS


def maps_of(plan: Plan) -> int:
    return len(plan.labels.foreground) if plan.labels.multilabel else 1


def structures_bytes(one: Seen, planned: Planned) -> float:
    """What is kept of a training case where samples are drawn from the structures of all cases together."""
    if planned.recipe.training.sampling == "case":
        return 0.0  # they are found again
    grid = grid_of(one.volume, planned.plan)
    return ROW * maps_of(planned.plan) * math.prod(grid) / grid[-1]


def prepared_bytes(one: Seen, plan: Plan) -> float:
    """A case as it is kept for a training."""
    copies = 1 if plan.slices is None else plan.slices.thickness
    return (4.0 * one.volume.channels * copies + mask_bytes(plan)) * grid_voxels(one, plan)


def drawing_bytes(one: Seen, plan: Plan) -> float:
    """Drawing a prepared case on a sheet: its map, and copies of it as greys."""
    copies = 24.0 * one.volume.channels + ENCODED * maps_of(plan)
    return prepared_bytes(one, plan) + copies * grid_voxels(one, plan) + PARTS


def slab_bytes(one: Seen, plan: Plan) -> float:
    """The same a slab at a time; of the labels on the disk it is noted where the structures lie."""
    shape = one.volume.array.shape
    row = TIMES * 4 * math.prod(shape) / min(shape[1:])
    return max(PREPARING, 4 * row) + 2.0 * maps_of(plan) * grid_voxels(one, plan) + PARTS


def _window(one: Seen, planned: Planned, each: float) -> tuple[float, float]:
    """Bytes of a window with its maps, `each` a voxel, and of the slab into which windows are summed."""
    plan, grid = planned.plan, grid_of(one.volume, planned.plan)
    plane = [grid[axis] for axis in plan.patch_axes]
    whole = plan.takes_whole(plane, sparse=planned.network.head.sparse)
    window = plane if whole else [min(p, n) for p, n in zip(plan.patch, plane, strict=True)]
    outputs, size = plan.labels.outputs, turn_of(one.volume, plan).order(one.volume.size)
    if plan.slices is None:
        axis = max(range(len(size)), key=lambda a: size[a])
        share = min(1.0, window[axis] / grid[axis])
    else:
        share = 1 / grid[plan.slices.axis]
    slab = 4.0 * share * ((outputs + 1) * math.prod(grid) + outputs * one.voxels)
    copies = planned.recipe.inference.tta
    return window_bytes(each, math.prod(window), plan, copies=copies), slab


def answering_bytes(one: Seen, planned: Planned, each: float) -> float:
    """Predicting a validation case that is prepared, and scoring its mask."""
    mask = 2 * mask_bytes(planned.plan) + OVERLAP
    padded = 4.0 * one.volume.channels * grid_voxels(one, planned.plan) if planned.network.head.sparse else 0.0
    return sum(_window(one, planned, each)) + padded + mask * one.voxels + WORKING


def finishing_bytes(one: Seen, planned: Planned, each: float, scored: int, prepared: int = 1) -> float:
    """Reading, preparing, predicting and comparing a case at the end, in memory."""
    plan = planned.plan
    images = one.stored + prepared * 4.0 * one.volume.channels * grid_voxels(one, plan)
    masks = (2.0 * mask_bytes(plan) + OVERLAP) * one.voxels + one.map_bytes
    compared = one.stored + masks + scored * one.voxels
    return max(whole_bytes(one, plan), images + masks + 2 * sum(_window(one, planned, each)), compared) + WORKING
