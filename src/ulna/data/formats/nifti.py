"""NIfTI-1 and NIfTI-2, plain or gzip-compressed, read to the last byte and written with the geometry of the input.

The axes are exactly nibabel's. The fourth axis (or the fifth, where the fourth is 1) holds the channels.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from numpy.typing import NDArray

from ulna.data.formats.limits import check_memory, check_pixels, check_promise
from ulna.data.formats.slabs import Float32, fill, native
from ulna.data.formats.source import AGAIN, data_error, file_stat, first_line, suffix_of
from ulna.data.formats.units import millimetres_in
from ulna.data.volume import Meta, Volume

_CHUNK = 1 << 20
_PADDING = 1024
_MOST_SPARE = 1 << 26
_SAME_PLACE = 0.5  # of a voxel


class NiftiStored(NamedTuple):
    """What a map needs to be written as its image is stored.

    Args:
        header: nibabel's, of NIfTI-1 or NIfTI-2.
        size: voxels along up to three axes, also where one of them is 1 and the volume is 2D.
    """

    header: Any
    size: tuple[int, ...]


def read_nifti(path: Path, spatial_dims: int | None = None) -> Volume:
    """(C, *S) with the file's affine; integers keep their type, other values and scaled ones are float32.

    A volume of one slice, along whichever axis, is read as `spatial_dims` says; left out, as 2D: of (x, 1, z) *S is (x, z),
    and the first two columns of the affine are these axes.

    Raises:
        DataError: if the file is empty, cut short, damaged, or its header cannot be right.
    """
    with unpacked(path) as stream:
        layout = layout_of(path, stream, spatial_dims)
        expected, offset = layout.expected, layout.offset
        array = np.empty((layout.channels, *layout.spatial), layout.kept)
        check_memory(path, array.nbytes)
        held = fill(np.moveaxis(array, 0, -1), lambda count: read_up_to(stream, count), layout.dtype, layout.scaled)
        if held < expected:
            raise cut_short(path, f"the header promises {offset + expected} bytes, the file holds {offset + held}")
        spare = rest_of(stream)
    large = layout.scaled.too_large if layout.scaled is not None else None
    return layout.volume(path, array, spare, large)


class Layout(NamedTuple):
    """Where the values of a file lie and what they are.

    Args:
        header: nibabel's.
        length: of the header, in bytes.
        shape: of the file.
        dtype: of its values.
        spatial: *S.
        channels: C.
        flat: the axis that a 2D image is flat along; None in 3D.
        offset: of the first value.
        scaled: from stored values to values; None for integers that are not scaled.
    """

    header: Any
    length: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    spatial: tuple[int, ...]
    channels: int
    flat: int | None
    offset: int
    scaled: Float32 | None

    @property
    def expected(self) -> int:
        """Bytes of all values."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def kept(self) -> np.dtype[Any]:
        """The type of the values as they are read."""
        return native(self.dtype) if self.scaled is None else np.dtype(np.float32)

    def volume(self, path: Path, array: NDArray[Any], spare: int, too_large: tuple[int, float] | None) -> Volume:
        """A volume of values, (C, *S), with what the file says of them; `spare` bytes follow them in the file."""
        header, shape = self.header, self.shape
        affine, spacing = _geometry(path, header, self.spatial, self.flat)
        faults = [*_spare(spare, self.expected // shape[-1]), *contradiction(header, shape)]
        notes = (
            *_disagreement(header, spacing, self.flat),
            *_odd_fields(header, shape),
            *_assumed(header, self.length),
        )
        meta = Meta(
            format="nifti",
            suffix=suffix_of(path),
            notes=notes,
            faults=tuple(faults),
            too_large=too_large,
            either=1 in (*shape, 1)[:3],
            oriented=int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0,  # else nibabel assumes LAS
            stored=NiftiStored(header, shape[:3]),
        )
        return Volume(array, spacing, "mm", affine, path, meta)


def layout_of(path: Path, stream: IO[bytes], spatial_dims: int | None, *, whole: bool = True) -> Layout:
    """Read a header, and what is before the first value.

    Args:
        path: the file.
        stream: of its bytes, unpacked.
        spatial_dims: as for `read_nifti`.
        whole: whether all values will be in memory at once.

    Raises:
        DataError: as `read_nifti`.
    """
    size = file_stat(path).st_size
    header, start = _header(path, stream)
    shape = tuple(int(n) for n in header.get_data_shape())
    dtype = header.get_data_dtype()
    spatial, channels, flat = _axes(path, shape, spatial_dims)
    if dtype.kind not in "iuf":
        raise data_error(path, f"holds values of type {dtype}", "save it with integer or real values")
    begin = float(header["vox_offset"])
    if not math.isfinite(begin):
        raise data_error(path, f"has a header that is damaged (its data begin at byte {begin})", AGAIN)
    offset = max(int(begin), len(start) + 4)  # four bytes say whether extensions follow
    layout = Layout(header, len(start), shape, dtype, spatial, channels, flat, offset, _scaling(header, dtype))
    promised = offset + layout.expected
    check_pixels(path, shape)
    cut = f"is cut short: the header promises {shape} voxels in {promised} bytes, the file has {size} bytes"
    check_promise(path, cut, promised, size, packed=suffix_of(path) == ".nii.gz", whole=whole)
    read_up_to(stream, offset - len(start))
    return layout


@contextmanager
def unpacked(path: Path) -> Iterator[IO[bytes]]:
    with path.open("rb") as file:
        if suffix_of(path) != ".nii.gz":
            yield file
            return
        magic = file.read(2)
        file.seek(0)
        if magic != b"\x1f\x8b":
            raise data_error(
                path, "is not gzip-compressed, though its name ends in .gz", "rename it, or compress it with gzip"
            )
        try:
            with gzip.GzipFile(fileobj=file) as unpacked:
                yield unpacked  # type: ignore[misc]
        except EOFError:
            raise cut_short(path, "the compressed data end too early") from None
        except (gzip.BadGzipFile, zlib.error) as error:
            raise data_error(path, f"is damaged ({first_line(error)})", AGAIN) from None


def cut_short(path: Path, how: str) -> Exception:
    return data_error(path, f"is cut short: {how}", AGAIN)


def _header(path: Path, stream: IO[bytes]) -> tuple[Any, bytes]:
    """The header and the bytes it was read from."""
    start = stream.read(4)
    if len(start) < 4:
        raise cut_short(path, f"it holds {len(start)} bytes, less than a header")
    lengths = {int.from_bytes(start, "little"), int.from_bytes(start, "big")}
    kind = Nifti1Header if 348 in lengths else Nifti2Header if 540 in lengths else None
    if kind is None:
        raise data_error(path, "is not a NIfTI file", "give the file its right extension, or convert it to NIfTI")
    length = 348 if kind is Nifti1Header else 540
    start += stream.read(length - 4)
    if len(start) < length:
        raise cut_short(path, f"it holds {len(start)} bytes of a header of {length}")
    try:
        header = kind(start, check=False)  # nibabel's check repairs in silence and prints; what matters is judged here
        header["pixdim"][1:4] = np.abs(header["pixdim"][1:4])  # a negative size is an old way to say "mirrored"
        header.get_data_dtype(), header.get_xyzt_units(), header.get_slope_inter()
    except Exception as error:  # nibabel raises many types here
        raise data_error(
            path, f"has a header that cannot be read ({first_line(error)})", "convert it to NIfTI again"
        ) from None
    if bytes(header["magic"].tobytes()[:2]) not in (b"n+", b"n\x00"):
        raise data_error(path, "is half of an .hdr/.img pair", "save it as one .nii.gz file")
    return header, start


def _axes(path: Path, shape: tuple[int, ...], spatial_dims: int | None) -> tuple[tuple[int, ...], int, int | None]:
    """(*S, C) of a file's shape, and the axis that a 2D image is flat along (None in 3D)."""
    remedy = "save a 2D or 3D image, with the channels along the fourth axis"
    if not 2 <= len(shape) <= 5 or min(shape) < 1 or (len(shape) == 5 and shape[3] != 1):
        raise data_error(path, f"has the shape {shape}", remedy)
    volume, channels = (*shape, 1)[:3], math.prod(shape[3:])
    flat = flat_axis(volume, spatial_dims)
    return tuple(n for axis, n in enumerate(volume) if axis != flat), channels, flat


def flat_axis(shape: tuple[int, ...], spatial_dims: int | None) -> int | None:
    """The last axis of length 1 of a volume that is read as 2D; None where it is 3D.

    Example:
        >>> flat_axis((25, 1, 23), None), flat_axis((25, 1, 23), 3), flat_axis((25, 9, 23), 2)
        (1, None, None)
    """
    single = [axis for axis, n in enumerate(shape) if n == 1]
    return single[-1] if single and spatial_dims != 3 else None


def read_up_to(stream: IO[bytes], count: int) -> bytearray:
    data = bytearray()
    while len(data) < count:
        chunk = stream.read(min(_CHUNK, count - len(data)))
        if not chunk:
            break
        data += chunk
    return data


def rest_of(stream: IO[bytes]) -> int:
    """Bytes up to the end, where gzip keeps its checksum; a stream that will not end is left."""
    spare = 0
    while spare <= _MOST_SPARE and (chunk := stream.read(_CHUNK)):
        spare += len(chunk)
    return spare


def _spare(spare: int, of_a_slice: int) -> list[tuple[str, str]]:
    """A little padding is common; room for another slice means that header and values do not belong together."""
    if spare < max(of_a_slice, _PADDING):
        return []
    how_many = f"more than {_MOST_SPARE}" if spare > _MOST_SPARE else str(spare)
    return [(f"holds {how_many} bytes after the voxels that its header declares", "write the file anew")]


def contradiction(header: Any, shape: tuple[int, ...]) -> list[tuple[str, str]]:
    """sform and qform that put a voxel in two places of one and the same space."""
    moved = _disagreeing_forms(header, shape)
    if moved is None or int(header["sform_code"]) != int(header["qform_code"]):
        return []
    what = f"its sform and qform disagree by up to {moved:.3g} voxels, and claim the same space; the sform is used"
    return [(what, "find out which is right, and write the geometry anew")]


def _disagreeing_forms(header: Any, shape: tuple[int, ...]) -> float | None:
    """How many voxels sform and qform lie apart at a corner; None where they agree or only one is given."""
    if int(header["sform_code"]) <= 0 or int(header["qform_code"]) <= 0:
        return None
    try:
        one, other = (np.asarray(form, dtype=np.float64) for form in (header.get_sform(), header.get_qform()))
    except Exception:  # nibabel raises many types here; the sform is what is used
        return math.inf
    size = [n - 1 for n in (*shape[:3], 1, 1)[:3]]
    corners = np.array([(*corner, 1) for corner in np.ndindex(2, 2, 2)], dtype=float) * (*size, 1)
    apart = np.linalg.norm((corners @ (one - other).T)[:, :3], axis=1).max()
    moved = float(apart / max(np.linalg.norm(one[:3, :3], axis=0).max(), 1e-12))
    return moved if not moved <= _SAME_PLACE else None


def _odd_fields(header: Any, shape: tuple[int, ...]) -> tuple[str, ...]:
    """What other programs may read in another way."""
    notes = []
    if _disagreeing_forms(header, shape) is not None and not contradiction(header, shape):
        notes.append("sform and qform name two different spaces; the sform is used")
    slope = float(header["scl_slope"])
    if not slope or math.isnan(slope):
        notes.append(f"its scaling slope is {slope:g}, which is read as no scaling")
    if len(shape) > 3 and shape[3] > 1 and header.get_xyzt_units()[1] != "unknown":
        notes.append(f"has {shape[3]} volumes along time, read as channels; where they are none, save one a file")
    return tuple(notes)


def _assumed(header: Any, length: int) -> tuple[str, ...]:
    """What the header leaves open, or states in a way that few programs do."""
    notes = []
    if int(header["sform_code"]) <= 0 and int(header["qform_code"]) <= 0:
        notes.append(
            "states no orientation (sform and qform code 0); axes to the left, front and head (LAS) are assumed"
        )
    unit = header.get_xyzt_units()[0]
    if unit == "unknown":
        notes.append("states no unit of length; mm is assumed")
    elif unit != "mm":
        notes.append(f"states lengths in {'metres' if unit == 'meter' else 'micrometres'}; they are converted to mm")
    begin = float(header["vox_offset"])
    if begin != int(begin) or begin < length + 4:
        notes.append(f"says that its data begin at byte {begin:g}, inside the header; byte {length + 4} is used")
    return tuple(notes)


def _scaling(header: Any, dtype: np.dtype[Any]) -> Float32 | None:
    """From stored values to values; None for integers that are not scaled."""
    slope, intercept = header.get_slope_inter()
    if slope is None or (slope == 1 and not intercept):
        return None if dtype.kind in "iu" else Float32()
    return Float32(slope, intercept or 0.0)


def _geometry(
    path: Path, header: Any, spatial: tuple[int, ...], flat: int | None
) -> tuple[NDArray[np.float64], tuple[float, ...]]:
    """Affine and spacing; the axis that a 2D image is flat along comes third."""
    spatial_dims = len(spatial)
    remedy = "write the geometry anew, from the original series"
    try:
        with np.errstate(all="ignore"):
            affine = np.asarray(header.get_best_affine(), dtype=np.float64)
    except Exception as error:  # nibabel raises many types here
        raise data_error(path, f"has an orientation that cannot be read ({first_line(error)})", remedy) from None
    scale = millimetres_in(header.get_xyzt_units()[0]) or 1.0
    if not np.isfinite(affine).all():
        raise data_error(path, "has an orientation that is not finite", remedy)
    affine[:3] *= scale
    if flat is not None:
        affine = affine[:, [*(axis for axis in range(3) if axis != flat), flat, 3]]
    norms = np.linalg.norm(affine[:3, :spatial_dims], axis=0)
    spacing = tuple(float(f"{norm:.7g}") for norm in norms)  # the header holds seven digits
    if min(spacing) <= 0:
        raise data_error(path, f"has a voxel size of {spacing}", remedy)
    lengths = np.linalg.svd(affine[:3, :spatial_dims], compute_uv=False)  # 2D files may leave the third axis empty
    if lengths.min() < 1e-6 * lengths.max():
        raise data_error(path, "has a singular orientation matrix", remedy)
    return affine, spacing


def _disagreement(header: Any, spacing: tuple[float, ...], flat: int | None) -> tuple[str, ...]:
    scale = millimetres_in(header.get_xyzt_units()[0]) or 1.0
    stated = [float(zoom) * scale for axis, zoom in enumerate(header.get_zooms()[:3]) if axis != flat]
    if all(abs(zoom - s) <= 0.01 * s for zoom, s in zip(stated, spacing, strict=True)):
        return ()
    stated_text, used = (" x ".join(f"{value:.4g}" for value in values) for values in (stated, spacing))
    return (f"header spacing {stated_text} differs from the affine {used}; the affine is used",)
