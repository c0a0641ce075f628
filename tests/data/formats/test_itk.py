""".mha and .nrrd: geometry as SimpleITK has it, every byte counted."""

import gzip
import struct
import sys
import zlib

import numpy as np
import pytest

from ulna.data.formats.read import read_image, read_labels
from ulna.data.formats.source import Source
from ulna.data.formats.write import write_labels, write_probabilities
from ulna.data.volume import same_geometry
from ulna.errors import DataError, UsageError

sitk = pytest.importorskip("SimpleITK")

TURNED = (0.0, -1.0, 0.0, 0.6, 0.0, -0.8, 0.8, 0.0, 0.6)  # a rotation, by rows


def noise(*shape, dtype=np.uint8):
    return np.random.default_rng(0).integers(1, 200, shape).astype(dtype)


def save_itk(path, array, packed=True, vector=False, spacing=(2.0, 3.0, 4.0), direction=TURNED):
    image = sitk.GetImageFromArray(array, isVector=vector)
    dims = image.GetDimension()
    image.SetSpacing((*spacing, 1.0)[:dims])
    image.SetOrigin((5.0, -6.0, 7.0, 0.0)[:dims])
    if dims == 3:
        image.SetDirection(direction)
    sitk.WriteImage(image, str(path), packed)
    return path


def image_of(path):
    return read_image([Source(path)])


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_values_and_geometry_are_those_of_simpleitk(tmp_path, suffix, packed, dtype):
    path = save_itk(tmp_path / f"a{suffix}", noise(4, 5, 6, dtype=dtype), packed)
    volume, image = image_of(path), sitk.ReadImage(str(path))
    assert np.array_equal(volume.array[0], sitk.GetArrayFromImage(image).transpose()) and volume.unit == "mm"
    assert volume.array.dtype == (np.float32 if dtype[0] == "f" else np.dtype(dtype)) and volume.spacing == (2, 3, 4)
    for index in [(0, 0, 0), (5, 0, 0), (1, 2, 3)]:
        left, back, up = image.TransformIndexToPhysicalPoint(index)
        assert np.allclose(volume.affine @ (*index, 1), (-left, -back, up, 1))


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
def test_a_scan_lies_where_its_nifti_copy_lies(tmp_path, suffix):
    path = save_itk(tmp_path / f"a{suffix}", noise(4, 5, 6))
    sitk.WriteImage(sitk.ReadImage(str(path)), str(tmp_path / "a.nii.gz"))
    one, two = image_of(path), image_of(tmp_path / "a.nii.gz")
    assert np.array_equal(one.array, two.array) and same_geometry(one, two)


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
def test_label_maps_are_written_in_the_format_and_place_of_the_image(tmp_path, suffix):
    volume = image_of(save_itk(tmp_path / f"a{suffix}", noise(4, 5, 6)))
    path = write_labels(tmp_path / "out" / "a", volume.array[0] > 100, volume)
    back, image, mask = (
        read_labels(Source(path)),
        sitk.ReadImage(str(tmp_path / f"a{suffix}")),
        sitk.ReadImage(str(path)),
    )
    assert path.name == f"a{suffix}" and np.array_equal(back.array[0], volume.array[0] > 100)
    assert same_geometry(back, volume) and mask.GetDirection() == image.GetDirection()
    assert mask.GetOrigin() == image.GetOrigin() and mask.GetPixelID() == sitk.sitkUInt8
    maps = np.stack([volume.array[0] > 50, volume.array[0] > 100])
    assert np.array_equal(read_labels(Source(write_labels(tmp_path / "both", maps, volume))).array, maps)
    assert write_probabilities(tmp_path / "p", maps.astype(np.float32), volume).name == "p.npz"
    with pytest.raises(UsageError, match="is the image itself"):
        write_labels(tmp_path / "a", volume.array[0], volume)


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
def test_components_and_a_fourth_axis_are_channels_and_two_axes_a_picture(tmp_path, suffix):
    colour = noise(4, 5, 6, 3)
    volume = image_of(save_itk(tmp_path / f"v{suffix}", colour, vector=True))
    assert np.array_equal(volume.array, colour.transpose(3, 2, 1, 0))
    film = noise(2, 4, 5, 6)
    assert np.array_equal(image_of(save_itk(tmp_path / f"f{suffix}", film)).array, film.transpose(0, 3, 2, 1))
    flat = image_of(save_itk(tmp_path / f"p{suffix}", noise(4, 5)))
    assert flat.size == (5, 4) and flat.spacing == (2, 3)
    thin = image_of(save_itk(tmp_path / f"t{suffix}", noise(1, 4, 5)))
    assert thin.size == (5, 4)
    path = write_labels(tmp_path / "mask", thin.array[0], thin)
    assert sitk.ReadImage(str(path)).GetSize() == (5, 4, 1) and read_labels(Source(path)).size == (5, 4)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
