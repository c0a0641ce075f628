"""TIFF through tifffile: one page is 2D, several pages are 3D; spacing only where the file really states a unit."""

from __future__ import annotations

import io
import logging
import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL.TiffImagePlugin import TiffImageFile

from ulna.data.limits import MOST_PIXELS, check_memory
from ulna.data.read_raster import plain_values
from ulna.data.source import AGAIN, fault, file_stat, suffix_of
from ulna.errors import DataError
from ulna.volume import Volume

logging.getLogger("tifffile").addHandler(logging.NullHandler())  # its faults are told as problems, not printed

_MM = {"m": 1e3, "cm": 10.0, "mm": 1.0, "um": 1e-3, "micron": 1e-3, "microns": 1e-3, "nm": 1e-6}
_TAG_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_CMYK = 5
_OFFSET = 273  # where the pixels of a page begin
_SHAPING = (256, 257, 258, 259, 262, 277, 317, 339)  # width, height, bits, packing, meaning and number of samples
_ALPHA = (1, 2)  # of the tag ExtraSamples: opacity, associated or not
_PRINT_DPI = (72, 96, 100, 150, 200, 300, 600, 1200)


def read_tiff(path: Path, *, as_labels: bool = False) -> Volume:
    """(C, H, W) or (C, D, H, W); colour has C = 3. ImageJ and OME axes are respected, unnamed pages are depth.

    Raises:
        DataError: if the file is empty, cut short, damaged, too large or packed in a way that cannot be read.
    """
    size = file_stat(path).st_size
    notes: list[str] = []
    pages = _check_chain(path, size)
    try:
        with tifffile.TiffFile(path) as file:
            if not file.pages:
                raise fault(path, "is cut short: it holds no page", AGAIN)
            series = file.series[0]
            if len(file.series) > 1:
                notes.append(f"holds {len(file.series)} pictures, the first is read")
            _check_whole(path, series, size)
            _check_pages(path, series, pages)
            if series.keyframe.photometric == _CMYK:
                raise fault(path, "is CMYK, the colours of print", "save it as RGB or grey")
            array, axes = _decoded(path, series), series.axes
            array, axes = _expanded(array, axes, series.keyframe, as_labels, notes)
            spacing = _spacing(file, series.keyframe)
            resolution = _resolution(series.keyframe)
            array = _channels_first(path, array, axes, series.keyframe.extrasamples, notes)
    except DataError:
        raise
    except Exception as error:  # tifffile raises nearly every type on damaged files
        raise fault(path, f"cannot be read as TIFF ({str(error) or type(error).__name__})", AGAIN) from None
    if array.dtype.kind not in "iuf":
        raise fault(path, f"holds values of type {array.dtype}", "save it with integer or real values")
    if array.dtype.kind == "f":
        array = array.astype(np.float32)
    dims = array.ndim - 1
    known = spacing is not None and (dims == 2 or spacing[0] is not None)
    spaces = tuple(float(s) for s in spacing[3 - dims :] if s) if known and spacing else (1.0,) * dims
    meta = {"format": "tiff", "suffix": suffix_of(path), "resolution": resolution, "notes": tuple(notes)}
    return Volume(np.ascontiguousarray(array), spaces, "mm" if known else "px", None, path, meta)


def _check_chain(path: Path, size: int) -> list[dict[int, int]]:
    """Walk the directories of all pages: tifffile stops at a broken link and returns the pages before it.

    Returns:
        Of every page the tags that hold one number.
    """

    def number(count: int) -> int:
        data = file.read(count)
        if len(data) < count:
            raise fault(path, f"is cut short: it holds {size} bytes, and a page is missing", AGAIN)
        return int.from_bytes(data, order)

    with path.open("rb") as file:
        order: Literal["little", "big"] = "big" if file.read(2) == b"MM" else "little"
        version = number(2)
        if version not in (42, 43):
            raise fault(path, "is not a TIFF file", "give the file its right extension, or save it as TIFF")
        wide = version == 43
        file.seek(8 if wide else 4)
        word, counter = (8, 8) if wide else (4, 2)
        seen: set[int] = set()
        pages: list[dict[int, int]] = []
        while at := number(word):
            if at in seen:
                raise fault(path, "is damaged: its pages run in a circle", AGAIN)
            seen.add(at)
            file.seek(at)
            pages.append({})
            for _ in range(number(counter)):
                tag, kind, count, raw = number(2), number(2), number(word), file.read(word)
                value = int.from_bytes(raw, order)
                if count == 1 and _TAG_BYTES.get(kind, 0) in (1, 2, 4):
                    pages[-1][tag] = int.from_bytes(raw[: _TAG_BYTES[kind]], order)
                long = count * _TAG_BYTES.get(kind, 0)
                if long > word and value + long > size:
                    raise fault(path, f"is cut short: it needs {value + long} bytes and holds {size}", AGAIN)
    return pages


