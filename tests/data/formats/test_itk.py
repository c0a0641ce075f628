""".mha and .nrrd: values and geometry as SimpleITK reads and writes them, every byte counted.

Arrays are compared bit by bit: their values are copied in another order of axes and never computed with, so they are the same on
every processor. Geometry, which is computed, has a tolerance (`same_geometry`).
"""

import gzip
import struct
import zlib

import numpy as np
import pytest

from ulna.data.formats.read import read_image, read_labels
from ulna.data.formats.source import Source
from ulna.data.formats.write import write_image, write_labels, write_probabilities
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
        ("a.mha", META.format(type="MET_UCHAR", sizes="2 2", file="LOCAL", more="CompressedData = True\n"), "not state CompressedDataSize"),
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


DTYPES = ("u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8")
TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def drawn(rng):
    """An image of SimpleITK with any size, type, number of channels and place, 2D and 3D."""
    dims, channels = int(rng.integers(2, 4)), int(rng.choice([1, 1, 2, 3, 4]))
    shape = (*rng.integers(2, 6, dims), *([channels] if channels > 1 else []))
    array = (rng.normal(0, 50, shape) if rng.random() < 0.3 else rng.integers(0, 120, shape)).astype(rng.choice(DTYPES))
    image = sitk.GetImageFromArray(array, isVector=channels > 1)
    turn = np.linalg.qr(rng.normal(size=(dims, dims)))[0]  # oblique, half of them mirrored
    turn = turn if rng.random() < 0.7 else np.eye(dims)[rng.permutation(dims)] * rng.choice([-1, 1], dims)
    image.SetDirection(turn.ravel().tolist())
    image.SetSpacing(np.exp(rng.uniform(-4, 3, dims)).tolist())
    image.SetOrigin(rng.normal(0, 300, dims).tolist())
    return image


def affine_of(image):
    """Voxel index -> RAS millimetres, of an image of SimpleITK."""
    dims, affine = image.GetDimension(), np.eye(4)
    affine[:dims, :dims] = np.reshape(image.GetDirection(), (dims, dims)) * image.GetSpacing()
    affine[:dims, 3] = image.GetOrigin()
    return TO_RAS @ affine


def values_of(image):
    """(C, *S) of an image of SimpleITK, the axes in the order of the file."""
    array = sitk.GetArrayFromImage(image)
    array = np.moveaxis(array, -1, 0) if image.GetNumberOfComponentsPerPixel() > 1 else array[None]
    return array.transpose(0, *reversed(range(1, array.ndim)))


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
def test_what_simpleitk_writes_is_read_as_simpleitk_reads_it(tmp_path, suffix):
    for seed in range(60):
        rng = np.random.default_rng(seed)
        image = drawn(rng)
        sitk.WriteImage(image, str(tmp_path / f"a{suffix}"), bool(rng.integers(2)))
        volume, again = image_of(tmp_path / f"a{suffix}"), sitk.ReadImage(str(tmp_path / f"a{suffix}"))
        expected = values_of(image)
        expected = expected.astype(np.float32) if expected.dtype.kind == "f" else expected
        assert volume.array.dtype == expected.dtype and np.array_equal(volume.array, expected)
        # NRRD stores direction times spacing, which is taken apart again: float64, a few roundings
        np.testing.assert_allclose(volume.affine, affine_of(again), rtol=1e-14, atol=1e-14)
        np.testing.assert_allclose(volume.spacing, image.GetSpacing(), rtol=1e-6)  # told with seven digits


def header_of(path):
    """The lines of a header, without the length of what follows."""
    data = path.read_bytes()
    end = b"LOCAL\n" if path.suffix == ".mha" else b"\n\n"
    head = data[: data.index(end) + len(end)].decode("ascii")
    return [line for line in head.splitlines() if not line.startswith("CompressedDataSize")]


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
def test_what_is_written_is_what_simpleitk_writes(tmp_path, suffix):
    """The header line by line, and image and geometry as SimpleITK reads them; also for the maps of several classes."""
    for seed in range(60):
        rng = np.random.default_rng(seed)
        sitk.WriteImage(drawn(rng), str(tmp_path / f"a{suffix}"))
        volume, original = image_of(tmp_path / f"a{suffix}"), sitk.ReadImage(str(tmp_path / f"a{suffix}"))
        classes = int(rng.integers(1, 4))
        maps = rng.integers(0, [2, 9, 999][seed % 3], (classes, *volume.size))
        masks = write_labels(tmp_path / "out" / "mask", maps if classes > 1 else maps[0], volume)
        for path, expected in ((write_image(tmp_path / "out" / "image", volume), volume.array), (masks, maps)):
            read = sitk.ReadImage(str(path))
            assert np.array_equal(values_of(read), expected)
            np.testing.assert_allclose(affine_of(read), affine_of(original), rtol=1e-14, atol=1e-14)
            if suffix == ".mha":
                assert (read.GetSpacing(), read.GetOrigin(), read.GetDirection()) == (
                    original.GetSpacing(), original.GetOrigin(), original.GetDirection())  # fmt: skip
            geometry = volume.meta.stored.geometry
            small = expected.astype(read_labels(Source(path)).array.dtype if path == masks else expected.dtype)
            array = np.moveaxis(small, 0, -1).transpose(*reversed(range(volume.spatial_dims)), -1)
            image = sitk.GetImageFromArray(array if len(expected) > 1 else array[..., 0], isVector=len(expected) > 1)
            image.SetOrigin(geometry.origin.tolist())
            image.SetSpacing(geometry.spacing.tolist())
            image.SetDirection(geometry.direction.ravel().tolist())
            sitk.WriteImage(image, str(tmp_path / f"theirs{suffix}"), True)
            assert header_of(path) == header_of(tmp_path / f"theirs{suffix}")


