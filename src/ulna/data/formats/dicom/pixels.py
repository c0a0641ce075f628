"""The values of a stack of slices, read slice by slice into one array of the smallest type that holds them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ulna.data.formats.dicom.header import Header, read_dataset
from ulna.data.formats.dicom.library import pydicom
from ulna.data.formats.dicom.stack import Frame, Stack
from ulna.data.formats.limits import check_memory, check_pixels
from ulna.data.formats.source import AGAIN, data_error
from ulna.errors import DataError

_LINEAR = "CT", "PT"  # their values have a unit, which the way in which they are shown does not change


def read_values(stack: Stack) -> tuple[NDArray[Any], tuple[str, ...]]:
    """(i, j, k), and what was changed. Whole values stay integers; scaled ones are float32.

    Raises:
        DataError: naming the file, if pixels are missing, cut short, damaged, or packed in a way that nothing unpacks.
    """
    dtype = _type_of(stack)
    size = stack.size
    check_pixels(stack.frames[0].header.path, size)
    check_memory(stack.frames[0].header.path, int(np.prod(size)) * dtype.itemsize)
    places: dict[tuple[int, int], int] = {(id(f.header), f.number): n for n, f in enumerate(stack.frames)}
    rows, columns = stack.frames[0].header.rows, stack.frames[0].header.columns
    held = np.empty((len(stack.frames), rows, columns), dtype)  # a slice is one piece of memory
    for header in dict.fromkeys(frame.header for frame in stack.frames):
        for index, stored in _stored(header):
            place = places.get((id(header), index))
            if place is None:
                continue
            values = _values(stored, stack.frames[place])
            if dtype.kind != "f" and values.dtype.kind == "f":  # FloatPixelData: headers are read without pixels
                dtype = np.dtype(np.float32)
                held = held.astype(dtype)
            elif dtype.kind != "f" and _outside(values, dtype):  # more bits than the header says
                dtype = np.dtype(np.int32 if not _outside(values, np.dtype(np.int32)) else np.int64)
                held = held.astype(dtype)
            held[place] = values
    notes = []
    if any(_inverted(frame) for frame in stack.frames):
        notes.append("white is zero (MONOCHROME1): its values are inverted, so that bright is large")
    return (held if stack.straight else _on_grid(held, stack)).transpose(2, 1, 0), tuple(notes)


def _type_of(stack: Stack) -> np.dtype[Any]:
    """The type that mostly holds what the headers describe; values beyond it are seen when they are read."""
    frames = stack.frames
    if any(f.header.real or f.at.slope != 1 or not float(f.at.intercept).is_integer() for f in frames):
        return np.dtype(np.float32)
    bits = max(frame.header.bits for frame in frames)
    if bits > 16:
        return np.dtype(np.int32)
    if any(frame.header.signed or frame.at.intercept < 0 for frame in frames):
        return np.dtype(np.int16)
    return np.dtype(np.uint8 if bits <= 8 and not any(frame.at.intercept for frame in frames) else np.uint16)


def _outside(values: NDArray[Any], dtype: np.dtype[Any]) -> bool:
    return int(values.min()) < np.iinfo(dtype).min or int(values.max()) > np.iinfo(dtype).max


def _inverted(frame: Frame) -> bool:
    return frame.header.photometric == "MONOCHROME1" and frame.header.modality not in _LINEAR


def _values(stored: NDArray[Any], frame: Frame) -> NDArray[Any]:
    """(rows, columns), with slope and intercept."""
    header, at = frame.header, frame.at
    if stored.shape != (header.rows, header.columns):
        raise data_error(
            header.path, f"holds pixels of the shape {stored.shape}, not {header.rows} x {header.columns}", AGAIN
        )
    if stored.dtype.kind in "iu":
        if not header.signed and header.bits < 8 * stored.dtype.itemsize:
            stored = stored & ((1 << header.bits) - 1)  # old files keep drawings in the bits above
        stored = stored.astype(np.int64 if stored.dtype.itemsize > 2 else np.int32)
    if _inverted(frame):
        stored = (-1 if header.signed else 2**header.bits - 1) - stored
    if header.real or at.slope != 1 or not float(at.intercept).is_integer():
        return stored.astype(np.float32) * np.float32(at.slope) + np.float32(at.intercept)
    return stored + int(at.intercept)


def _stored(header: Header) -> Iterator[tuple[int, NDArray[Any]]]:
    """The frames of a file as they are stored."""
    library = pydicom()
    dataset = read_dataset(header.path, pixels=True)
    name = next((key for key in ("PixelData", "FloatPixelData", "DoubleFloatPixelData") if key in dataset), None)
    if name is None:
        raise data_error(header.path, "holds no pixels", "export it again, or take the file out")
    meta = dataset.file_meta if hasattr(dataset, "file_meta") else library.dataset.FileMetaDataset()
    if "TransferSyntaxUID" not in meta:
        meta.TransferSyntaxUID = library.uid.ImplicitVRLittleEndian
        dataset.file_meta = meta
    syntax = meta.TransferSyntaxUID
    count = len(header.slices)
    with _decoding(header, syntax):
        if not syntax.is_compressed:
            need = header.rows * header.columns * count * int(dataset.get("BitsAllocated", 16)) // 8
            have = len(dataset[name].value or b"")
            if have < need:
                told = f"is cut short: its pixels need {need} bytes, it holds {have}"
                raise data_error(header.path, told, AGAIN)
        if "PixelRepresentation" not in dataset:
            dataset.PixelRepresentation = 0
        if count == 1:
            yield 0, library.pixels.pixel_array(dataset, raw=True).reshape(header.rows, header.columns)
        else:
            yield from enumerate(library.pixels.iter_pixels(dataset, raw=True))


@contextmanager
def _decoding(header: Header, syntax: Any) -> Iterator[None]:
    try:
        yield
    except (DataError, MemoryError):
        raise
    except Exception as error:
        library, name = pydicom(), getattr(syntax, "name", str(syntax))
        try:
            known = library.pixels.get_decoder(syntax).is_available
        except Exception:
            known = False
        if known:
            told = f"has pixels that cannot be unpacked ({name}, {type(error).__name__})"
            raise data_error(header.path, told, AGAIN) from None
        told = f"is packed as {name}, which nothing that is installed unpacks"
        remedy = "unpack it with dcmdjpeg (DCMTK) or gdcmconv --raw, or install python-gdcm"
        raise data_error(header.path, told, remedy) from None


def _on_grid(held: NDArray[Any], stack: Stack) -> NDArray[Any]:
    """(frames, rows, columns) -> (k, j, i): shifted in their planes, and interpolated between them."""
    from scipy.ndimage import shift

    i, j, k = stack.size
    grid = np.empty((k, j, i), held.dtype)

    def at_place(number: int) -> NDArray[np.float64]:
        frame = held[number].astype(np.float64)
        moved_i, moved_j = stack.shifts[number]
        if (j, i) == frame.shape and not moved_i and not moved_j:
            return frame
        wide = np.full((j, i), frame.min())
        wide[: frame.shape[0], : frame.shape[1]] = frame
        return np.asarray(shift(wide, (moved_j, moved_i), order=1, mode="constant", cval=float(frame.min())))

    for number, (a, b, weight) in enumerate(stack.sources):
        made = at_place(a) if weight < 1 else at_place(b)
        if 0 < weight < 1:
            made = (1 - weight) * made + weight * at_place(b)
        grid[number] = np.rint(made) if held.dtype.kind in "iu" else made
    return grid