@pytest.mark.parametrize("keep", [3, 40, 0.6, -4000, -100, -5, -4, -1])
def test_cut_files_are_found_at_any_length(tmp_path, suffix, packed, keep):
    path = save_itk(tmp_path / f"a{suffix}", noise(10, 30, 40), packed)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(DataError, match=r"; (copy or download|give the file)"):
        image_of(path)


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
def test_a_flipped_bit_and_spare_bytes_are_found(tmp_path, suffix):
    path = save_itk(tmp_path / f"a{suffix}", noise(10, 30, 40))
    data = bytearray(path.read_bytes())
    data[-500] ^= 4
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"is (damaged|cut short)"):
        image_of(path)
    path = save_itk(tmp_path / f"b{suffix}", noise(4, 5, 6), packed=False)
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(DataError, match="is damaged: the header promises 120 bytes of values, the file holds 121"):
        image_of(path)


def test_values_that_are_not_finite_stay(tmp_path):
    array = noise(4, 5, 6).astype(np.float32)
    array[0, 0, :2] = np.nan, np.inf
    for suffix in (".mha", ".nrrd"):
        values = image_of(save_itk(tmp_path / f"a{suffix}", array)).array[0, :2, 0, 0]
        assert np.isnan(values[0]) and np.isinf(values[1])


NRRD = "NRRD0004\ntype: {type}\ndimension: 2\nsizes: {sizes}\nencoding: {encoding}\n{more}\n"
META = "NDims = 2\nDimSize = {sizes}\nElementType = {type}\n{more}ElementDataFile = {file}\n"


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("a.nrrd", NRRD.format(type="uchar", sizes="90000 90000", encoding="raw", more=""), "promises 8100000000 bytes"),
        ("a.nrrd", NRRD.format(type="uchar", sizes="2 0", encoding="raw", more=""), "declares the sizes '2 0'"),
        ("a.nrrd", NRRD.format(type="uchar", sizes="2 x", encoding="raw", more=""), "header that cannot be read"),
        ("a.nrrd", NRRD.format(type="block", sizes="2 2", encoding="raw", more=""), "holds values of type block"),
        ("a.nrrd", NRRD.format(type="uchar", sizes="2 2", encoding="bzip2", more=""), "is packed as bzip2"),
        ("a.nrrd", NRRD.format(type="uchar", sizes="2 2", encoding="raw", more="data file: /etc/x\n"), "in another file"),
        ("a.nrrd", NRRD.format(type="uchar", sizes="2 2", encoding="raw", more="byte skip: 9\n"), "apart from its header"),
        ("a.nrrd", "NRRD0004\ntype: uchar\n", "its header does not end"),
        ("a.mha", META.format(type="MET_UCHAR", sizes="2 2", file="../x.raw", more=""), r"in another file \(\.\./x\.raw"),
        ("a.mha", META.format(type="MET_UCHAR", sizes="2 2", file="LOCAL", more="BinaryData = False\n"), "as text"),
        ("a.mha", META.format(type="MET_STRING", sizes="2 2", file="LOCAL", more=""), "of type MET_STRING"),
        ("a.mha", META.format(type="MET_UCHAR", sizes="2 2 2", file="LOCAL", more=""), "the sizes '2 2 2' for 2 axes"),
        ("a.mha", META.format(type="MET_UCHAR", sizes="2 2", file="LOCAL", more="CompressedData = Yes\n"), "neither"),
        ("a.mha", META.format(type="MET_UCHAR", sizes="2 2", file="LOCAL", more="CompressedData = True\n"), "datasize"),
        ("a.mha", "this is\na letter", "is not a MetaImage file"),
    ],
)  # fmt: skip
def test_headers_that_promise_what_is_not_there(tmp_path, name, text, fault):
    (tmp_path / name).write_bytes(text.encode() + bytes(4))
    with pytest.raises(DataError, match=fault):
        image_of(tmp_path / name)


def test_a_header_without_spacing_is_in_pixels(tmp_path):
    (tmp_path / "a.nrrd").write_bytes(
        NRRD.format(type="uchar", sizes="2 3", encoding="raw", more="").encode() + bytes(6)
    )
    volume = image_of(tmp_path / "a.nrrd")
    assert (volume.unit, volume.spacing, volume.affine, volume.size) == ("px", (1.0, 1.0), None, (2, 3))


def test_bytes_of_either_order(tmp_path):
    head = NRRD.format(type="short", sizes="2 3", encoding="gzip", more="endian: big\n")
    (tmp_path / "a.nrrd").write_bytes(head.encode() + gzip.compress(struct.pack(">6h", *range(6))))
    packed = zlib.compress(struct.pack(">6h", *range(6)))
    more = f"CompressedData = True\nCompressedDataSize = {len(packed)}\nBinaryDataByteOrderMSB = True\n"
    head = META.format(type="MET_SHORT", sizes="2 3", file="LOCAL", more=more)
    (tmp_path / "a.mha").write_bytes(head.encode() + packed)
    for name in ("a.nrrd", "a.mha"):
        assert image_of(tmp_path / name).array[0].ravel(order="F").tolist() == list(range(6))


def test_without_the_extra_its_name_is_told(tmp_path, monkeypatch):
    path = save_itk(tmp_path / "a.mha", noise(4, 5, 6))
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(UsageError, match=r"reading \.mha needs SimpleITK; pip install 'ulna\[itk\]'"):
        image_of(path)
