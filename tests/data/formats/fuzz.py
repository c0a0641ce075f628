"""Files of every format, damaged at random from a seed, and decoders that share no reading code with ulna."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tifffile
from PIL import Image

SimpleITK = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed")

Decoder = Callable[[Path], np.ndarray]


def _noise(*shape, high=255, dtype=np.uint8):
    """Smooth enough to be packed, rough enough that every value counts."""
    rng = np.random.default_rng(len(shape) + shape[0])
    return (rng.integers(0, high, shape) // 3 * 3).astype(dtype)


def _picture(mode, kind, **options):
    array = _noise(23, 31, 3) if mode in ("RGB", "P") else _noise(23, 31)
    if mode == "I;16":
        array = _noise(23, 31, high=60000, dtype=np.uint16)
    picture = Image.fromarray(array)
    picture = picture.quantize(32) if mode == "P" else picture
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def _tiff(array, **options):
    stream = io.BytesIO()
    tifffile.imwrite(stream, array, **options)
    return stream.getvalue()


def _nifti(array, slope=None):
    image = nib.Nifti1Image(array, np.diag([2.0, 3, 4, 1]))
    if slope:
        image.header.set_slope_inter(slope, 1)
    return image.to_bytes()


def _saved(save):
    stream = io.BytesIO()
    save(stream)
    return stream.getvalue()


def _itk(suffix, packed, folder):
    image = SimpleITK.GetImageFromArray(_noise(5, 7, 9, high=3000, dtype=np.int16))
    image.SetSpacing((2, 3, 4))
    path = folder / f"seed{suffix}"
    SimpleITK.WriteImage(image, str(path), packed)
    return path.read_bytes()


def seeds(folder: Path) -> dict[str, bytes]:
    """A sound file of every kind: name with its suffix -> its bytes."""
    volume = _noise(9, 7, 5, high=3000, dtype=np.int16)
    arrays = {"images": _noise(3, 11, 9), "masks": _noise(3, 11, 9) > 90}
    return {
        "grey.png": _picture("L", "PNG"),
        "colour.png": _picture("RGB", "PNG"),
        "palette.png": _picture("P", "PNG"),
        "deep.png": _picture("I;16", "PNG"),
        "colour.jpg": _picture("RGB", "JPEG", subsampling=0),
        "grey.jpg": _picture("L", "JPEG"),
        "colour.bmp": _picture("RGB", "BMP"),
        "palette.bmp": _picture("P", "BMP"),
        "grey.tif": _tiff(_noise(23, 31)),
        "colour.tif": _tiff(_noise(23, 31, 3), photometric="rgb", compression="zlib"),
        "stack.tif": _tiff(_noise(4, 23, 31), photometric="minisblack"),
        "lzw.tif": _picture("L", "TIFF", compression="tiff_lzw"),
        "plain.nii": _nifti(volume),
        "scaled.nii": _nifti(volume, slope=0.5),
        "packed.nii.gz": gzip.compress(_nifti(volume)),
        "array.npy": _saved(lambda stream: np.save(stream, volume)),
        "stored.npz": _saved(lambda stream: np.savez(stream, **arrays)),
        "packed.npz": _saved(lambda stream: np.savez_compressed(stream, **arrays)),
        **{f"{kind}{s}": _itk(s, kind == "packed", folder) for s in (".mha", ".nrrd") for kind in ("raw", "packed")},
    }


def damaged(name: str, data: bytes, seed: int) -> bytes:
    """One change of a file; the changed inside of a packed file is packed anew, with a right checksum."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    if name.endswith(".nii.gz") and rng.random() < 0.5:
        return gzip.compress(_changed(gzip.decompress(data), rng))
    if name.endswith(".png") and rng.random() < 0.6:
        return _png_changed(data, rng)
    if name.endswith(".npz") and rng.random() < 0.5:
        return _npz_changed(data, rng)
    return _changed(data, rng)


def _changed(data: bytes, rng: np.random.Generator) -> bytes:
    what, head = bytearray(data), min(len(data), 400)
    kind = rng.integers(7)
    at = int(rng.integers(len(what)))
    if kind == 0:
        return data[:at]
    if kind == 1:
        what[at] ^= 1 << int(rng.integers(8))
    elif kind == 2:
        for place in rng.integers(len(what), size=int(rng.integers(1, 30))):
            what[place] = int(rng.integers(256))
    elif kind == 3:
        what[at:at] = rng.bytes(int(rng.integers(1, 40)))
    elif kind == 4:
        del what[at : at + int(rng.integers(1, 40))]
    elif kind == 5:
        what[int(rng.integers(head))] = int(rng.choice([0, 1, 2, 127, 128, 255, 48, 57, 45, 10]))
    else:
        place = int(rng.integers(max(head - 4, 1)))
        number = int(rng.choice([0, -1, 1, 2**15 - 1, 2**31 - 1, -(2**31), 65536, 0x7F800000, 0x7FC00000]))
        what[place : place + 4] = struct.pack(rng.choice(["<i", ">i"]), number)
    return bytes(what)


def _png_changed(data: bytes, rng: np.random.Generator) -> bytes:
    """A part with other content and a right checksum."""
    parts = list(_png_parts(data))
    number = int(rng.integers(len(parts)))
    name, body = parts[number]
    if name == b"IDAT" and rng.random() < 0.5:
        body = zlib.compress(_changed(zlib.decompress(body), rng))
    elif body:
        body = _changed(body, rng)
    parts[number] = (name, body)
    if rng.random() < 0.2:
        del parts[int(rng.integers(len(parts)))]
    return data[:8] + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in parts
    )


