"""What the values and axes of a TIFF mean: which of 0 and the largest is white, palettes, opacity, depth and time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ulna.data.formats.palettes import Colour, palette_classes
from ulna.data.formats.source import data_error
from ulna.data.formats.tiff_decoding import JPEG_PACKINGS

_WHITE_IS_ZERO, RGB, _PALETTE, _CMYK = 0, 2, 3, 5  # of the tag PhotometricInterpretation
WHITE_IS_ZERO = "says that white is zero; read as shown, white is the largest value"
_ALPHA = (1, 2)  # of the tag ExtraSamples: opacity, associated or not
_DEPTH = "ZQI"  # axes that are depth: slices, and runs of pages that have no name
_MEANING = {
    "T": "time",
    "A": "angle",
    "P": "phase",
    "H": "lifetime",
    "E": "wavelength",
    "L": "exposure",
    "V": "event",
    "R": "position",
    "M": "mosaic",
}


def check_meaning(path: Path, page: Any, as_labels: bool) -> None:
    """Refuse what is no picture of values: the colours of print, and label maps that JPEG has changed."""
    if page.photometric == _CMYK:
        raise data_error(path, "is CMYK, the colours of print", "save it as RGB or grey")
    if as_labels and page.compression in JPEG_PACKINGS:
        what = "is packed as JPEG, which does not keep label values"
        raise data_error(path, what, "save label maps without compression, or with LZW or deflate")


def meant(
    path: Path, array: NDArray[Any], axes: str, page: Any, as_labels: bool, notes: list[str]
) -> tuple[NDArray[Any], str, dict[int, Colour]]:
    """Values as they are meant, with their axes, and the colours of classes that were drawn with a palette."""
    array = array.astype(np.uint8) if array.dtype == bool else array
    if page.photometric == _WHITE_IS_ZERO:
        return _white_is_largest(array, page, as_labels, notes), axes, {}
    if page.photometric != _PALETTE or page.colormap is None:
        return array, axes, {}
    colours = np.asarray(page.colormap >> 8, dtype=np.uint8)  # (3, 256), 16 bits
    if as_labels:
        palette = [(int(red), int(green), int(blue)) for red, green, blue in colours.T]
        array, drawn = palette_classes(path, array, palette, notes)
        return array, axes, drawn
    notes.append("has a palette, read as colour")
    return np.moveaxis(colours[:, array], 0, -1), axes + "S", {}


def _white_is_largest(array: NDArray[Any], page: Any, as_labels: bool, notes: list[str]) -> NDArray[Any]:
    """Images are read as viewers show them. Of label maps only those of 1 bit: ImageJ writes masks in which objects are
    255 and drawn black, and class numbers are numbers."""
    if array.dtype.kind != "u":
        notes.append(f"says that white is zero, which means nothing for {array.dtype}; the stored values are read")
        return array
    bits = int(page.bitspersample)
    if as_labels and bits != 1:
        notes.append("says that white is zero; the stored values are the classes, 0 is background")
        return array
    notes.append(WHITE_IS_ZERO)
    return np.subtract((1 << bits) - 1, array, dtype=array.dtype, casting="unsafe")


def channels_first(
    path: Path, array: NDArray[Any], axes: str, extra: Sequence[int], notes: list[str]
) -> tuple[NDArray[Any], str]:
    """(C, *S), and the name of the axis that is read as depth, empty in 2D."""
    found = find_axes(path, array.shape, axes, extra, notes)
    return found.apply(array), found.run


class Axes(NamedTuple):
    """Which axes of stored values are what.

    Args:
        order: of channels (None where there is no such axis), and of *S, in the stored array; all others have length 1.
        run: the name of the axis that is read as depth, empty in 2D.
        chosen: the channels that are kept; None for all.
    """

    order: tuple[int | None, ...]
    run: str
    chosen: tuple[int, ...] | None = None

    def apply(self, array: NDArray[Any]) -> NDArray[Any]:
        """(C, *S) of stored values, or of a box of them: a view, but where channels are dropped."""
        kept = [axis for axis in self.order if axis is not None]
        size = [array.shape[axis] for axis in kept]
        moved = array.transpose(*kept, *(axis for axis in range(array.ndim) if axis not in kept))
        moved = moved.reshape(size if self.order[0] is not None else (1, *size))
        return moved if self.chosen is None else moved[list(self.chosen)]


def find_axes(path: Path, shape: Sequence[int], axes: str, extra: Sequence[int], notes: list[str]) -> Axes:
    """S (samples) and C (channels) become the channels; Z, a run of pages without a name, or any other axis the depth.

    Raises:
        DataError: if there are others.
    """
    keep = [i for i, axis in enumerate(axes) if shape[i] > 1 or axis in "YX"]
    kept = {axes[i]: i for i in keep}
    depth = [axes[i] for i in keep if axes[i] not in "YXSC"]
    colour = [axes[i] for i in keep if axes[i] in "SC"]
    if len(depth) > 1 or len(colour) > 1 or not {"Y", "X"} <= set(kept):
        held = tuple(shape[i] for i in keep)
        raise data_error(
            path, f"has the axes {''.join(axes[i] for i in keep)} of {held}", "save one 2D or 3D image a file"
        )
    order = (kept[colour[0]] if colour else None, *(kept[axis] for axis in (*depth, "Y", "X")))
    run = depth[0] if depth else ""
    if run and run not in _DEPTH:
        name = _MEANING.get(run, f"the axis {run}")
        what = f"has {shape[kept[run]]} pictures along {name}, read as depth"
        notes.append(f"{what}; where they are none, save one a file")
    if colour != ["S"] or not any(kind in _ALPHA for kind in extra):
        return Axes(order, run)
    notes.append("has an alpha channel, dropped")
    channels = shape[kept["S"]]
    first = channels - len(extra)
    return Axes(order, run, tuple(i for i in range(channels) if i < first or extra[i - first] not in _ALPHA))
