"""Readers and writers: nothing is lost on the way, and no damaged file passes."""

import gzip
import io
import struct
import zipfile
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tifffile
from PIL import Image

from ulna.data.formats.label_maps import encode_labels, value_counts
from ulna.data.formats.npz import npz_contents
from ulna.data.formats.read import read_image, read_labels
from ulna.data.formats.source import Source, case_name, suffix_of
from ulna.data.formats.write import write_labels, write_npz_masks, write_probabilities
from ulna.data.volume import Volume, same_geometry
from ulna.errors import DataError, UsageError
from ulna.recipe import Labels

OBLIQUE = np.array([[1.9, -0.3, 0.1, -40.0], [0.4, 1.4, 0.2, 12.5], [-0.1, 0.2, 2.9, 7.0], [0, 0, 0, 1.0]])


def image_of(path, row=None):
    return read_image([Source(Path(path), row)])


def labels_of(path, row=None):
    return read_labels(Source(Path(path), row))


def save_nifti(path, array, affine=OBLIQUE, kind=nib.Nifti1Image):
    kind(array, affine).to_filename(path)
    return path


def noise(*shape, high=200, dtype=np.uint8):
    return np.random.default_rng(0).integers(1, high, shape).astype(dtype)


# names


@pytest.mark.parametrize(
    ("name", "suffix", "case"),
    [("a.nii.gz", ".nii.gz", "a"), ("A.b.PNG", ".png", "A.b"), ("x.ome.tif", ".ome.tif", "x"), ("plain", "", "plain")],
)
def test_extensions_in_two_parts_are_one(name, suffix, case):
    assert (suffix_of(f"folder.d/{name}"), case_name(f"folder.d/{name}")) == (suffix, case)


# NIfTI


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_label_map_lies_where_its_image_lies(tmp_path, kind, suffix):
    array = noise(5, 6, 7, high=900, dtype=np.int16)
    source = kind(array, OBLIQUE)
    source.header["descrip"] = b"the patient's name"
    source.set_sform(OBLIQUE, code=2)
    source.to_filename(tmp_path / f"in{suffix}")
    volume = image_of(tmp_path / f"in{suffix}")
    assert np.array_equal(volume.array, array[None]) and volume.array.dtype == np.int16
    assert volume.unit == "mm" and np.allclose(volume.spacing, source.header.get_zooms(), rtol=1e-6)
    assert np.allclose(volume.affine, OBLIQUE, atol=1e-5)

    labels = (array > 400).astype(np.int64) * 2
    path = write_labels(tmp_path / "out" / "in", labels, volume)
    back = nib.load(path)
    assert path.name == f"in{suffix}" and type(back) is kind
    assert np.array_equal(np.asarray(back.dataobj), labels) and back.get_data_dtype() == np.uint8
    assert np.array_equal(back.affine, nib.load(tmp_path / f"in{suffix}").affine)
    assert int(back.header["sform_code"]) == 2 and b"patient" not in bytes(back.header["descrip"])
    assert back.header.get_slope_inter() in ((None, None), (1.0, 0.0))


def test_nifti_of_one_slice_is_2d_and_written_as_it_came(tmp_path):
    array = noise(5, 6, 1)
    volume = image_of(save_nifti(tmp_path / "slice.nii.gz", array))
    assert volume.size == (5, 6) and volume.spatial_dims == 2
    labels = (array[..., 0] > 100).astype(np.uint8)
    back = nib.load(write_labels(tmp_path / "mask", labels, volume))
    assert back.shape == (5, 6, 1) and np.array_equal(np.asarray(back.dataobj)[..., 0], labels)
    assert np.allclose(back.affine, OBLIQUE, atol=1e-5)


def test_2d_nifti_without_a_third_axis_is_sound(tmp_path):
    image = nib.Nifti1Image(noise(4, 5), np.diag([2.0, 3, 1, 1]))
    image.set_sform(None)
    image.to_filename(tmp_path / "flat.nii")
    data = bytearray((tmp_path / "flat.nii").read_bytes())
    data[88:92] = bytes(4)  # the size of the axis that is not there
    (tmp_path / "flat.nii").write_bytes(data)
    volume = image_of(tmp_path / "flat.nii")
    assert volume.size == (4, 5) and volume.spacing == (2.0, 3.0)
    maps = np.stack([volume.array[0] > 50, volume.array[0] > 100])
    assert np.array_equal(labels_of(write_labels(tmp_path / "mask", maps, volume)).array, maps)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((4, 5), (1, 4, 5)), ((4, 5, 6, 3), (3, 4, 5, 6)), ((4, 5, 1, 3), (3, 4, 5)), ((4, 5, 6, 1, 2), (2, 4, 5, 6))],
)
def test_nifti_axes(tmp_path, shape, expected):
    array = noise(*shape)
    volume = image_of(save_nifti(tmp_path / "a.nii", array))
    assert volume.array.shape == expected
    if len(shape) > 2:
        last = array.reshape(*expected[1:], expected[0])[..., -1]
        assert np.array_equal(volume.array[-1], last)


