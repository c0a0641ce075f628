"""Files to volumes and back: NIfTI by nibabel, pictures by Pillow, DICOM by pydicom, .mha, .npy and .npz by numpy."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ulna_runtime.dicom import holds_dicom, read_series
from ulna_runtime.errors import UsageError, needed
from ulna_runtime.meta_image import read_meta_image, write_meta_image
from ulna_runtime.npz import read_rows, write_rows
from ulna_runtime.seg import About, write_seg
from ulna_runtime.volume import MOST_VOXELS, Volume, label_dtype

NIFTI, PICTURES = (".nii", ".nii.gz"), (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
META, NUMPY, ARRAYS, DICOM = ".mha", ".npy", ".npz", ".dcm"
READ = (*NIFTI, *PICTURES, META, NUMPY, ARRAYS)  # and DICOM, whatever its name
MILLIMETRES = {"meter": 1000.0, "micron": 1e-3}
ORIENTATION = 274  # the tag of TIFF and EXIF
# of each value: whether rows and columns are exchanged, then rows mirrored, then columns mirrored
TURNS = {2: (0, 0, 1), 3: (0, 1, 1), 4: (0, 1, 0), 5: (1, 0, 0), 6: (1, 0, 1), 7: (1, 1, 1), 8: (1, 1, 0)}


def suffix_of(path: Path) -> str:
    """The ending of a file's name, in lower case, with the .gz of a .nii.gz."""
    name = path.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else path.suffix.lower()


def case_of(path: Path) -> str:
    """A file's name without a known ending."""
    suffix = suffix_of(path)
    return path.name[: len(path.name) - len(suffix)] if suffix in (*READ, DICOM) else path.name


def read_image(paths: Sequence[Path], dims: int) -> Volume:
    """One image; of several files, each holds a channel.

    Raises:
        UsageError: if a file cannot be read, or the files do not lie on one grid.
    """
    first, *others = [_read(path, dims) for path in paths]
    for path, other in zip(paths[1:], others, strict=True):
        same = first.affine is None or other.affine is None or np.allclose(first.affine, other.affine, atol=1e-3)
        if other.size != first.size or not same:
            raise UsageError(f"{path}: does not lie on the grid of {paths[0]}; give channels of one grid")
    return replace(first, array=np.concatenate([first.array, *(one.array for one in others)])) if others else first


def write_mask(path: Path, mask: NDArray[Any], like: Volume, about: About) -> Path:
    """Write a label map in the image's own format and geometry, whole or not at all; returns the file.

    Args:
        path: the file; its ending is replaced.
        mask: (*S), or (K, *S).
        like: the image.
        about: for a format that names its structures.

    Raises:
        UsageError: if the path is the image itself, or cannot be written.
    """
    mask = mask.astype(label_dtype(int(mask.max(initial=0))))
    single = mask.ndim == len(like.size)
    suffix = like.suffix if single or like.suffix != ".png" else ".npy"
    target = path.with_name(case_of(path) + suffix)
    if like.path is not None and target.exists() and target.samefile(like.path):
        raise UsageError(f"{target}: is the image itself; choose another name")
    writers: dict[str, Callable[[Path, NDArray[Any], Volume], None]] = {
        ".nii": _write_nifti,
        ".nii.gz": _write_nifti,
        ".png": _write_png,
        META: write_meta_image,
        ARRAYS: lambda file, one, of: write_rows(file, [one], [str(of.stored)], several=not single),
        DICOM: lambda file, one, of: write_seg(file, one, of, about),
    }
    write = writers.get(suffix, _write_npy)
    write_whole(target, lambda file: write(file, mask, like))
    return target


def write_arrays(path: Path, masks: Sequence[NDArray[Any]], likes: Sequence[Volume]) -> Path:
    """Write the masks of the images of one .npz as one, whole or not at all; returns the file.

    Raises:
        UsageError: if the path is that of the images, or cannot be written.
    """
    highest = label_dtype(max(int(mask.max(initial=0)) for mask in masks))
    target, source = path.with_name(case_of(path) + ARRAYS), likes[0].path
    if source is not None and target.exists() and target.samefile(source):
        raise UsageError(f"{target}: holds the images; choose another name")
    ids, several = [str(like.stored) for like in likes], masks[0].ndim > len(likes[0].size)
    write_whole(target, lambda file: write_rows(file, [m.astype(highest) for m in masks], ids, several=several))
    return target


