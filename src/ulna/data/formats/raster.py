"""PNG, JPEG and BMP through Pillow: every byte is checked, nothing is converted without a note.

Pillow's own guard against huge pictures is meant for web servers and far too low for whole slides, and it is a setting
of the whole process. So the file's plug-in is called directly, and the limit below is ours.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from ulna.data.formats.limits import MOST_PIXELS, check_memory, check_pixels
from ulna.data.formats.palettes import Colour, palette_classes
from ulna.data.formats.png_strips import exif_of, in_strips, strips
from ulna.data.formats.raster_bytes import PNG_MAGIC, check_whole
from ulna.data.formats.slabs import SLAB
from ulna.data.formats.source import AGAIN, data_error, file_stat
from ulna.data.turning import ORIENTATION, UPRIGHT, as_stored, checked_orientation, orientation_of, upright
from ulna.data.volume import Meta, Volume
from ulna.errors import DataError

_PLUG_IN: dict[str, Callable[[IO[bytes]], Image.Image]] = {
    "PNG": PngImageFile,
    "JPEG": JpegImageFile,
    "BMP": BmpImageFile,
}
_BMP_PIXELS = {1: ("1", "P;1"), 4: ("P;4",), 8: ("P", "L")}  # bits -> how Pillow may unpack them
_SUFFIX = {"PNG": (".png",), "JPEG": (".jpg", ".jpeg"), "BMP": (".bmp",)}


def read_raster(path: Path, *, as_labels: bool = False) -> Volume:
    """(C, H, W) in pixels, upright: grey C = 1, colour C = 3. A palette is expanded for images; see `palette_classes`
    for label maps.

    Raises:
        DataError: if the file is empty, cut short, damaged, too large, an animation, or no PNG, JPEG or BMP.
    """
    check_memory(path, file_stat(path).st_size)
    data = path.read_bytes()
    kind = _kind(path, data)
    notes = [] if path.suffix.lower() in _SUFFIX[kind] else [f"is a {kind} file under another name"]
    if as_labels and kind == "JPEG":
        raise data_error(path, "is a JPEG, which does not keep label values", "save label maps as PNG")
    check_whole(path, data, kind)
    try:
        picture = _PLUG_IN[kind](io.BytesIO(data))
        width, height = picture.size
        check_pixels(path, (width, height), MOST_PIXELS)
        striped = kind == "PNG" and in_strips(data, SLAB)
        bands = len(picture.getbands()) * (2 if picture.mode.startswith("I") else 1)
        whole = 0 if striped else 1 if bands == 1 else 4  # bytes that Pillow takes beside ours
        check_memory(path, width * height * (bands + whole))
        if kind == "BMP":
            _check_bmp_pixels(path, picture, int.from_bytes(data[28:30], "little"))
        raw_mode = str(picture.tile[0].args) if picture.tile else ""  # type: ignore[attr-defined]
        if striped:
            picture.info.setdefault("exif", exif_of(data))
        else:
            picture.load()
        pixels = _values(picture, strips(data) if striped else _cut(picture), as_labels, notes)
    except DataError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, zlib.error) as error:
        said = str(error) or type(error).__name__
        what = "is cut short" if "truncated" in said.lower() else "is damaged"
        raise data_error(path, f"{what} ({said})", AGAIN) from None
    depth, kind_of_png = (data[24], data[25]) if kind == "PNG" else (8, 0)
    if as_labels and depth == 16 and kind_of_png != 0:
        what = "has 16 bits per colour, of which only 8 can be read"
        raise data_error(path, what, "save the label map as grey PNG of 8 or 16 bits")
    orientation = checked_orientation(_orientation(picture), notes)
    palette: dict[int, Colour] = {}
    if as_labels and picture.mode in ("P", "PA"):
        pixels, palette = palette_classes(path, pixels[:1], _palette(picture), notes)
    if as_labels and kind_of_png == 0 and depth in (2, 4):
        pixels = pixels // (255 // (2**depth - 1))  # Pillow stretches grey to 0..255
    if picture.mode in ("RGB", "RGBA", "LA") and "16" in raw_mode:
        notes.append("has 16 bits per colour, of which the upper 8 are read")
    if "mp" in picture.info:
        notes.append("holds further pictures beside the first, as phones store them; the first is read")
    meta = Meta(
        format="raster",
        suffix=path.suffix.lower(),
        notes=tuple(notes),
        orientation=orientation,
        palette=palette,
    )
    array = np.ascontiguousarray(upright(pixels, orientation))
    return Volume(array, (1.0, 1.0), "px", None, path, meta)


def _kind(path: Path, data: bytes) -> str:
    for magic, kind in ((PNG_MAGIC, "PNG"), (b"\xff\xd8", "JPEG"), (b"BM", "BMP")):
        if data.startswith(magic[: len(data)]):
            if len(data) <= len(magic):
                raise data_error(path, f"is cut short: it holds {len(data)} bytes", AGAIN)
            return kind
    raise data_error(path, "is not a PNG, JPEG or BMP file", "give the file its right extension, or save it as PNG")


def _orientation(picture: Image.Image) -> int | None:
    try:
        return int(picture.getexif().get(ORIENTATION, UPRIGHT))
    except Exception:  # Pillow raises many types on damaged EXIF, which says nothing about the pixels
        return None


def _check_bmp_pixels(path: Path, picture: Any, bits: int) -> None:
    """Pillow unpacks a palette of greys by the number of its colours, not by the bits of a pixel."""
    tile = picture.tile[0]
    if bits not in _BMP_PIXELS or tile.codec_name != "raw" or tile.args[0] in _BMP_PIXELS[bits]:
        return
    if bits != 8:
        raise data_error(path, f"has {bits} bits a pixel and a palette of greys, which is not read", "save it as PNG")
    picture._mode = "L"
    picture.tile = [tile._replace(args=("L", *tile.args[1:]))]


def _palette(picture: Image.Image) -> list[Colour]:
    """The colour of every entry that the file has."""
    values = picture.getpalette("RGB") or []
    return [(red, green, blue) for red, green, blue in zip(*[iter(values)] * 3, strict=False)]


def _values(picture: Image.Image, parts: Iterable[Image.Image], as_labels: bool, notes: list[str]) -> NDArray[Any]:
    """(C, H, W) of a picture in parts; what was changed is added to `notes`."""
    mode, as_colour = picture.mode, False
    if mode in ("P", "PA") and not as_labels:
        notes.append("has a palette, read as colour")
        as_colour = True
    elif mode in ("CMYK", "YCbCr", "LAB", "HSV", "RGBX"):
        notes.append(f"is {mode}, read as RGB")
        as_colour = True
    array = _joined(picture.size, (part.convert("RGB") for part in parts) if as_colour else parts)
    if mode == "I" and array.min() >= 0 and array.max() <= 65535:  # older Pillow gives 16-bit grey as int32
        array = array.astype(np.uint16)
    if mode in ("LA", "PA", "La", "RGBA", "RGBa"):
        array = array if as_colour else array[:-1]
        notes.append("has an alpha channel, dropped")
    return array


def _cut(picture: Image.Image) -> Iterator[Image.Image]:
    """A loaded picture in strips: as a whole, Pillow makes two copies on the way."""
    width, height = picture.size
    rows = max(1, SLAB // (width * 4))
    for top in range(0, height, rows):
        yield picture.crop((0, top, width, min(top + rows, height)))


def _joined(size: tuple[int, int], parts: Iterable[Image.Image]) -> NDArray[Any]:
    """(C, H, W) of all bands."""
    width, height = size
    made: NDArray[Any] | None = None
    top = 0
    for picture in parts:
        part = np.asarray(picture)
        part = np.moveaxis(part[..., None] if part.ndim == 2 else part, -1, 0)
        if made is None:
            dtype = np.dtype(np.uint8) if part.dtype == bool else part.dtype.newbyteorder("=")
            made = np.empty((len(part), height, width), dtype)
        made[:, top : top + part.shape[1]] = part
        top += part.shape[1]
    return np.empty((1, height, width), np.uint8) if made is None else made


def write_png(path: Path, labels: NDArray[Any], like: Volume) -> None:
    """Write a label map (H, W) of 8 or 16 bits, stored as its image is and with the same orientation tag."""
    orientation = orientation_of(like)
    picture = Image.fromarray(np.ascontiguousarray(as_stored(labels, orientation)))
    exif = Image.Exif()
    if orientation != UPRIGHT:
        exif[ORIENTATION] = orientation
    picture.save(path, format="PNG", **({"exif": exif} if orientation != UPRIGHT else {}))