def test_nifti_scaling_is_applied_and_byte_order_is_native(tmp_path):
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(np.dtype(">i2"))
    stored = noise(3, 4, 5, dtype=np.int16)
    image = nib.Nifti1Image(stored, OBLIQUE, header)
    image.header.set_slope_inter(0.5, -10)
    image.to_filename(tmp_path / "scaled.nii")
    raw = bytearray((tmp_path / "scaled.nii").read_bytes())
    volume = image_of(tmp_path / "scaled.nii")
    assert raw[:4] == (348).to_bytes(4, "big") and volume.array.dtype == np.float32
    assert np.allclose(volume.array[0], np.asarray(nib.load(tmp_path / "scaled.nii").dataobj))
    plain = image_of(save_nifti(tmp_path / "plain.nii", stored.astype(">i4")))
    assert plain.array.dtype == np.dtype("=i4") and plain.array.dtype.isnative


def test_nifti_in_micrometres_is_given_in_millimetres(tmp_path):
    image = nib.Nifti1Image(noise(4, 5, 6), np.diag([500.0, 500, 2000, 1]))
    image.header.set_xyzt_units("micron")
    image.to_filename(tmp_path / "small.nii")
    volume = image_of(tmp_path / "small.nii")
    assert np.allclose(volume.spacing, (0.5, 0.5, 2)) and np.allclose(np.diag(volume.affine), (0.5, 0.5, 2, 1))
    back = nib.load(write_labels(tmp_path / "mask", volume.array[0], volume))
    assert np.allclose(back.affine, image.affine) and back.header.get_xyzt_units()[0] == "micron"


def test_probabilities_of_a_nifti_are_a_4d_nifti(tmp_path):
    volume = image_of(save_nifti(tmp_path / "a.nii", noise(4, 5, 6)))
    values = np.random.default_rng(1).random((3, 4, 5, 6), dtype=np.float32)
    path = write_probabilities(tmp_path / "p", values, volume)
    back = nib.load(path)
    assert path.name == "p.nii.gz" and back.shape == (4, 5, 6, 3) and back.get_data_dtype() == np.float32
    assert np.array_equal(np.asarray(back.dataobj)[..., 2], values[2]) and np.allclose(back.affine, OBLIQUE, atol=1e-5)


def test_spacing_of_a_nifti_is_that_of_its_affine(tmp_path):
    data = bytearray(save_nifti(tmp_path / "a.nii", noise(4, 5, 6), np.diag([2.0, 3, 4, 1])).read_bytes())
    data[80:84] = struct.pack("<f", 1.0)  # pixdim of the first axis
    (tmp_path / "a.nii").write_bytes(data)
    volume = image_of(tmp_path / "a.nii")
    assert volume.spacing == (2.0, 3.0, 4.0)
    assert "header spacing 1 x 3 x 4 differs from the affine 2 x 3 x 4; the affine is used" in volume.meta.notes
    assert image_of(save_nifti(tmp_path / "b.nii", noise(4, 5, 6))).meta.notes == (
        "states no unit of length; mm is assumed",
    )


@pytest.mark.parametrize("begin", [np.nan, np.inf])
def test_nifti_data_that_begin_nowhere_are_a_damaged_header(tmp_path, begin):
    data = bytearray(save_nifti(tmp_path / "a.nii", noise(4, 5, 6)).read_bytes())
    data[108:112] = struct.pack("<f", begin)
    (tmp_path / "a.nii").write_bytes(data)
    with pytest.raises(DataError, match="has a header that is damaged"):
        image_of(tmp_path / "a.nii")


@pytest.mark.parametrize("begin", [8, 352, 1056])
def test_labels_begin_where_they_should_wherever_the_image_began(tmp_path, begin):
    data = bytearray(save_nifti(tmp_path / "a.nii", noise(4, 5, 6)).read_bytes())
    data[108:112] = struct.pack("<f", begin)
    (tmp_path / "a.nii").write_bytes(bytes(data[:352]) + bytes(max(begin - 352, 0)) + bytes(data[352:]))
    volume = image_of(tmp_path / "a.nii")
    assert np.array_equal(volume.array[0], noise(4, 5, 6))
    path = write_labels(tmp_path / "mask", volume.array[0], volume)
    assert path.stat().st_size == 352 + 120 and np.array_equal(labels_of(path).array, volume.array)


@pytest.mark.parametrize("size", [(4, 5, 6), (4, 5)])
def test_a_volume_with_an_affine_alone_becomes_a_nifti(tmp_path, size):
    volume = Volume(noise(1, *size), (2.0,) * len(size), "mm", OBLIQUE)
    path = write_labels(tmp_path / "mask", volume.array[0], volume)
    back = nib.load(path)
    assert path.name == "mask.nii.gz" and np.allclose(back.affine, OBLIQUE, atol=1e-5)
    assert np.array_equal(labels_of(path).array, volume.array) and labels_of(path).size == size
    assert write_probabilities(tmp_path / "p", noise(2, *size).astype(np.float32), volume).name == "p.nii.gz"


