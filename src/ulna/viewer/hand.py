"""Files at hand: an image, and a mask on its grid with the names of its classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ulna.data.formats.dicom.finding import known_header
from ulna.data.formats.dicom.labels import named_in
from ulna.data.formats.dicom.onto import onto_grid
from ulna.data.formats.dicom.series import DicomStored
from ulna.data.formats.label_maps import encode_labels, value_counts, without_colour
from ulna.data.formats.read import read_image, read_labels
from ulna.data.formats.source import ARRAY_SUFFIX, DICOM_SUFFIX, Series, Source, Structure, suffix_of
from ulna.data.layout.record import Record, read_facts
from ulna.data.quality.objects import MOST_CLASSES, count_objects
from ulna.data.volume import Volume, may_lie_turned, same_geometry, spacing_text, turned_text
from ulna.errors import UsageError, printable
from ulna.evaluation.known import mask_values, values_in
from ulna.recipe import Labels, parse
from ulna.system.outputs import PREDICT_FILE
from ulna.trust.structures import find_structures, unit_of

_LABELS = ("seg", "rtstruct")
MOST_IN_A_BODY = 256  # classes that nobody named, of what has a place: whole-body masks have more than a hundred
OBJECTS = "objects"  # what a mask of numbered objects is called where nothing names them


class Laid(NamedTuple):
    """A mask as it lies on its image.

    Args:
        mask: class indices (*S), or (K, *S) of 0 and 1 for overlapping classes.
        labels: the classes.
        objects: (*S), numbers of the objects of the one class; None for classes.
        trust: what `predict.json` says of the mask, or what it holds alone.
        notes: what was taken for granted.
    """

    mask: NDArray[Any]
    labels: Labels
    objects: NDArray[Any] | None
    trust: dict[str, Any]
    notes: tuple[str, ...]


def read_at_hand(path: Path) -> Volume:
    """An image file, or a folder of a DICOM series.

    Raises:
        UsageError: if it cannot be read, or holds several images.
    """
    if suffix_of(path) == ARRAY_SUFFIX:
        raise UsageError(f"{path}: holds many images, and one can be looked at; save it as .npy")
    if suffix_of(path) == ".zip":
        raise UsageError(f"{path}: is a .zip; unpack it, and give the folder of the series")
    return read_image([Source(path)])


def lay_mask(path: Path, image: Volume) -> Laid:
    """A mask on the grid of its image: turned and moved where its voxels are those of the image, never resampled.

    Raises:
        UsageError: if it cannot be read, holds no labels, or lies on another grid.
    """
    if suffix_of(path) == ARRAY_SUFFIX:
        raise UsageError(f"{path}: holds many masks, and one can be looked at; save it as .npy")
    facts = read_facts(path.parent)
    record = Record.read(path.parent) if facts else None
    rows = [] if record is None else record.of_file(path.name)
    own = bool(rows) and record is not None and not record.changed(rows[0])
    known = parse(Labels, facts["labels"], source=PREDICT_FILE) if own and "labels" in facts else None
    volume = read_labels(_source(path, image, known), image.spatial_dims)
    labels, objects = _labels(path, volume, known, facts)
    oriented = volume.meta.oriented and image.meta.oriented  # else the place is assumed, and says nothing of sides
    laid = onto_grid(volume, image) if oriented else volume
    if may_lie_turned(laid, image):
        remedy = "give both in formats that state one, such as NIfTI"
        raise UsageError(f"{path}: {turned_text(laid, 'the image')}; {remedy}")
    if laid.size != image.size or not same_geometry(laid, image):
        here, there = (
            f"{' x '.join(map(str, one.size))} at {spacing_text(one.spacing, one.unit)}" for one in (laid, image)
        )
        raise UsageError(
            f"{path}: does not lie on the image: it has {here}, the image {there}"
            f"{'' if laid.size != image.size else ', at another place'}; give the mask of this image"
        )
    unit, voxel = unit_of(image)
    if objects:
        numbers = without_colour(laid)[0]
        inside = (numbers != 0).astype(np.uint8)
        found = find_structures(inside, labels, voxel)
        trust = _trust(unit, found) if not own else dict(rows[0].trust) or _trust(unit, found)
        return Laid(inside, labels, numbers, trust, laid.meta.notes)
    mask = encode_labels(laid, labels)
    trust = dict(rows[0].trust) if own else {}
    return Laid(mask, labels, None, trust or _trust(unit, find_structures(mask, labels, voxel)), laid.meta.notes)


def _trust(unit: str, found: Mapping[str, Any]) -> dict[str, Any]:
    return {"unit": unit, "structures": {name: one.to_json() for name, one in found.items()}}


def _source(path: Path, image: Volume, known: Labels | None) -> Source:
    """A SEG or RTSTRUCT is read on the grid of the series that it was drawn on; one map a class where they may overlap."""
    stored = image.meta.stored
    if suffix_of(path) == DICOM_SUFFIX and isinstance(stored, DicomStored) and known_header(path).kind in _LABELS:
        files = dict.fromkeys(frame.header.path for frame in stored.stack.frames)
        if known is not None:
            return Source(path, None, Series((path,), grid=tuple(files), overlapping=known.multilabel))
        named = sorted((one.number, printable(one.label)) for one in named_in(path))
        structures = tuple(Structure(label, (f"#{number}",)) for number, label in named)
        return Source(path, None, Series((path,), grid=tuple(files), structures=structures, overlapping=True))
    return Source(path)


def _labels(path: Path, volume: Volume, known: Labels | None, facts: Mapping[str, Any]) -> tuple[Labels, bool]:
    """The classes of a mask, and whether its values number objects."""
    array = without_colour(volume)
    if array.dtype.kind == "f" or (array.shape[0] == 3 and (volume.meta.format == "raster" or volume.meta.colour)):
        raise UsageError(f"{path}: is an image and no mask; give the image first, then its mask")
    if known is not None:
        if facts.get("instances") is True:
            return Labels(names=known.names), True
        picture = volume.meta.format in ("raster", "tiff") and volume.spatial_dims == 2
        return (values_in(known, mask_values(facts, known)) if picture else known.of_masks), False
    if array.shape[0] > 1:
        return Labels(names=_names(path, array.shape[0]), multilabel=True), False
    values = [int(value) for value in value_counts(array, most=1 << 16) if value != 0]
    if min(values, default=0) < 0:
        raise UsageError(f"{path}: holds negative values, which no mask does; give the image first, then its mask")
    most = MOST_CLASSES if volume.affine is None else MOST_IN_A_BODY
    if len(values) > most and volume.meta.format != "dicom":
        if not count_objects(array[0], values):
            raise UsageError(
                f"{path}: holds {len(values)} values, and no mask more than {most} that are not numbers of objects; give "
                "the image first, then its mask, and one of more classes beside its predict.json"
            )
        return Labels(names=("background", OBJECTS)), True
    if volume.meta.format == "dicom":
        names = _names(path, max(values, default=1))
        return Labels(names=("background", *names)), False
    stored = values or [1]
    return Labels(names=("background", *map(str, stored)), values=tuple((value,) for value in stored)), False


def _names(path: Path, count: int) -> tuple[str, ...]:
    """As a SEG or RTSTRUCT names its structures; elsewhere numbers."""
    names: list[str] = []
    if suffix_of(path) == DICOM_SUFFIX and known_header(path).kind in _LABELS:
        named = {one.number: printable(one.label) for one in named_in(path)}
        names = [named[number] for number in sorted(named)]
    if len(names) == count and len(set(names)) == count and "background" not in names:
        return tuple(names)
    return tuple(str(number) for number in range(1, count + 1))