def _check_pages(path: Path, series: Any, pages: Sequence[dict[int, int]]) -> None:
    """A run of pages is read as one block, by the tags of its first page: the others must say the same."""
    if series.dataoffset is None or len(pages) < 2 or len(series.pages) != len(pages):
        return
    step = series.nbytes // len(pages)
    for number, page in enumerate(pages):
        begin = series.dataoffset + number * step
        if page.get(_OFFSET, begin) != begin or any(page.get(tag) != pages[0].get(tag) for tag in _SHAPING):
            raise fault(path, f"is damaged: page {number + 1} does not agree with the first", AGAIN)


def _check_whole(path: Path, series: Any, size: int) -> None:
    if math.prod(series.shape) > 4 * MOST_PIXELS:
        raise fault(path, f"declares {series.shape} values, more than {4 * MOST_PIXELS}", "cut it into tiles")
    check_memory(path, series.nbytes)
    if series.dataoffset is not None:  # one run of bytes
        needed = series.dataoffset + series.nbytes
    else:
        pages = [page for page in series.pages if page is not None]
        ends = [[a + n for a, n in zip(page.dataoffsets, page.databytecounts, strict=False)] for page in pages]
        needed = max((end for page_ends in ends for end in page_ends), default=0)
        if len(pages) < len(series.pages):
            raise fault(path, "is cut short: a page is missing", AGAIN)
    if needed > size:
        raise fault(path, f"is cut short: it needs {needed} bytes and holds {size}", AGAIN)


def _decoded(path: Path, series: Any) -> NDArray[Any]:
    """The stored values. Packings that tifffile leaves to an optional package (LZW) are decoded by Pillow."""
    try:
        return np.asarray(series.asarray())
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
    remedy = "save it without compression"
    planes = []
    try:
        picture = TiffImageFile(io.BytesIO(path.read_bytes()))
        for page in series.pages:
            picture.seek(page.index)
            picture.load()
            plane = plain_values(picture, True, [])
            if page.photometric == 0:  # Pillow inverts "white is zero", tifffile and this reader keep the stored values
                plane = (1 if picture.mode == "1" else np.iinfo(plane.dtype).max) - plane
            planes.append(plane)
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise fault(path, f"is packed as {series.keyframe.compression.name}, not readable ({error})", remedy) from None
    stacked = np.moveaxis(np.stack(planes), 1, -1)  # (pages, H, W, samples)
    if stacked.size != math.prod(series.shape):
        raise fault(path, f"is packed as {series.keyframe.compression.name}, which is not read here", remedy)
    return stacked.reshape(series.shape)


def _expanded(array: NDArray[Any], axes: str, page: Any, as_labels: bool, notes: list[str]) -> tuple[NDArray[Any], str]:
    array = array.astype(np.uint8) if array.dtype == bool else array
    if as_labels and page.photometric == 0 and page.bitspersample == 1:
        array = 1 - array  # "white is zero": 1 is drawn black, and every other program reads it as 0
    if page.photometric == 3 and page.colormap is not None and not as_labels:
        notes.append("has a palette, read as colour")
        colours = np.asarray(page.colormap >> 8, dtype=np.uint8)  # (3, 256), 16 bits
        return np.moveaxis(colours[:, array], 0, -1), axes + "S"
    return array, axes