@pytest.mark.parametrize("keep", [1, 2, 9, 20, 200, -4000, -100, -9, -8, -4, -1])
def test_cut_nii_gz_is_found_at_any_length(tmp_path, keep):
    path = save_nifti(tmp_path / "a.nii.gz", noise(30, 20, 10))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"a\.nii\.gz: is (cut short|not gzip)"):
        image_of(path)


@pytest.mark.parametrize("keep", [1, 3, 100, 348, 352, 400, -1])
def test_cut_nii_is_found_at_any_length(tmp_path, keep):
    path = save_nifti(tmp_path / "a.nii", noise(30, 20, 10))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"a\.nii: is cut short.*; copy or download"):
        image_of(path)


def test_flipped_bit_in_a_nii_gz_is_found(tmp_path):
    path = save_nifti(tmp_path / "a.nii.gz", noise(30, 20, 10))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"is (damaged|cut short)"):
        image_of(path)


def test_header_that_promises_a_terabyte_is_refused_before_memory_is_taken(tmp_path):
    path = save_nifti(tmp_path / "a.nii", noise(4, 4, 4))
    data = bytearray(path.read_bytes())
    data[42:48] = struct.pack("<3h", 10000, 10000, 10000)
    path.write_bytes(data)
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(bytes(data)))
    for name in ("a.nii", "a.nii.gz"):
        with pytest.raises(DataError, match=r"promises \(10000, 10000, 10000\)"):
            image_of(tmp_path / name)


def test_nifti_faults_name_what_is_wrong(tmp_path):
    (tmp_path / "text.nii").write_text("this is a letter, not an image" * 40)
    with pytest.raises(DataError, match=r"text\.nii: is not a NIfTI file; give the file its right extension"):
        image_of(tmp_path / "text.nii")
    (tmp_path / "plain.nii.gz").write_bytes(save_nifti(tmp_path / "b.nii", noise(3, 3, 3)).read_bytes())
    with pytest.raises(DataError, match=r"is not gzip-compressed, though its name ends in \.gz"):
        image_of(tmp_path / "plain.nii.gz")
    save_nifti(tmp_path / "complex.nii", np.ones((3, 3, 3), np.complex64))
    with pytest.raises(DataError, match="holds values of type complex64"):
        image_of(tmp_path / "complex.nii")
    save_nifti(tmp_path / "film.nii", noise(3, 3, 3, 2, 2))
    with pytest.raises(DataError, match=r"has the shape \(3, 3, 3, 2, 2\)"):
        image_of(tmp_path / "film.nii")
    flat = bytearray(save_nifti(tmp_path / "flat.nii", noise(3, 3, 3)).read_bytes())
    flat[312:328] = bytes(16)  # the third row of the sform
    (tmp_path / "flat.nii").write_bytes(flat)
    with pytest.raises(DataError, match="has a singular orientation matrix; write the geometry anew"):
        image_of(tmp_path / "flat.nii")


# PNG, JPEG, BMP


@pytest.mark.parametrize("suffix", [".png", ".bmp"])
def test_colour_and_grey_come_as_channels(tmp_path, suffix):
    colour, grey = noise(5, 7, 3), noise(5, 7)
    Image.fromarray(colour).save(tmp_path / f"colour{suffix}")
    Image.fromarray(grey).save(tmp_path / f"grey{suffix}")
    volume = image_of(tmp_path / f"colour{suffix}")
    assert np.array_equal(volume.array, np.moveaxis(colour, -1, 0)) and volume.spacing == (1.0, 1.0)
    assert volume.unit == "px" and volume.affine is None
    assert np.array_equal(image_of(tmp_path / f"grey{suffix}").array, grey[None])
    path = write_labels(tmp_path / "out" / "mask", grey > 100, volume)
    assert path.name == "mask.png" and np.array_equal(labels_of(path).array[0], grey > 100)