def write_whole(target: Path, write: Callable[[Path], None]) -> None:
    """Write a file whole or not at all.

    Raises:
        UsageError: if it cannot be written.
    """
    temporary = target.with_name(f".tmp-{os.getpid()}-{target.name}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        temporary.replace(target)
    except OSError as error:
        raise UsageError(f"{target}: cannot be written ({error.strerror or error}); choose another folder") from None
    finally:
        temporary.unlink(missing_ok=True)


def _read(path: Path, dims: int) -> Volume:
    suffix = suffix_of(path)
    if not path.exists():
        raise UsageError(f"{path}: no such file")
    if (path.is_dir() or suffix not in READ) and holds_dicom(path):
        return read_series(path, dims)
    if suffix not in READ or not path.is_file():
        raise UsageError(
            f"{path}: is no kind of file that is read here ({', '.join(READ)}, DICOM); `ulna predict FILE` reads others"
        )
    readers = {META: read_meta_image, NUMPY: _read_npy, ARRAYS: _read_row}
    reader = _read_nifti if suffix in NIFTI else _read_picture if suffix in PICTURES else readers[suffix]
    with _readable(path):
        return reader(path, dims)


def read_arrays(path: Path, dims: int) -> dict[str, Volume]:
    """The images of an .npz by their ids.

    Raises:
        UsageError: if it cannot be read.
    """
    if not path.exists():
        raise UsageError(f"{path}: no such file")
    with _readable(path):
        return read_rows(path, dims)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """The libraries raise many types on damaged files."""
    try:
        yield
    except (UsageError, MemoryError):
        raise
    except Exception as error:
        said = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UsageError(f"{path}: cannot be read ({said}); copy it again, or export it again") from None


def _read_nifti(path: Path, dims: int) -> Volume:
    """Axes exactly as nibabel's; the fourth axis (or the fifth, where the fourth is 1) holds the channels."""
    with needed("nibabel", "nifti", str(path)):
        import nibabel
    image: Any = nibabel.load(path)
    shape = tuple(int(n) for n in image.shape)
    if not 2 <= len(shape) <= 5 or min(shape) < 1 or (len(shape) == 5 and shape[3] != 1):
        raise UsageError(
            f"{path}: has the shape {shape}; save a 2D or 3D image, with the channels along the fourth axis"
        )
    if math.prod(shape) > MOST_VOXELS:
        raise UsageError(f"{path}: its header promises {shape} voxels, more than are read; cut the image")
    header = image.header
    slope, intercept = header.get_slope_inter()
    integer = header.get_data_dtype().kind in "iu" and (slope is None or (slope == 1 and not intercept))
    array = np.asarray(image.dataobj) if integer else image.get_fdata(dtype=np.float32, caching="unchanged")
    volume = (*shape, 1)[:3]
    single = [axis for axis, n in enumerate(volume) if n == 1]
    flat = single[-1] if single and dims != 3 else None
    spatial = tuple(n for axis, n in enumerate(volume) if axis != flat)
    array = np.moveaxis(array.reshape(*spatial, math.prod(shape[3:])), -1, 0)
    scale = MILLIMETRES.get(header.get_xyzt_units()[0], 1.0)
    affine = np.asarray(image.affine, np.float64).copy()
    affine[:3] *= scale
    if flat is not None:
        affine = affine[:, [*(axis for axis in range(3) if axis != flat), flat, 3]]
    spacing = tuple(float(f"{n:.7g}") for n in np.linalg.norm(affine[:3, : len(spatial)], axis=0))
    if not np.isfinite(affine).all() or min(spacing) <= 0:
        raise UsageError(f"{path}: has an orientation that cannot be; write the geometry anew")
    return Volume(array, spacing, "mm", affine, path, suffix_of(path), (header, volume))


def _write_nifti(path: Path, mask: NDArray[Any], like: Volume) -> None:
    import nibabel

    kept: Any = like.stored
    stored, spatial = kept
    header = stored.copy()
    header.extensions.clear()  # may hold the patient's name
    header.set_slope_inter(1, 0)
    for field in ("vox_offset", "cal_min", "cal_max", "intent_code", "intent_p1", "intent_p2", "intent_p3"):
        header[field] = 0
    header["intent_name"] = header["descrip"] = b""
    header.set_data_dtype(mask.dtype)
    single = mask.ndim == len(like.size)
    array = mask.reshape(spatial) if single else np.moveaxis(mask, 0, -1).reshape((*spatial, len(mask)))
    header["pixdim"][4:] = 1.0
    header.set_data_shape(array.shape)
    kind: Any = nibabel.Nifti2Image if isinstance(header, nibabel.Nifti2Header) else nibabel.Nifti1Image
    kind(array, None, header).to_filename(path)


def _read_picture(path: Path, dims: int) -> Volume:
    """(C, H, W) in pixels, upright: grey C = 1, colour C = 3; alpha is dropped."""
    with needed("Pillow", "pictures", str(path)):
        from PIL import Image
    with Image.open(path) as picture:
        if getattr(picture, "n_frames", 1) > 1:
            raise UsageError(f"{path}: holds several pictures; save one a file")
        if picture.width * picture.height > MOST_VOXELS:
            raise UsageError(f"{path}: is larger than what is read; cut the picture")
        tag = int(picture.getexif().get(ORIENTATION, 1))
        mode = picture.mode
        if mode in ("P", "PA", "CMYK", "YCbCr", "LAB", "HSV", "RGBX"):
            pixels = np.asarray(picture.convert("RGB"))
        else:
            pixels = np.asarray(picture)
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if mode in ("LA", "RGBA", "La", "RGBa"):
        pixels = pixels[..., :-1]
    array = np.moveaxis(pixels.astype(np.uint8) if pixels.dtype == bool else pixels, -1, 0)
    exchanged, rows, columns = TURNS.get(tag, (0, 0, 0))
    array = np.swapaxes(array, -1, -2) if exchanged else array
    array = np.ascontiguousarray(array[..., :: -1 if rows else 1, :: -1 if columns else 1])
    return Volume(array, (1.0, 1.0), "px", None, path, ".png", tag if tag in TURNS else 1)


def _write_png(path: Path, mask: NDArray[Any], like: Volume) -> None:
    from PIL import Image

    exchanged, rows, columns = TURNS.get(like.stored, (0, 0, 0))  # type: ignore[call-overload]
    mask = mask[..., :: -1 if rows else 1, :: -1 if columns else 1]
    exif = Image.Exif()
    if like.stored in TURNS:
        exif[ORIENTATION] = like.stored
    picture = Image.fromarray(np.ascontiguousarray(np.swapaxes(mask, -1, -2) if exchanged else mask))
    picture.save(path, format="PNG", **({"exif": exif} if like.stored in TURNS else {}))


def _read_row(path: Path, dims: int) -> Volume:
    rows = read_rows(path, dims)
    if len(rows) > 1:
        raise UsageError(
            f"{path}: holds {len(rows)} images; `ulna-runtime predict` takes them all, or give one as an array"
        )
    return next(iter(rows.values()))


def _read_npy(path: Path, dims: int) -> Volume:
    """(*S), (C, *S) or (*S, C) with up to four channels behind."""
    array = np.load(path, allow_pickle=False)
    if array.dtype.kind not in "iufb" or array.ndim not in (dims, dims + 1):
        raise UsageError(f"{path}: holds an array of shape {array.shape} and type {array.dtype}; save (*S) or (C, *S)")
    if array.ndim == dims:
        array = array[None]
    elif array.shape[-1] <= 4 < array.shape[0]:
        array = np.moveaxis(array, -1, 0)
    return Volume(array, (1.0,) * dims, "px", None, path, ".npy")


def _write_npy(path: Path, mask: NDArray[Any], like: Volume) -> None:
    with path.open("wb") as file:
        np.save(file, mask)