def test_masks_are_packed_as_simpleitk_packs_them(tmp_path):
    labels = np.random.default_rng(0).integers(0, 3, (30, 25, 20)).astype(np.uint8).repeat(2, 0).repeat(2, 1)
    image = sitk.GetImageFromArray(labels.transpose())
    for suffix in (".mha", ".nrrd"):
        sitk.WriteImage(image, str(tmp_path / f"a{suffix}"), True)
        written = write_labels(tmp_path / "mask", labels, image_of(tmp_path / f"a{suffix}"))
        assert written.stat().st_size == pytest.approx((tmp_path / f"a{suffix}").stat().st_size, rel=0.2)


FIELDS = """ObjectType = Image
Comment = made: by hand = so
NDims = 3
{}
ElementType = MET_UCHAR
ElementDataFile = LOCAL
"""
NRRD_3D = "NRRD0005\ntype: uchar\ndimension: {}\n{}\nencoding: raw\n\n"
TURN = "0 0 1 1 0 0 0 1 0"
VECTORS = "(0.6,0.8,0) (-1.6,1.2,0) (0,0,3)"


@pytest.mark.parametrize(
    ("name", "head"),
    [
        *[("a.mha", FIELDS.format(f"DimSize = 2 3 4\n{lines}")) for lines in (
            f"TransformMatrix = {TURN}\nOffset = 1 -2 3.5e1\nElementSpacing = .5 2. 3", f"Rotation = {TURN}\nPosition = 1 2 3",
            f"Orientation = {TURN}\nOrigin = 1 2 3\nCenterOfRotation = 9 9 9", "ImagePosition = 1 2 3\nElementSize = 1 2 3",
            "ElementSize = 1 2 3\nElementSpacing = 3 4 5\nAnatomicalOrientation = LPS", "Offset: 1 2 3", "Modality = MET_MOD_CT",
            f"Offset = 1 2 3\nOrigin = 1 2 3\nTransformMatrix = {TURN}\nRotation = {TURN}", "elementfoo = 1",
        )],
        ("a.mha", FIELDS.format("ElementNumberOfChannels = 3\nDimSize = 2 2 2")),
        ("a.mha", FIELDS.replace("NDims = 3", "NDims = 4").format("DimSize = 1 2 3 4\nElementSpacing = 1 2 3 4")),
        *[("a.nrrd", NRRD_3D.format(3, f"{space}\nsizes: 2 3 4\nspace directions: {VECTORS}\nspace origin: (1,2,3)")) for space in (
            "space: LPS", "space: right-anterior-superior", "space: RAS", "space: scanner-xyz", "space dimension: 3",
            "space: Left Posterior Superior")],
        *[("a.nrrd", NRRD_3D.format(3, f"sizes: 2 3 4\n{lines}")) for lines in (
            "spacings: 1 2 3\nthicknesses: 9 9 nan", "spacings: 1 2 3\naxis mins: 4 5 6", "axismins: 4 5 6\nspacings: 1 2 3\n"
            "centerings: node cell none", "thicknesses: 1 2 3", "kinds: space domain time", 'units: "mm" "mm" "mm"\nspacings: 1 2 3',
            "key:=value: here\nkey:=again\n# a comment\ncontent: of it\nlabels: \"x\" \"a \\\" y\" \"\"")],
        ("a.nrrd", NRRD_3D.format(4, f"space: LPS\nsizes: 3 2 2 2\nkinds: RGB-color domain domain domain\nspace directions: none {VECTORS}")),
        ("a.nrrd", NRRD_3D.format(4, f"space: LPS\nsizes: 2 2 2 3\nkinds: domain domain domain list\nspace directions: {VECTORS} none")),
        ("a.nrrd", NRRD_3D.format(4, "sizes: 2 3 2 2\nspacings: 1 nan 2 3\nkinds: domain vector domain domain")),
        ("a.nrrd", NRRD_3D.format(4, "sizes: 1 2 3 4\nspacings: 1 2 3 4")),
        ("a.nrrd", NRRD_3D.format(3, "space dimension: 2\nsizes: 3 4 2\nkinds: 3-color space space\n"
                                  "space directions: none (0.6, 0.8) (-0.8,0.6)")),
    ],
)  # fmt: skip
def test_headers_by_hand_mean_what_they_mean_to_simpleitk(tmp_path, name, head):
    (tmp_path / name).write_bytes(head.encode() + bytes(range(1, 25)))
    volume, image = read_image([Source(tmp_path / name)], 3), sitk.ReadImage(str(tmp_path / name))
    values, geometry = values_of(image), volume.meta.stored.geometry
    assert np.array_equal(volume.array, np.moveaxis(values[0], 3, 0) if values.ndim == 5 else values)
    full = image.GetDimension()
    dims = min(full, 3)
    direction = np.reshape(image.GetDirection(), (full, full))[:dims, :dims]
    for own, theirs in zip(geometry, (image.GetOrigin()[:dims], image.GetSpacing()[:dims], direction), strict=True):
        np.testing.assert_allclose(own, theirs, rtol=1e-14, atol=1e-14)
    if volume.affine is not None and dims == full:
        np.testing.assert_allclose(volume.affine, affine_of(image), rtol=1e-14, atol=1e-14)


