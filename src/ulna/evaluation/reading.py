"""What an evaluation reads: predicted masks on the grid of their references, dimensions, and classes."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ulna.data.formats.dicom.onto import onto_grid
from ulna.data.formats.label_maps import value_counts, without_colour
from ulna.data.formats.read import read_labels
from ulna.data.formats.source import DICOM_SUFFIX, Series, Source, data_error, suffix_of
from ulna.data.layout.classes import classes_found
from ulna.data.layout.masks import Masks
from ulna.data.volume import Volume, same_geometry
from ulna.errors import DataError
from ulna.recipe import Labels, parse
from ulna.system.outputs import PREDICT_FILE


def read_mask(source: Source, image: Source | None, names: Labels, reference: Volume, dims: int | None) -> Volume:
    """A predicted mask; one of DICOM is read on the slices that it was made for, whatever the order of the reference's."""
    if source.row is None and suffix_of(source.path) == DICOM_SUFFIX:
        of_image = None if image is None else image.series
        grid, fixes = ((), ()) if of_image is None else (of_image.files, of_image.fixes)
        source = Source(source.path, None, Series((source.path,), fixes, grid, (), names.multilabel))
    mask = read_labels(source, dims)
    of_dicom = image is not None or "dicom" in (mask.meta.format, reference.meta.format)
    return onto_grid(mask, reference) if of_dicom else mask


def check_grid(source: Source, mask: Volume, reference: Volume) -> None:
    if mask.size != reference.size:
        what = f"has the size {mask.size}, its reference {reference.size}"
    elif not same_geometry(mask, reference):
        what = "has another orientation, origin or spacing (affine) than its reference"
    else:
        return
    raise data_error(source, what, "give masks on the grid of the references")


def common_dims(references: Iterable[Source]) -> tuple[int | None, Volume | None]:
    """Of the first reference that can be read as one thing only, and itself: volumes of one slice are what the others are."""
    volume = None
    for source in references:
        with suppress(DataError):  # told where it is evaluated
            volume = read_labels(source)
            if not volume.meta.either:
                return volume.spatial_dims, volume
    return None, volume


def classes_of(about: dict[str, Any], references: Masks, predicted: Masks, where: Path | str) -> Labels:
    """The classes as `predict` wrote them down, as a data set declares them, or as many as the masks hold."""
    if "labels" in about:
        return parse(Labels, about["labels"], source=PREDICT_FILE)
    declared = references.labels or predicted.labels
    if declared is not None:
        return declared
    values = {
        f"{kind} {name}": value_counts(without_colour(read_labels(source)))
        for kind, masks in (("reference", references), ("prediction", predicted))
        for name, source in masks.sources.items()
    }
    return classes_found(values, where)