def test_png_of_16_bits_keeps_every_bit_both_ways(tmp_path):
    values = noise(6, 5, high=60000, dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    volume = image_of(tmp_path / "deep.png")
    assert volume.array.dtype == np.uint16 and np.array_equal(volume.array[0], values)
    assert np.array_equal(labels_of(write_labels(tmp_path / "many", values, volume)).array[0], values)


def test_one_bit_palette_and_alpha(tmp_path):
    bits = noise(6, 9, high=3) > 1
    Image.fromarray(bits).save(tmp_path / "bits.png")
    assert np.array_equal(labels_of(tmp_path / "bits.png").array[0], bits)

    indices = noise(6, 9, high=4)
    picture = Image.fromarray(indices).convert("P")
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    picture.putdata(indices.ravel().tolist())
    picture.save(tmp_path / "palette.png")
    assert np.array_equal(labels_of(tmp_path / "palette.png").array[0], indices)
    assert np.array_equal(image_of(tmp_path / "palette.png").array[0] == 255, indices == 1)

    Image.fromarray(noise(6, 9, 4)).save(tmp_path / "alpha.png")
    volume = image_of(tmp_path / "alpha.png")
    assert volume.channels == 3 and volume.meta.notes == ("has an alpha channel, dropped",)


def grey_png(path, values, depth, colour=0):
    """A PNG of any bit depth, which Pillow does not write."""
    rows = (np.unpackbits(row[:, None].astype(np.uint8), axis=1)[:, 8 - depth :] for row in values)
    lines = b"".join(b"\0" + np.packbits(row.ravel()).tobytes() for row in rows)
    return png(path, struct.pack(">IIBBBBB", values.shape[1], len(values), depth, colour, 0, 0, 0), lines)


def png(path, header, lines):
    parts = b"\x89PNG\r\n\x1a\n"
    for name, body in ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")):
        parts += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    path.write_bytes(parts)
    return path


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_grey_png_labels_of_few_bits_keep_their_values(tmp_path, depth):
    values = np.arange(24).reshape(3, 8) % 2**depth
    path = grey_png(tmp_path / "a.png", values, depth)
    assert np.array_equal(labels_of(path).array[0], values)
    if depth > 1:
        assert image_of(path).array.max() == values.max() * 255 // (2**depth - 1)


@pytest.mark.parametrize(("colour", "samples"), [(2, 3), (4, 2), (6, 4)])
def test_deep_colour_png_is_no_label_map(tmp_path, colour, samples):
    lines = b"".join(b"\0" + noise(5 * samples * 2).tobytes() for _ in range(6))
    path = png(tmp_path / "a.png", struct.pack(">IIBBBBB", 5, 6, 16, colour, 0, 0, 0), lines)
    with pytest.raises(DataError, match="has 16 bits per colour, of which only 8 can be read; save the label map"):
        labels_of(path)
    assert "has 16 bits per colour, of which the upper 8 are read" in image_of(path).meta.notes


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp"])
@pytest.mark.parametrize("keep", [1, 5, 30, 0.5, -200, -12, -5, -2])
def test_cut_pictures_are_found_at_any_length(tmp_path, suffix, keep):
    path = tmp_path / f"a{suffix}"
    Image.fromarray(noise(60, 52, 3)).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(DataError, match=rf"a\{suffix}: is (cut short|damaged).*; copy or download"):
        image_of(path)


def test_flipped_bit_in_a_png_is_found(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(noise(60, 50)).save(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="wrong checksum in its IDAT part"):
        image_of(path)


def test_parts_of_a_jpeg_must_follow_each_other(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(noise(60, 50)).save(path)
    data = path.read_bytes()
    tables = data.index(b"\xff\xdb")
    for broken, words in [
        (data[:tables] + b"spare" + data[tables:], f"byte {tables} belongs to no part of a JPEG"),
        (data[:-2] + b"\xff\x01" + data[-2:], "belongs to no part of a JPEG"),
        (data[: data.index(b"\xff\xda")] + b"\xff\xd9", "it holds no pixels"),
    ]:
        path.write_bytes(broken)
        with pytest.raises(DataError, match=f"is damaged: .*{words}"):
            image_of(path)
    path.write_bytes(data[:tables] + b"\xff\xff" + data[tables:] + b"more")  # padding, and what phones append
    assert image_of(path).size == (60, 50)


def test_png_that_declares_a_huge_picture_is_refused(tmp_path):
    def part(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = part(b"IHDR", struct.pack(">IIBBBBB", 100000, 90000, 8, 0, 0, 0, 0))
    body = part(b"IDAT", zlib.compress(b"\0" * 100)) + part(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + body)
    with pytest.raises(DataError, match="declares 100000 x 90000 pixels"):
        image_of(tmp_path / "bomb.png")


def test_picture_faults_name_what_is_wrong(tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"empty\.png: is empty \(0 bytes\); copy the file again"):
        image_of(tmp_path / "empty.png")
    (tmp_path / "text.png").write_text("hello, this is text")
    with pytest.raises(DataError, match="is not a PNG, JPEG or BMP file"):
        image_of(tmp_path / "text.png")
    with pytest.raises(DataError, match="does not exist; check the path"):
        image_of(tmp_path / "missing.png")
    (tmp_path / "a.xyz").write_text("x")
    with pytest.raises(DataError, match=r"has the extension '\.xyz', which is not read; convert it"):
        image_of(tmp_path / "a.xyz")
    Image.fromarray(noise(9, 9)).save(tmp_path / "mask.jpg")
    with pytest.raises(DataError, match="is a JPEG, which does not keep label values; save label maps as PNG"):
        labels_of(tmp_path / "mask.jpg")


# TIFF


@pytest.mark.parametrize(
    ("shape", "options", "expected"),
    [
        ((6, 5), {}, (1, 6, 5)),
        ((6, 5, 3), {"photometric": "rgb"}, (3, 6, 5)),
        ((6, 5, 4), {"photometric": "rgb"}, (3, 6, 5)),
        ((4, 6, 5), {"photometric": "minisblack"}, (1, 4, 6, 5)),
        ((4, 6, 5), {"imagej": True, "metadata": {"axes": "ZYX"}}, (1, 4, 6, 5)),
        ((2, 6, 5), {"imagej": True, "metadata": {"axes": "CYX"}}, (2, 6, 5)),
        ((4, 2, 6, 5), {"imagej": True, "metadata": {"axes": "ZCYX"}}, (2, 4, 6, 5)),
        ((6, 5), {"compression": "zlib"}, (1, 6, 5)),
    ],
)
def test_tiff_axes(tmp_path, shape, options, expected):
    array = noise(*shape, high=60000, dtype=np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", array, **options)
    volume = image_of(tmp_path / "a.tif")
    assert volume.array.shape == expected and volume.array.dtype == np.uint16
    if options.get("photometric") == "rgb":
        wanted = np.moveaxis(array[..., :3], -1, 0)
    elif len(shape) == 4:  # depth, channels
        wanted = np.moveaxis(array, 1, 0)
    else:
        wanted = array.reshape(expected)
    assert np.array_equal(volume.array, wanted)


def test_only_a_band_that_is_opacity_is_dropped_from_a_tiff(tmp_path):
    bands = noise(6, 5, 4)
    tifffile.imwrite(
        tmp_path / "bands.tif", bands, photometric="minisblack", planarconfig="contig", extrasamples=[0, 0, 0]
    )
    assert np.array_equal(image_of(tmp_path / "bands.tif").array, np.moveaxis(bands, -1, 0))
    tifffile.imwrite(
        tmp_path / "grey.tif", bands[..., :2], photometric="minisblack", planarconfig="contig", extrasamples=[2]
    )
    assert np.array_equal(image_of(tmp_path / "grey.tif").array, bands[None, ..., 0])
    tifffile.imwrite(tmp_path / "print.tif", bands, photometric="separated")
    with pytest.raises(DataError, match="is CMYK, the colours of print; save it as RGB or grey"):
        image_of(tmp_path / "print.tif")


def test_one_bit_tiff_labels_are_read_as_pillow_shows_them(tmp_path):
    bits = noise(6, 16, high=3) > 1
    for kind in ("miniswhite", "minisblack"):
        tifffile.imwrite(tmp_path / f"{kind}.tif", bits, photometric=kind)
        with Image.open(tmp_path / f"{kind}.tif") as picture:
            assert np.array_equal(labels_of(tmp_path / f"{kind}.tif").array[0], np.asarray(picture))


@pytest.mark.parametrize("dims", [2, 3])
def test_imagej_spacing_survives_a_round_trip(tmp_path, dims):
    array = noise(*(4, 6, 5)[3 - dims :])
    about = {"unit": "um", "axes": "ZYX"[3 - dims :], **({"spacing": 2.0} if dims == 3 else {})}
    tifffile.imwrite(tmp_path / "a.tif", array, imagej=True, resolution=(4, 5), metadata=about)
    volume = image_of(tmp_path / "a.tif")
    assert volume.unit == "mm" and np.allclose(volume.spacing, (0.002, 0.0002, 0.00025)[3 - dims :])
    path = write_labels(tmp_path / "mask", array > 100, volume)
    back = labels_of(path)
    assert path.name == "mask.tif" and np.array_equal(back.array[0], array > 100)
    assert back.unit == "mm" and np.allclose(back.spacing, volume.spacing, rtol=1e-5)


def test_tiff_spacing_only_where_a_unit_is_stated(tmp_path):
    array = noise(6, 5)
    tifffile.imwrite(tmp_path / "inch.tif", array, resolution=(300, 300), resolutionunit="INCH")
    tifffile.imwrite(tmp_path / "print.tif", array, resolution=(300 / 2.54, 300 / 2.54), resolutionunit="CENTIMETER")
    tifffile.imwrite(tmp_path / "scope.tif", array, resolution=(20000, 10000), resolutionunit="CENTIMETER")
    tifffile.imwrite(
        tmp_path / "a.ome.tif", array, ome=True, metadata={"PhysicalSizeX": 0.5, "PhysicalSizeY": 2, "axes": "YX"}
    )
    assert [image_of(tmp_path / name).unit for name in ("inch.tif", "print.tif")] == ["px", "px"]
    assert np.allclose(image_of(tmp_path / "scope.tif").spacing, (0.001, 0.0005))
    assert np.allclose(image_of(tmp_path / "a.ome.tif").spacing, (0.002, 0.0005))
    mask = write_labels(tmp_path / "mask", array > 100, image_of(tmp_path / "inch.tif"))
    with tifffile.TiffFile(mask) as file:
        assert file.pages[0].resolution == (300, 300) and file.pages[0].resolutionunit == 2


@pytest.mark.parametrize("kind", ["1", "L", "P", "RGB"])
def test_lzw_tiff_of_other_programs_is_read(tmp_path, kind):
    picture = Image.fromarray(noise(9, 12, 3)).convert(kind)
    picture.save(tmp_path / "a.tif", compression="tiff_lzw")
    assert np.array_equal(np.moveaxis(labels_of(tmp_path / "a.tif").array, 0, -1).squeeze(), np.asarray(picture))


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}])
@pytest.mark.parametrize("keep", [4, 9, 100, 0.5, -50, -17])
def test_cut_tiff_is_found_at_any_length(tmp_path, options, keep):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise(3, 40, 50), photometric="minisblack", **options)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(DataError, match=r"a\.tif: .*; copy or download"):
        image_of(path)


def test_pages_that_do_not_agree_with_the_first_are_found(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise(3, 40, 50), photometric="minisblack")
    with tifffile.TiffFile(path) as file:
        places = [file.pages[2].tags[tag].valueoffset for tag in ("StripOffsets", "PhotometricInterpretation")]
    sound = path.read_bytes()
    for place in places:
        data = bytearray(sound)
        data[place] ^= 3
        path.write_bytes(data)
        with pytest.raises(DataError, match="page 3 does not agree with the first"):
            image_of(path)


def test_ome_size_of_nothing_is_no_size(tmp_path):
    sizes = {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5, "PhysicalSizeZ": 0.0, "axes": "ZYX"}
    tifffile.imwrite(tmp_path / "a.ome.tif", noise(3, 6, 5), ome=True, photometric="minisblack", metadata=sizes)
    volume = image_of(tmp_path / "a.ome.tif")
    assert volume.unit == "px" and volume.spacing == (1.0, 1.0, 1.0)


def test_multilabel_maps_of_a_png_image_go_to_a_tiff_with_channels(tmp_path):
    Image.fromarray(noise(6, 9)).save(tmp_path / "a.png")
    volume = image_of(tmp_path / "a.png")
    maps = np.stack([volume.array[0] > 50, volume.array[0] > 100])
    path = write_labels(tmp_path / "mask", maps, volume)
    assert path.suffix == ".tif" and np.array_equal(labels_of(path).array, maps)


# npz


def test_npz_dimensions_tell_colour_from_3d(tmp_path):
    for name, images, masks, expected in [
        ("colour", noise(4, 6, 5, 3), noise(4, 6, 5), (3, 6, 5)),
        ("grey", noise(4, 6, 5), noise(4, 6, 5), (1, 6, 5)),
        ("volume", noise(4, 6, 5, 3), noise(4, 6, 5, 3), (1, 6, 5, 3)),
        ("volume2", noise(4, 6, 5, 3, 2), noise(4, 6, 5, 3), (2, 6, 5, 3)),
    ]:
        np.savez_compressed(tmp_path / f"{name}.npz", images=images, masks=masks)
        volume = image_of(tmp_path / f"{name}.npz", 2)
        assert volume.array.shape == expected
        assert np.array_equal(volume.array[0], images[2] if len(expected) == images.ndim else images[2, ..., 0])
        assert np.array_equal(labels_of(tmp_path / f"{name}.npz", 2).array[0], masks[2])
        assert npz_contents(tmp_path / f"{name}.npz").ids[2] == f"{name}_0002"
    np.savez(tmp_path / "bare.npz", images=noise(4, 6, 5, 3))
    assert image_of(tmp_path / "bare.npz", 0).array.shape == (3, 6, 5)


def test_npz_is_unpacked_once(tmp_path, monkeypatch):
    from ulna.data.formats import npz as read_npz

    np.savez_compressed(tmp_path / "a.npz", images=noise(9, 6, 5), masks=noise(9, 6, 5))
    read, opened = read_npz._read, []
    monkeypatch.setattr(read_npz, "_read", lambda *args: opened.append(args[-1]) or read(*args))
    for row in range(9):
        image_of(tmp_path / "a.npz", row), labels_of(tmp_path / "a.npz", row)
    assert opened == ["images", "masks"]
    np.savez_compressed(tmp_path / "a.npz", images=noise(9, 6, 5) + 1, masks=noise(9, 6, 5))
    assert np.array_equal(image_of(tmp_path / "a.npz", 3).array[0], noise(9, 6, 5)[3] + 1)


def test_npz_faults_name_what_is_wrong(tmp_path):
    path = tmp_path / "a.npz"

    def message():
        with pytest.raises(DataError) as caught:
            npz_contents(path)
        return str(caught.value)

    np.savez(path, images=noise(4, 6, 5), masks=noise(3, 6, 5))
    assert "arrays of different length: {'images': 4, 'masks': 3}" in message()
    np.savez(path, images=noise(4, 6, 5), masks=noise(4, 6, 7))
    assert "(4, 6, 5) and `masks` (4, 6, 7), which do not fit" in message()
    np.savez(path, pictures=noise(4, 6, 5))
    assert "holds neither `images` nor `masks`" in message()
    np.savez(path, images=np.array([{}], dtype=object), masks=noise(1, 6, 5))
    assert "`images` of type object" in message()
    np.savez(path, images=noise(4, 6, 5), masks=noise(4, 6, 5))
    path.write_bytes(path.read_bytes()[:-30])
    assert "is cut short or no npz file" in message()
    path.write_text("hello")
    assert "is cut short or no npz file" in message()
    with zipfile.ZipFile(path, "w") as archive:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": "|u1", "fortran_order": False, "shape": (10, 99999, 99999)}
        )
        archive.writestr("images.npy", header.getvalue() + b"\0" * 64)
    assert "promises `images` of (10, 99999, 99999)" in message()


