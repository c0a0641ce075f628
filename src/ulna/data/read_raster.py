"""PNG, JPEG and BMP through Pillow: every byte is checked, nothing is converted without a note.

Pillow's own guard against huge pictures is meant for web servers and far too low for whole slides, and it is a setting
of the whole process. So the file's plug-in is called directly, and the limit below is ours.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from ulna.data.limits import MOST_PIXELS, check_memory
from ulna.data.raster_bytes import PNG_MAGIC, check_whole
from ulna.data.source import AGAIN, fault, file_stat
from ulna.errors import DataError
from ulna.volume import Volume

_ORIENTATION = 0x0112  # of EXIF
_PLUG_IN: dict[str, Callable[[IO[bytes]], Image.Image]] = {
    "PNG": PngImageFile,
    "JPEG": JpegImageFile,
    "BMP": BmpImageFile,
}
_SUFFIX = {"PNG": (".png",), "JPEG": (".jpg", ".jpeg"), "BMP": (".bmp",)}


def read_raster(path: Path, *, as_labels: bool = False) -> Volume:
    """(C, H, W) in pixels: grey C = 1, colour C = 3. A palette is expanded for images; labels keep its indices.

    Raises:
        DataError: if the file is empty, cut short, damaged, too large, or no PNG, JPEG or BMP.
    """
    file_stat(path)
    data = path.read_bytes()
    kind = _kind(path, data)
    notes = [] if path.suffix.lower() in _SUFFIX[kind] else [f"is a {kind} file under another name"]
    if as_labels and kind == "JPEG":
        raise fault(path, "is a JPEG, which does not keep label values", "save label maps as PNG")
    check_whole(path, data, kind)
    try:
        picture = _PLUG_IN[kind](io.BytesIO(data))
        width, height = picture.size
        if width * height > MOST_PIXELS:
            raise fault(path, f"declares {width} x {height} pixels, more than {MOST_PIXELS}", "cut it into tiles")
        check_memory(path, width * height * len(picture.getbands()))
        raw_mode = str(picture.tile[0].args) if picture.tile else ""  # type: ignore[attr-defined]
        picture.load()
    except DataError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, zlib.error, MemoryError) as error:
        said = str(error) or type(error).__name__
        what = "is cut short" if "truncated" in said.lower() else "is damaged"
        raise fault(path, f"{what} ({said})", AGAIN) from None
    depth, kind_of_png = (data[24], data[25]) if kind == "PNG" else (8, 0)
    if as_labels and depth == 16 and kind_of_png != 0:
        what = "has 16 bits per colour, of which only 8 can be read"
        raise fault(path, what, "save the label map as grey PNG of 8 or 16 bits")
    array = plain_values(picture, as_labels, notes)
    if as_labels and kind_of_png == 0 and depth in (2, 4):
        array = array // (255 // (2**depth - 1))  # Pillow stretches grey to 0..255
    if _orientation(picture) not in (0, 1):
        notes.append(f"EXIF orientation {_orientation(picture)} is not applied; masks lie on the stored pixels")
    if picture.mode in ("RGB", "RGBA", "LA") and "16" in raw_mode:
        notes.append("has 16 bits per colour, of which the upper 8 are read")
    meta = {"format": "raster", "suffix": path.suffix.lower(), "notes": tuple(notes)}
    return Volume(array, (1.0, 1.0), "px", None, path, meta)


def _kind(path: Path, data: bytes) -> str:
    for magic, kind in ((PNG_MAGIC, "PNG"), (b"\xff\xd8", "JPEG"), (b"BM", "BMP")):
        if data.startswith(magic[: len(data)]):
            if len(data) <= len(magic):
                raise fault(path, f"is cut short: it holds {len(data)} bytes", AGAIN)
            return kind
    raise fault(path, "is not a PNG, JPEG or BMP file", "give the file its right extension, or save it as PNG")


def _orientation(picture: Image.Image) -> int:
    try:
        return int(picture.getexif().get(_ORIENTATION, 1))
    except Exception:  # Pillow raises many types on damaged EXIF, which says nothing about the pixels
        return 1


def plain_values(picture: Image.Image, as_labels: bool, notes: list[str]) -> NDArray[Any]:
    """(C, H, W) of a loaded picture; what was changed is added to `notes`."""
    mode = picture.mode
    if mode == "P" and not as_labels:
        picture = picture.convert("RGB")
        notes.append("has a palette, read as colour")
    elif mode in ("CMYK", "YCbCr", "LAB", "HSV", "RGBX"):
        picture = picture.convert("RGB")
        notes.append(f"is {mode}, read as RGB")
    array = np.asarray(picture)
    if array.dtype == bool:
        array = array.astype(np.uint8)
    elif mode == "I" and array.min() >= 0 and array.max() <= 65535:  # older Pillow gives 16-bit grey as int32
        array = array.astype(np.uint16)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if mode in ("LA", "PA", "La", "RGBA", "RGBa"):
        array = array[..., :-1]
        notes.append("has an alpha channel, dropped")
    array = array[..., None] if array.ndim == 2 else array
    return np.ascontiguousarray(np.moveaxis(array, -1, 0))


def write_png(path: Path, labels: NDArray[Any]) -> None:
    """Write a label map (H, W) of 8 or 16 bits."""
    Image.fromarray(np.ascontiguousarray(labels)).save(path, format="PNG")