def _channels_first(path: Path, array: NDArray[Any], axes: str, extra: Sequence[int], notes: list[str]) -> NDArray[Any]:
    """(C, *S): S (samples) and C (channels) become the channels, Z or any unnamed run of pages the depth."""
    keep = [i for i, axis in enumerate(axes) if array.shape[i] > 1 or axis in "YX"]
    array, axes = array.reshape([array.shape[i] for i in keep]), "".join(axes[i] for i in keep)
    depth = [axis for axis in axes if axis not in "YXSC"]
    colour = [axis for axis in axes if axis in "SC"]
    if len(depth) > 1 or len(colour) > 1 or not {"Y", "X"} <= set(axes):
        raise fault(path, f"has the axes {axes} of {array.shape}", "save one 2D or 3D image a file")
    order = [axes.index(axis) for axis in (*colour, *depth, "Y", "X")]
    array = array.transpose(order)
    if not colour:
        return array[None]
    if colour != ["S"] or not any(kind in _ALPHA for kind in extra):
        return array
    notes.append("has an alpha channel, dropped")
    first = array.shape[0] - len(extra)
    return array[[i for i in range(array.shape[0]) if i < first or extra[i - first] not in _ALPHA]]


def _resolution(page: Any) -> tuple[float, float, int] | None:
    """Pixels per unit along x and y, and the unit's TIFF code."""
    tags = page.tags
    if "XResolution" not in tags or "YResolution" not in tags:
        return None
    (xn, xd), (yn, yd) = tags["XResolution"].value, tags["YResolution"].value
    if not (xn and xd and yn and yd):
        return None
    return xn / xd, yn / yd, int(tags["ResolutionUnit"].value) if "ResolutionUnit" in tags else 2


def _spacing(file: Any, page: Any) -> tuple[float | None, float, float] | None:
    """(z, y, x) in mm; None where no unit is stated, z None where only the plane is."""
    if file.is_ome:
        return _ome_spacing(file.ome_metadata)
    resolution = _resolution(page)
    if resolution is None:
        return None
    x, y, code = resolution
    if file.is_imagej:
        about = file.imagej_metadata or {}
        scale = _millimetres(about.get("unit"))
        z = about.get("spacing")
        return None if scale is None else (abs(float(z)) * scale if z else None, scale / y, scale / x)
    # inches, and the densities of print, are what programs write when nobody told them a size
    if code != 3 or any(abs(x * 2.54 - dpi) < 0.01 * dpi for dpi in _PRINT_DPI):
        return None
    return None, 10.0 / y, 10.0 / x


def _millimetres(unit: object) -> float | None:
    """Millimetres in a unit that is named; None for pixels and unknown words."""
    name = str(unit or "").replace("\\u00B5", "u").replace("µ", "u").replace("μ", "u").strip().lower()
    return _MM.get(re.sub(r"^(millimeter|millimetre)s?$", "mm", re.sub(r"^(micrometer|micrometre)s?$", "um", name)))


def _positive(text: str | None) -> float:
    """A length that can be one, else 0."""
    try:
        value = float(text or 0)
    except ValueError:
        return 0.0
    return value if 0 < value < math.inf else 0.0


def _ome_spacing(text: str) -> tuple[float | None, float, float] | None:
    try:
        pixels = next((e for e in ElementTree.fromstring(text).iter() if e.tag.endswith("Pixels")), None)
    except ElementTree.ParseError:
        return None
    sizes: list[float | None] = []
    for axis in "ZYX":
        size = pixels.get(f"PhysicalSize{axis}") if pixels is not None else None
        unit = _millimetres(pixels.get(f"PhysicalSize{axis}Unit", "um")) if pixels is not None else None
        sizes.append(_positive(size) * unit if _positive(size) and unit else None)
    z, y, x = sizes
    return (z, y, x) if y and x else None


def write_tiff(path: Path, labels: NDArray[Any], like: Volume) -> None:
    """Write (*S) or (K, *S) as an ImageJ TIFF with the spacing (or the resolution tags) of `like`."""
    dims = like.spatial_dims
    if labels.ndim > dims:  # ImageJ's order is depth, channels, rows, columns
        labels = np.moveaxis(labels, 0, -3)
    axes = ("Z" if dims == 3 else "") + ("C" if labels.ndim > dims else "") + "YX"
    about: dict[str, Any] = {"axes": axes}
    options: dict[str, Any] = {}
    if like.unit == "mm":
        about |= {"unit": "um"} | ({"spacing": like.spacing[0] * 1e3} if dims == 3 else {})
        options["resolution"] = (1e-3 / like.spacing[-1], 1e-3 / like.spacing[-2])
    elif like.meta.get("resolution"):
        x, y, code = like.meta["resolution"]
        options |= {"resolution": (x, y), "resolutionunit": code}
    tifffile.imwrite(path, labels, imagej=True, metadata=about, **options)
