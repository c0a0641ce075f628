"""The masks of an evaluation, and what `predict` wrote down about them."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ulna.data.formats.dicom.onto import onto_grid
from ulna.data.formats.read import read_labels
from ulna.data.formats.source import ARRAY_SUFFIX, DICOM_SUFFIX, Series, Source, data_error, is_zarr, suffix_of
from ulna.data.layout.journals import journals
from ulna.data.layout.masks import Masks, find_masks, mask_files, rows_of
from ulna.data.layout.record import Entry, Record
from ulna.data.volume import Volume, may_lie_turned, same_geometry, turned_text
from ulna.errors import DataError, UsageError, listed
from ulna.evaluation.pair import without_values
from ulna.recipe import Labels
from ulna.system.outputs import JOURNAL

log = logging.getLogger(__name__)

SHOWN = 3  # ids in a message


def predicted_masks(predictions: Path) -> tuple[Masks, dict[str, list[str]], dict[str, Any]]:
    """The masks to score, what is told about the others, and predict.json where it is about them.

    Of a folder of `predict` those that its newest call lists; of any other folder, and of a file that is not listed, all.
    """
    folder = predictions if predictions.is_dir() and not is_zarr(predictions) else predictions.parent
    record = Record.read(folder)
    if journals(folder) and (predictions == folder or predictions.name in record.unfinished):
        raise UsageError(
            f"{folder}: the last prediction was not finished ({JOURNAL}); call the same ulna predict again"
        )
    rows = record.current()
    if not record.facts or (predictions != folder and not any(entry.file == predictions.name for entry in rows)):
        return find_masks(predictions), {}, {}
    names = None if predictions == folder else {predictions.name}
    sources = sources_of(folder, rows, names)
    known = {name for entry in rows for name in entry.files}
    stray = [path.name for path in mask_files(folder) if path.name not in known] if predictions == folder else []
    changed = [entry.case for entry in rows if entry.case in sources and record.changed(entry)]
    return Masks(sources, None), {"not_listed": stray, "changed": changed}, record.facts


def tell_others(predictions: Path, extra: Sequence[str], notes: Mapping[str, Sequence[str]]) -> None:
    """Tell of masks that are not scored, and of those that are scored as somebody changed them.

    Args:
        predictions: their folder.
        extra: cases without a reference.
        notes: of `predicted_masks`.
    """
    if extra:
        log.info("note: masks without a reference, left out (%d): %s", len(extra), listed(extra, SHOWN))
    if others := notes.get("not_listed"):
        text = "masks in %s beside those of the last prediction, not scored (%d): %s"
        log.warning(text, predictions, len(others), listed(others, SHOWN))
    if changed := notes.get("changed"):
        text = "masks changed after predict wrote them, scored as they are (%d): %s"
        log.warning(text, len(changed), listed(changed, SHOWN))


def sources_of(folder: Path, rows: Sequence[Entry], names: Collection[str] | None = None) -> dict[str, Source]:
    """Case -> its mask, of those that predict.json lists and that lie there.

    Args:
        folder: of the masks.
        rows: of predict.json.
        names: of the files that are meant; None for all.
    """
    sources: dict[str, Source] = {}
    for name in dict.fromkeys(entry.file for entry in rows):
        path = folder / name
        if not path.exists() or (names is not None and name not in names):
            continue
        if suffix_of(path) == ARRAY_SUFFIX:
            inside = rows_of(path)
            sources |= {e.case: inside[e.case] for e in rows if e.file == name and e.case in inside}
        else:
            sources |= {entry.case: Source(path) for entry in rows if entry.file == name}
    return sources


def read_mask(source: Source, image: Source | None, names: Labels, like: Volume, dims: int | None) -> Volume:
    """A predicted mask; one of DICOM is read on the slices that it was made for, whatever the order of others'.

    Args:
        source: the mask.
        image: of the case, where it is a DICOM series.
        names: the classes.
        like: its image or its reference, on whose grid it is wanted.
        dims: that it has, where a file may be read in two ways.
    """
    if source.row is None and suffix_of(source.path) == DICOM_SUFFIX:
        of_image = None if image is None else image.series
        grid, fixes = ((), ()) if of_image is None else (of_image.files, of_image.fixes)
        source = Source(source.path, None, Series((source.path,), fixes, grid, (), names.multilabel))
    mask = read_labels(source, dims)
    of_dicom = image is not None or "dicom" in (mask.meta.format, like.meta.format)
    return onto_grid(mask, like) if of_dicom else mask


def check_grid(source: Source, mask: Volume, reference: Volume) -> None:
    """Refuse a mask that lies on another grid than its reference.

    Raises:
        DataError: saying how they differ.
    """
    if may_lie_turned(mask, reference):
        remedy = "give masks and references in formats that state one, such as NIfTI (predict --format nifti)"
        raise data_error(source, turned_text(mask, "its reference"), remedy)
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
            volume = without_values(read_labels(source))
            if not volume.meta.either:
                return volume.spatial_dims, volume
    return None, volume