WHOLE = {
    "a.mha": ["NDims = 3", "DimSize = 2 3 4", "BinaryData = True", f"TransformMatrix = {TURN}", "Offset = 1 -2 3.5",
              "CenterOfRotation = 0 0 0", "ElementSpacing = 0.5 2 3", "ElementSize = 1 1 1", "AnatomicalOrientation = RAI",
              "CompressedData = False", "ElementNumberOfChannels = 1", "ElementType = MET_UCHAR", "ElementDataFile = LOCAL"],
    "a.nrrd": ["NRRD0005", "type: uchar", "dimension: 4", "space: RAS", "sizes: 1 2 3 4", f"space directions: none {VECTORS}",
               "kinds: vector domain domain domain", "space origin: (1,-2,3.5)", 'space units: "mm" "mm" "mm"', "key:=value",
               'labels: "" "x" "y" "z"', "thicknesses: nan 1 1 1", "centerings: none cell cell node", "encoding: raw", "", ""],
    "b.nrrd": ["NRRD0005", "type: uchar", "dimension: 3", "sizes: 2 3 4", "spacings: 0.5 2 3", "axis mins: 1 -2 3.5", "encoding: raw",
               "kinds: space domain time", "centerings: none cell node", 'units: "mm" "mm" "mm"', "", ""],
}  # fmt: skip
WORDS = [
    "1",
    "-2",
    "0",
    "2.5",
    "nan",
    "none",
    "inf",
    "1e400",
    "(1,0,0)",
    "x",
    "True",
    "vector",
    "domain",
    "cell",
    '"mm"',
    "LPS",
]


def changed(lines, rng):
    """A header with one line or one word taken out, doubled, put elsewhere or exchanged."""
    lines, at = list(lines), int(rng.integers(len(lines) - 2))
    words, word = lines[at].split(" "), str(rng.choice(WORDS))
    place = int(rng.integers(len(words)))
    kind = rng.integers(6)
    if kind == 0:
        del lines[at]
    elif kind == 1:
        lines.insert(int(rng.integers(len(lines) - 2)), lines[at])
    elif kind == 2:
        lines.insert(int(rng.integers(len(lines) - 2)), lines.pop(at))
    else:
        words[place : place + (kind > 3)] = [] if kind == 5 else [word]
        lines[at] = " ".join(words)
    return lines


@pytest.mark.parametrize("name", WHOLE)
def test_a_changed_header_is_refused_or_read_as_simpleitk_reads_it(tmp_path, name):
    path, read = tmp_path / name, 0
    for seed in range(250):
        lines = changed(WHOLE[name], np.random.default_rng(seed)) if seed else WHOLE[name]
        path.write_bytes("\n".join(lines).encode() + (b"\n" if name == "a.mha" else b"") + bytes(range(24)))
        try:
            volume = read_image([Source(path)], 3)
        except DataError as error:
            assert error.problems[0].remedy
            continue
        read += 1
        image = sitk.ReadImage(str(path))  # what SimpleITK refuses is not read
        assert np.array_equal(volume.array, values_of(image)), lines
        for own, theirs in zip(
            volume.meta.stored.geometry, (image.GetOrigin(), image.GetSpacing(), image.GetDirection()), strict=True
        ):
            np.testing.assert_allclose(own.ravel(), theirs, rtol=1e-14, atol=1e-14, err_msg=str(lines))
    assert 25 < read < 200