def test_flipped_bit_in_an_npz_is_found(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, images=noise(4, 60, 50), masks=noise(4, 60, 50))
    data = bytearray(path.read_bytes())
    data[3000] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"is damaged .*; copy or download"):
        image_of(path, 0)


def test_ids_of_an_npz_are_one_text_per_case(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, images=noise(2, 6, 5), ids=np.array([["a", "b"], ["c", "d"]]))
    with pytest.raises(DataError, match=r"has `ids` of the shape \(2, 2\); save one id per case"):
        npz_contents(path)
    np.savez(path, images=noise(2, 6, 5), ids=np.array(["a", "b"], dtype=object))
    with pytest.raises(DataError, match=r"has `ids` of type object.*; save ids with dtype=str"):
        npz_contents(path)
    np.savez(path, images=noise(1, 6, 5), ids=np.array(["e\u0301"]))
    assert npz_contents(path).ids == ("\u00e9",) and case_name("e\u0301.png") == "\u00e9"


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".png", ".tif"])
def test_an_image_is_never_overwritten_by_its_mask(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    if "nii" in suffix:
        save_nifti(path, noise(4, 5, 6))
    else:
        Image.fromarray(noise(6, 5)).save(path)
    before, volume = path.read_bytes(), image_of(path)
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    for folder in (tmp_path, tmp_path / "link"):
        with pytest.raises(UsageError, match="is the image itself; choose another folder with --out"):
            write_labels(folder / "a", volume.array[0], volume)
    assert path.read_bytes() == before


def test_an_npz_of_images_is_never_overwritten_by_its_masks(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, images=noise(2, 6, 5))
    before = path.read_bytes()
    with pytest.raises(UsageError, match=r"a\.npz: is the image itself; choose another folder"):
        write_npz_masks(path, noise(2, 6, 5), ["a", "b"])
    with pytest.raises(UsageError, match="is the image itself"):
        write_labels(tmp_path / "a", noise(6, 5), image_of(path, 0))
    assert path.read_bytes() == before
    write_npz_masks(tmp_path / "masks.npz", noise(2, 6, 5), ["a", "b"])
    assert npz_contents(write_npz_masks(tmp_path / "masks.npz", noise(1, 6, 5), ["c"])).ids == ("c",)


def test_masks_of_an_npz_are_read_back_by_id(tmp_path):
    masks = noise(3, 6, 5)
    path = write_npz_masks(tmp_path / "x" / "test.npz", masks, ["a", "b", "c"])
    assert npz_contents(path).ids == ("a", "b", "c") and np.array_equal(labels_of(path, 1).array[0], masks[1])


# channels, labels


def test_channels_of_a_case_are_joined_and_must_share_the_grid(tmp_path):
    a = save_nifti(tmp_path / "c_0000.nii.gz", noise(4, 5, 6))
    b = save_nifti(tmp_path / "c_0001.nii.gz", noise(4, 5, 6) + 1)
    volume = read_image([Source(a), Source(b)])
    assert volume.channels == 2 and np.array_equal(volume.array[1], volume.array[0] + 1)
    other = save_nifti(tmp_path / "other.nii.gz", noise(4, 5, 7))
    with pytest.raises(DataError, match=r"other\.nii\.gz: \(4, 5, 7\) at .* channel c_0000\.nii\.gz has \(4, 5, 6\)"):
        read_image([Source(a), Source(other)])
    turned = save_nifti(tmp_path / "turned.nii.gz", noise(4, 5, 6), np.diag([2.0, 1.5, 2.9, 1]))
    with pytest.raises(DataError, match="resample the channels of a case to one grid"):
        read_image([Source(a), Source(turned)])


def encoded(tmp_path, array, labels):
    return encode_labels(labels_of(save_nifti(tmp_path / "mask.nii", np.asarray(array))), labels)


def test_label_values_become_class_indices(tmp_path):
    values = np.array([[0, 1], [2, 2]])
    three = Labels(names=("background", "a", "b"))
    indices = encoded(tmp_path, values.astype(np.float32), three)
    assert indices.dtype == np.uint8 and np.array_equal(indices, values)
    two = encoded(tmp_path, np.array([[0, 255], [255, 0]], np.int16), Labels())
    assert np.array_equal(two, [[0, 1], [1, 0]])
    with pytest.raises(DataError, match=r"mask\.nii: label values 2 do not fit 2 classes \(0 is background, 1\.\.1\)"):
        encoded(tmp_path, values.astype(np.int16), Labels())
    with pytest.raises(DataError, match="label values 255 do not fit 3 classes"):
        encoded(tmp_path, np.array([[0, 255]], np.int16), three)
    with pytest.raises(DataError, match=r"label values 0\.5 do not fit .*name the extra ones in classes\.json"):
        encoded(tmp_path, np.array([[0, 0.5]], np.float32), three)
    with pytest.raises(DataError, match="holds 2 label maps; save one map"):
        encoded(tmp_path, np.zeros((3, 4, 5, 2), np.uint8), three)


def test_multilabel_maps_overlap_and_exclusive_values_are_spread(tmp_path):
    both = Labels(names=("disc", "cup"), multilabel=True)
    maps = np.zeros((3, 4, 5, 2), np.uint8)
    maps[1, :, :, :] = 255
    indices = encoded(tmp_path, maps, both)
    assert indices.shape == (2, 3, 4, 5) and np.array_equal(indices, np.moveaxis(maps, -1, 0) // 255)
    spread = encoded(tmp_path, np.array([[0, 1], [2, 2]], np.uint8), both)
    assert np.array_equal(spread, [[[0, 1], [0, 0]], [[0, 0], [1, 1]]])
    written = write_labels(tmp_path / "out", indices, image_of(save_nifti(tmp_path / "i.nii.gz", noise(3, 4, 5))))
    assert np.array_equal(labels_of(written).array, indices)


def test_grey_label_map_stored_as_colour_is_one_map(tmp_path):
    Image.fromarray(np.repeat(noise(6, 5)[..., None], 3, axis=-1)).save(tmp_path / "a.png")
    many = Labels(names=("background", *(f"c{value}" for value in range(1, 200))))
    assert np.array_equal(encode_labels(labels_of(tmp_path / "a.png"), many), noise(6, 5))


def test_equal_multilabel_channels_of_a_picture_stay_channels(tmp_path):
    maps = np.repeat((noise(6, 5) > 100).astype(np.uint8)[..., None], 3, axis=-1)
    Image.fromarray(maps).save(tmp_path / "a.png")
    three = Labels(names=("a", "b", "c"), multilabel=True)
    assert np.array_equal(encode_labels(labels_of(tmp_path / "a.png"), three), np.moveaxis(maps, -1, 0))


def test_values_are_counted_alike_by_both_ways():
    array = noise(40, 50, high=9)
    assert value_counts(array) == value_counts(array.astype(np.float32)) == value_counts(array.astype(np.int64))


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    volume = image_of(save_nifti(tmp_path / "a.nii", noise(4, 5, 6)))
    before = write_labels(tmp_path / "out" / "a", volume.array[0], volume).read_bytes()

    def half(path, *_):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("ulna.data.formats.write.write_nifti", half)
    with pytest.raises(UsageError, match=r"cannot be written \(disk full\); free space or choose another folder"):
        write_labels(tmp_path / "out" / "a", volume.array[0], volume)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["a.nii"]
    assert (tmp_path / "out" / "a.nii").read_bytes() == before
    with pytest.raises(ValueError, match="do not lie on the grid"):
        write_labels(tmp_path / "out" / "b", volume.array[0, :2], volume)


def test_grids_are_compared_in_voxels_however_small(tmp_path):
    small = Volume(noise(1, 4, 5, 6), (1e-3,) * 3, "mm", np.diag([1e-3, 1e-3, 1e-3, 1.0]))
    half_a_voxel = np.eye(4)
    half_a_voxel[0, 3] = 0.5
    moved = Volume(small.array, small.spacing, "mm", small.affine @ half_a_voxel)
    assert same_geometry(small, small) and not same_geometry(small, moved)


def test_a_loop_of_links_is_a_fault(tmp_path):
    (tmp_path / "a.png").symlink_to(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: (does not exist|cannot be read)"):
        image_of(tmp_path / "a.png")


def test_what_cannot_be_looked_at_is_a_fault(tmp_path, monkeypatch):
    def refused(path, **_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", refused)
    with pytest.raises(DataError, match=r"a\.png: cannot be read \(Permission denied\); check the path"):
        image_of(tmp_path / "a.png")