def _png_parts(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 8
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        yield data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        at += 12 + length


def _npz_changed(data: bytes, rng: np.random.Generator) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    name = str(rng.choice(list(members)))
    members[name] = _changed(members[name], rng)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for key, content in members.items():
            archive.writestr(key, content)
    return stream.getvalue()


def _by_itk(path: Path) -> np.ndarray:
    """(C, *S) in the file's order of rows and columns, or of x, y, z."""
    image = SimpleITK.ReadImage(str(path))
    array = SimpleITK.GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() > 1:
        array = np.moveaxis(array, -1, 0)
    else:
        array = array[None]
    if path.suffix in (".mha", ".nrrd"):
        array = array.transpose(0, *reversed(range(1, array.ndim)))
    return array


def _by_nibabel(path: Path) -> np.ndarray:
    return np.asanyarray(nib.load(path).dataobj)


def _by_numpy(path: Path) -> np.ndarray:
    return np.load(path, allow_pickle=False)


def _npz_row(path: Path) -> np.ndarray:
    with np.load(path, allow_pickle=False) as arrays:
        return arrays["images"][0]


def _by_pillow(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        pages = []
        for number in range(getattr(picture, "n_frames", 1)):
            picture.seek(number)
            pages.append(np.array(picture))
    return np.stack(pages)


def decoder(name: str) -> Decoder:
    """A reader of the same format by other code: SimpleITK for pictures, .mha and .nrrd; nibabel; numpy; Pillow for TIFF."""
    if ".nii" in name:
        return _by_nibabel
    if name.endswith(".npz"):
        return _npz_row
    if name.endswith(".npy"):
        return _by_numpy
    return _by_pillow if name.endswith(".tif") else _by_itk


def comparable(name: str, sound: bytes, data: bytes) -> bool:
    """Whether a damaged file has one right reading. JPEG has no checksum, and what its decoders make of impossible
    coefficients is their own affair: two are compared only where the tables and the coefficients are whole."""
    return not name.endswith(".jpg") or sound[sound.index(b"\xff\xdb") :] in data


def same_values(own: np.ndarray, other: np.ndarray) -> bool:
    """Whether two decoders give the same values, whatever they do with axes of length 1, channels and opacity."""
    return any(
        own.shape == one.shape and np.array_equal(own, one.astype(own.dtype), equal_nan=own.dtype.kind == "f")
        for one in _layouts(own, other)
    )


def _layouts(own: np.ndarray, other: np.ndarray) -> Iterator[np.ndarray]:
    inverted = (
        255 - other if other.dtype == np.uint8 else other
    )  # Pillow draws "white is zero", ulna keeps what is stored
    for one in (other, np.moveaxis(other, -1, 0), np.squeeze(other), inverted):
        yield one
        if one.ndim == own.ndim and one.shape[0] > own.shape[0]:
            yield one[: own.shape[0]]  # opacity
        if one.size == own.size:
            yield one.reshape(own.shape)
    if other.ndim == 4 and other.shape[0] == 1:
        yield np.moveaxis(other[0], -1, 0)


def json_values(rng: np.random.Generator, depth: int = 0):
    """Any value of JSON, of the words that data sets use and others."""
    words = ["train", "val", "test", "labels", "training", "image", "label", "c0", "c1.png", "images/c0.png", "mode",
             "labels/c0.png", "../x", "/etc/hosts", "", "0", "1", "255", "-1", "background", "multilabel", "a\0b",
             "\ud83d\ude00", "channel_names", "modality", "dataset", "numTraining", "file_ending", "id", "1e999"]  # fmt: skip
    kind = rng.integers(8 if depth < 3 else 6)
    if kind < 3:
        return str(rng.choice(words))
    if kind == 3:
        return [0, 1, 2, 255, -1, 10**30, True, None, 0.5, 1e308][int(rng.integers(10))]
    if kind in (4, 5):
        return None if kind == 4 else int(rng.integers(-3, 4))
    if kind == 6:
        return [json_values(rng, depth + 1) for _ in range(int(rng.integers(4)))]
    return {str(rng.choice(words)): json_values(rng, depth + 1) for _ in range(int(rng.integers(5)))}


def json_files(rng: np.random.Generator) -> dict[str, object]:
    """Nonsense for the files that stand beside the images."""
    about = {
        "training": [{"image": "images/c0.png", "label": "labels/c0.png"}],
        "labels": {"0": "background", "1": "a"},
        "channel_names": {"0": "grey"},
        "numTraining": 1,
        "test": ["images/c1.png"],
    }
    sound = {
        "dataset": about,
        "splits": {"train": ["c0"], "val": ["c1"]},
        "groups": {"c0": "p", "c1": "q"},
        "classes": {"labels": {"1": "a"}},
    }
    chosen = {}
    for name, value in sound.items():
        if rng.random() < 0.6:
            chosen[name] = _replaced(value, rng)
    return chosen


def _replaced(value: object, rng: np.random.Generator) -> object:
    """The value with one part of it exchanged."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = str(rng.choice(list(value)))
        return {**value, key: _replaced(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.7:
        return [_replaced(value[0], rng), *value[1:]]
    return json_values(rng)
