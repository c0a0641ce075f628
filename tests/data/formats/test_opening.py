"""What is opened gives, box by box, what is read whole: to the bit on every processor, for no value is ever a sum."""

import gzip

import nibabel
import numpy as np
import pytest
import tifffile
from PIL import Image

from ulna.data.formats.bricks import Bricks
from ulna.data.formats.opening import open_image, read_whole
from ulna.data.formats.read import read_image
from ulna.data.formats.source import Source
from ulna.errors import DataError


def boxes_of(size, rng, count=6):
    """Some boxes: all of it, one voxel, and others at random."""
    yield [slice(0, n) for n in size]
    yield [slice(n - 1, n) for n in size]
    for _ in range(count):
        starts = [int(rng.integers(0, n)) for n in size]
        yield [slice(a, int(rng.integers(a + 1, n + 1))) for a, n in zip(starts, size, strict=True)]


def assert_same(paths, rng, spatial_dims=None):
    sources = [Source(path) for path in paths]
    whole = read_image(sources, spatial_dims)
    with open_image(sources, spatial_dims) as image:
        hollow = image.volume
        assert hollow.array.shape == whole.array.shape and hollow.array.dtype == whole.array.dtype
        assert (hollow.spacing, hollow.unit, hollow.path) == (whole.spacing, whole.unit, whole.path)
        assert (hollow.affine is None) == (whole.affine is None)
        if whole.affine is not None:
            np.testing.assert_array_equal(hollow.affine, whole.affine)
        ours, theirs = hollow.meta, whole.meta
        assert (ours.format, ours.suffix, ours.notes, ours.faults) == (
            theirs.format,
            theirs.suffix,
            theirs.notes,
            theirs.faults,
        )
        assert (ours.either, ours.oriented, ours.orientation) == (theirs.either, theirs.oriented, theirs.orientation)
        assert (ours.colour, ours.white) == (theirs.colour, theirs.white)
        for box in boxes_of(whole.size, rng):
            values = image.read(box)
            assert values.dtype == whole.array.dtype
            np.testing.assert_array_equal(values, whole.array[(slice(None), *box)])


def values_of(rng, shape, dtype):
    if np.dtype(dtype).kind == "f":
        return rng.normal(0, 100, shape).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(max(limits.min, -3000), min(limits.max, 3000), shape).astype(dtype)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize(
    ("shape", "spatial_dims"),
    [((7, 9, 5), None), ((7, 9, 5, 3), None), ((7, 1, 5), None), ((7, 1, 5), 3), ((7, 9), 2), ((4, 5, 6, 1, 2), None)],
)
def test_nifti(tmp_path, suffix, shape, spatial_dims):
    rng = np.random.default_rng(0)
    affine = np.array([[0, -2, 0, 5], [1.5, 0, 0.1, -3], [0, 0, 4, 9], [0, 0, 0, 1.0]])
    for dtype, slope in (("<i2", None), (">i2", None), ("u1", 0.5), ("f4", None), (">f8", None), ("i4", 2.0)):
        image = nibabel.Nifti1Image(values_of(rng, shape, dtype), affine, dtype=np.dtype(dtype))
        if dtype.startswith(">"):
            image = nibabel.Nifti1Image(
                image.dataobj, affine, nibabel.Nifti1Header(endianness=">"), dtype=np.dtype(dtype)
            )
        image.header.set_slope_inter(*((slope, 3.0) if slope else (None, None)))
        path = tmp_path / f"a{dtype.strip('<>')}{dtype[0] == '>'}{suffix}"
        image.to_filename(path)
        assert_same([path], rng, spatial_dims)


def test_channels_in_files_of_their_own(tmp_path):
    rng = np.random.default_rng(1)
    paths = [tmp_path / f"a_000{n}.nii" for n in range(2)]
    for path, dtype in zip(paths, (np.int16, np.float32), strict=True):
        nibabel.Nifti1Image(values_of(rng, (6, 5, 4), dtype), np.eye(4)).to_filename(path)
    assert_same(paths, rng)
    nibabel.Nifti1Image(np.zeros((6, 5, 3), np.int16), np.eye(4)).to_filename(paths[1])
    with pytest.raises(DataError, match="resample the channels"):
        open_image([Source(path) for path in paths])


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(
    ("shape", "spatial_dims"), [((9, 7), None), ((9, 7, 3), None), ((9, 7, 3), 3), ((5, 6, 7, 2), None)]
)
def test_npy(tmp_path, order, shape, spatial_dims):
    rng = np.random.default_rng(2)
    for dtype in ("u1", ">u2", "f8", "?"):
        values = rng.random(shape) > 0.5 if dtype == "?" else values_of(rng, shape, dtype)
        np.save(tmp_path / "a.npy", np.asarray(values, order=order))
        assert_same([tmp_path / "a.npy"], rng, spatial_dims)


