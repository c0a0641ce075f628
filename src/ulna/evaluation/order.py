"""Images where masks are wanted, told by what is in the files: only where something does not fit already."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path

from ulna.data.formats.label_maps import value_counts, without_colour
from ulna.data.formats.read import read_labels
from ulna.data.formats.source import Source, suffix_of
from ulna.data.quality.objects import MOST_CLASSES, count_objects
from ulna.errors import DataError, UsageError
from ulna.verbs import command

_LOOKED_AT = 3  # files
_JPEG = (".jpg", ".jpeg")


@contextmanager
def told_as_images(
    predictions: Path, masks: Iterable[Source], labels: Path, references: Iterable[Source]
) -> Iterator[None]:
    """Tell of files that do not fit that they are images, where they are.

    Raises:
        UsageError: with the command that is meant.
        DataError: as it was, where they are none.
    """
    try:
        yield
    except DataError as error:
        if image := _image_among(masks):
            meant = command(["evaluate", "MASKS", labels])
            raise UsageError(f"{predictions}: holds images ({image.name}), where masks are wanted: {meant}") from error
        if image := _image_among(references):
            meant = command(["evaluate", predictions, "LABELS"])
            what = f"holds images ({image.name}), where the references are wanted"
            raise UsageError(f"{labels}: {what}: {meant}") from error
        raise


def _image_among(sources: Iterable[Source]) -> Path | None:
    """The first file, where all that are looked at are images."""
    some = list(islice(sources, _LOOKED_AT))
    return some[0].path if some and all(map(looks_like_image, some)) else None


def looks_like_image(source: Source) -> bool:
    """Whether a file holds more than label maps do: JPEG, colours, fractions, or many values that number no objects."""
    if suffix_of(source.path) in _JPEG:
        return True
    with suppress(DataError):
        array = without_colour(volume := read_labels(source))
        if array.dtype.kind == "f" or (len(array) == 3 and volume.meta.format == "raster"):
            return True
        values = [int(value) for value in value_counts(array, most=1 << 16) if value > 0]
        return len(values) > MOST_CLASSES and not (len(array) == 1 and count_objects(array[0], values))
    return False
