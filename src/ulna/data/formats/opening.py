"""Images opened rather than read: what their files say at once, and their values box by box, bit for bit as `read_image`.

Uncompressed NIfTI, `.npy`, TIFF (tiles, strips, BigTIFF, the full resolution of a pyramid) and OME-Zarr are read where they
lie. Compressed NIfTI, and OME-Zarr of large chunks, are unpacked once, into a nameless file on disk. All others are read
whole, and then kept on disk.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ulna.data.formats.bricks import Bricks, refuse_full
from ulna.data.formats.nifti import Layout, cut_short, layout_of, read_up_to, rest_of, unpacked
from ulna.data.formats.npy import open_npy
from ulna.data.formats.raw_boxes import Boxes, RawFile, Reordered
from ulna.data.formats.read import check_grids, merged_meta, read_image
from ulna.data.formats.source import (
    NIFTI_SUFFIXES,
    NUMPY_SUFFIX,
    TIFF_SUFFIXES,
    Source,
    data_error,
    file_stat,
    is_zarr,
    suffix_of,
)
from ulna.data.formats.tiff_boxes import open_tiff
from ulna.data.formats.zarr_boxes import LARGEST, ZarrBoxes, open_zarr
from ulna.data.volume import Volume

_CHUNK = 1 << 20


class OpenImage(NamedTuple):
    """An image whose values are read box by box.

    Args:
        volume: its geometry and what its file says; its array has the shape and the type, takes no memory and holds nothing
            but zeros. `meta.too_large`, which is known where all is read, is None.
        parts: the values of its channels, one file after the other.
        axis: of *S, along which slabs lie together in the file.
    """

    volume: Volume
    parts: tuple[Boxes, ...]
    axis: int

    def read(self, box: Sequence[slice]) -> NDArray[Any]:
        """(C, *box), every slice with a start and a stop.

        Raises:
            DataError: if the values there are damaged.
        """
        values = [part.read(box) for part in self.parts]
        return values[0] if len(values) == 1 else np.concatenate(values)

    def close(self) -> None:
        """Close its files."""
        for part in self.parts:
            part.close()

    def __enter__(self) -> OpenImage:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_image(sources: Sequence[Source], spatial_dims: int | None = None, scratch: Path | None = None) -> OpenImage:
    """One case, its channels as `read_image` joins them.

    Args:
        sources: one file, or one for each channel.
        spatial_dims: as for `read_image`.
        scratch: the folder for what is unpacked; by default the system's own for such files.

    Raises:
        DataError: as `read_image`; what is damaged beyond the header is told where it is read.
    """
    opened: list[OpenImage] = []
    try:
        for source in sources:
            opened += [_open(source, spatial_dims, scratch)]  # one by one, so that those before are closed
        volumes = [one.volume for one in opened]
        check_grids(sources, volumes)
    except BaseException:
        for one in opened:
            one.close()
        raise
    if len(opened) == 1:
        return opened[0]
    kinds = np.result_type(*(volume.array.dtype for volume in volumes))
    array = hollow((sum(volume.channels for volume in volumes), *volumes[0].size), kinds)
    volume = replace(volumes[0], array=array, meta=merged_meta(sources, volumes))
    return OpenImage(volume, tuple(part for one in opened for part in one.parts), opened[0].axis)


class Peeked(NamedTuple):
    """What the header of an image says.

    Args:
        volume: as `OpenImage` has it.
        by_slabs: its values are read box by box; else they are read whole.
    """

    volume: Volume
    by_slabs: bool


def peek_image(sources: Sequence[Source], spatial_dims: int | None = None) -> Peeked:
    """What `open_image` would say of an image, without unpacking it; what is read whole in any case is read, and given back.

    Raises:
        DataError: as `open_image`.
    """
    with ExitStack() as held:
        found = [held.enter_context(_open(source, spatial_dims, None, peek=True)) for source in sources]
    volumes = [one.volume for one in found]
    check_grids(sources, volumes)
    kinds = np.result_type(*(volume.array.dtype for volume in volumes))
    array = hollow((sum(volume.channels for volume in volumes), *volumes[0].size), kinds)
    return Peeked(replace(volumes[0], array=array), all(one.axis >= 0 for one in found))


def hollow(shape: Sequence[int], dtype: Any) -> NDArray[Any]:
    """An array of zeros that takes no memory, whatever its shape."""
    return np.broadcast_to(np.zeros((), dtype), tuple(shape))


def read_whole(image: OpenImage) -> Volume:
    """All of it in memory."""
    array = image.read([slice(0, n) for n in image.volume.size])
    return image.volume.with_array(np.ascontiguousarray(array))


def _open(source: Source, spatial_dims: int | None, scratch: Path | None, *, peek: bool = False) -> OpenImage:
    """`peek`: nothing is unpacked, so that nothing can be read either; of what is read whole, the axis is -1 then."""
    path = source.path
    if source.series is None and source.row is None:
        suffix = suffix_of(path)
        try:
            if is_zarr(path):
                volume, boxes = open_zarr(path, spatial_dims)
                small = peek or boxes.chunk_bytes <= LARGEST
                parts = boxes if small else _unpacked_chunks(path, volume, boxes, scratch)
                return OpenImage(volume, (parts,), volume.spatial_dims - 1 if volume.affine is not None else 0)
            if suffix in NIFTI_SUFFIXES:
                return _open_nifti(path, spatial_dims, scratch, peek=peek)
            if suffix == NUMPY_SUFFIX:
                volume, raw = open_npy(path, spatial_dims)
                return OpenImage(volume, (raw,), 0)
            if suffix in TIFF_SUFFIXES and (found := open_tiff(path)) is not None:
                return OpenImage(found[0], (found[1],), 0)
        except OSError as error:
            refuse_full(error, scratch)
            what = f"cannot be read ({error.strerror or error})"
            raise data_error(path, what, "check the file and its permissions") from None
    volume = read_image([source], spatial_dims)
    if peek:
        return OpenImage(volume.with_array(hollow(volume.array.shape, volume.array.dtype)), (), -1)
    kept = Bricks(volume.array.shape, volume.array.dtype, scratch)
    try:
        kept.write([slice(0, n) for n in volume.size], volume.array)
    except BaseException:
        kept.close()
        raise
    return OpenImage(volume.with_array(hollow(volume.array.shape, volume.array.dtype)), (kept,), 0)


def _unpacked_chunks(path: Path, volume: Volume, boxes: ZarrBoxes, scratch: Path | None) -> Bricks:
    """The values of large chunks on disk: each is decoded once, not for every box that touches it."""
    boxes.check_pieces()
    kept = Bricks(volume.array.shape, volume.array.dtype, scratch)
    try:
        for box in boxes.pieces():
            kept.write(box, boxes.read(box))
    except BaseException:
        kept.close()
        raise
    return kept


def _open_nifti(path: Path, spatial_dims: int | None, scratch: Path | None, *, peek: bool = False) -> OpenImage:
    with unpacked(path) as stream:
        layout = layout_of(path, stream, spatial_dims, whole=False)
        if peek:
            array = hollow((layout.channels, *layout.spatial), layout.kept)
            return OpenImage(layout.volume(path, array, 0, None), (), 0)
        if suffix_of(path) == ".nii.gz":
            file, spare, begin = *_unpack(path, stream, layout, scratch), 0
        else:
            file, begin = path.open("rb"), layout.offset
            spare = file_stat(path).st_size - begin - layout.expected
    shape = layout.shape
    raw = RawFile(file, begin, layout.dtype, shape, layout.scaled)
    axes = [axis for axis in range(3) if axis != layout.flat]
    order = [axis if axis < len(shape) else None for axis in axes]
    channels = max((axis for axis in range(3, len(shape)) if shape[axis] > 1), default=None)
    volume = layout.volume(path, hollow((layout.channels, *layout.spatial), layout.kept), spare, None)
    return OpenImage(volume, (Reordered(raw, [channels, *order]),), len(axes) - 1)


def _unpack(path: Path, stream: IO[bytes], layout: Layout, scratch: Path | None) -> tuple[IO[bytes], int]:
    """A nameless file of the values alone, and how many bytes follow them in the stream."""
    file: IO[bytes] = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115 - closed with the image
    try:
        done = 0
        while done < layout.expected and (data := read_up_to(stream, min(_CHUNK, layout.expected - done))):
            file.write(data)
            done += len(data)
        if done < layout.expected:
            promised, held = layout.offset + layout.expected, layout.offset + done
            raise cut_short(path, f"the header promises {promised} bytes, the file holds {held}")
        file.flush()
        return file, rest_of(stream)
    except BaseException:
        file.close()
        raise