TIFFS = {
    "strips": {"shape": (50, 41), "rowsperstrip": 7},
    "deflate": {"shape": (50, 41), "rowsperstrip": 7, "compression": "zlib"},
    "tiles": {"shape": (50, 41), "tile": (16, 32)},
    "tiled deflate": {"shape": (50, 41), "tile": (16, 16), "compression": "zlib"},
    "colour": {"shape": (50, 41, 3), "tile": (16, 16), "photometric": "rgb", "compression": "zlib"},
    "alpha": {"shape": (50, 41, 4), "photometric": "rgb", "extrasamples": ["unassalpha"], "compression": "zlib"},
    "planes": {
        "shape": (3, 50, 41),
        "photometric": "rgb",
        "planarconfig": "separate",
        "tile": (16, 16),
        "compression": "zlib",
    },
    "pages": {"shape": (5, 50, 41), "compression": "zlib", "photometric": "minisblack"},
    "BigTIFF": {"shape": (5, 50, 41), "tile": (16, 16), "bigtiff": True, "photometric": "minisblack"},
    "ImageJ": {"shape": (5, 2, 30, 20), "imagej": True, "metadata": {"axes": "ZCYX", "unit": "um", "spacing": 3.0}},
    "OME": {
        "shape": (2, 5, 50, 41),
        "ome": True,
        "metadata": {"axes": "CZYX"},
        "tile": (16, 16),
        "compression": "zlib",
    },
    "white is zero": {"shape": (50, 41), "photometric": "miniswhite", "compression": "zlib"},
}


@pytest.mark.parametrize("kind", TIFFS)
def test_tiff(tmp_path, kind):
    rng = np.random.default_rng(3)
    options = dict(TIFFS[kind])
    shape = options.pop("shape")
    types = ("u1", "u2", "f4") if kind in ("strips", "tiles", "pages", "deflate") else ("u1", "u2")
    for dtype in types:
        tifffile.imwrite(tmp_path / "a.tif", values_of(rng, shape, dtype), **options)
        assert_same([tmp_path / "a.tif"], rng)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_tiff(tmp_path, orientation):
    rng = np.random.default_rng(4)
    options = {"tile": (16, 16), "compression": "zlib", "extratags": [(274, 3, 1, orientation, True)]}
    tifffile.imwrite(tmp_path / "a.tif", values_of(rng, (50, 41), "u2"), photometric="minisblack", **options)
    assert_same([tmp_path / "a.tif"], rng)


def test_the_full_resolution_of_a_pyramid(tmp_path):
    rng = np.random.default_rng(5)
    values = values_of(rng, (64, 48), "u2")
    with tifffile.TiffWriter(tmp_path / "a.tif", bigtiff=True) as file:
        file.write(values, subifds=2, tile=(16, 16), photometric="minisblack", compression="zlib")
        for step in (2, 4):
            file.write(values[::step, ::step], subfiletype=1, tile=(16, 16), photometric="minisblack")
    assert_same([tmp_path / "a.tif"], rng)


def test_what_is_read_whole(tmp_path):
    """Pictures, and packings that tifffile does not decode alone."""
    rng = np.random.default_rng(6)
    Image.fromarray(values_of(rng, (30, 20, 3), "u1")).save(tmp_path / "a.png")
    Image.fromarray(values_of(rng, (30, 20), "u1")).save(tmp_path / "b.tif", compression="tiff_lzw")
    assert_same([tmp_path / "a.png"], rng)
    assert_same([tmp_path / "b.tif"], rng)


def test_a_file_that_is_cut_short_is_told(tmp_path):
    nibabel.Nifti1Image(np.zeros((20, 20, 20), np.int16), np.eye(4)).to_filename(tmp_path / "a.nii")
    data = (tmp_path / "a.nii").read_bytes()
    (tmp_path / "a.nii").write_bytes(data[:-100])
    with pytest.raises(DataError, match="is cut short"):
        open_image([Source(tmp_path / "a.nii")])
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(data[:-100]))
    with pytest.raises(DataError, match="is cut short"):
        open_image([Source(tmp_path / "a.nii.gz")])


def test_all_at_once(tmp_path):
    values = values_of(np.random.default_rng(7), (6, 7, 8), "i2")
    nibabel.Nifti1Image(values, np.eye(4)).to_filename(tmp_path / "a.nii.gz")
    with open_image([Source(tmp_path / "a.nii.gz")], scratch=tmp_path) as image:
        np.testing.assert_array_equal(read_whole(image).array[0], values)
    assert [path.name for path in tmp_path.iterdir()] == ["a.nii.gz"]


@pytest.mark.parametrize("shape", [(2, 40, 70, 33), (1, 600, 300), (3, 5, 2, 90)])
def test_bricks_hold_what_is_put_there(tmp_path, shape):
    rng = np.random.default_rng(8)
    bricks, whole = Bricks(shape, np.int16, tmp_path), np.zeros(shape, np.int16)
    for box in [*boxes_of(shape[1:], rng, 20)][1:]:
        values = values_of(rng, (shape[0], *(part.stop - part.start for part in box)), np.int16)
        bricks.write(box, values)
        whole[(slice(None), *box)] = values
    for box in boxes_of(shape[1:], rng, 20):
        np.testing.assert_array_equal(bricks.read(box), whole[(slice(None), *box)])
        np.testing.assert_array_equal(bricks.read(box, [shape[0] - 1]), whole[(slice(shape[0] - 1, None), *box)])
    bricks.close()
