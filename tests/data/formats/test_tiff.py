"""TIFF: packings, white that is zero, axes, and lengths come as they are meant and go back as they came."""

import struct

import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.data.formats.test_read import image_of, labels_of, noise
from tests.data.quality.test_faults import png_set, shapes
from ulna.data.formats.write import write_labels
from ulna.data.quality.check import check
from ulna.errors import DataError


def lzw(data):
    """As a sequence of codes of nine bits, cleared before they grow."""
    bits, length = 0, 0
    for number, code in enumerate(
        [c for i, b in enumerate(data) for c in ((256, b) if i % 250 == 0 else (b,))] + [257]
    ):
        bits, length = bits << 9 | code, number + 1
    spare = -length * 9 % 8
    return (bits << spare).to_bytes((length * 9 + spare) // 8, "big")


def packed(path, array, *, photometric=1, order="<", predictor=1, tile=None, planar=1, strips=2, bits=None, **tags):
    """A TIFF of LZW, which tifffile does not write: (H, W) or (H, W, samples)."""
    height, width, samples = (*array.shape, 1)[:3]
    kinds = {"u": 1, "i": 2, "f": 3}
    bits = bits or array.dtype.itemsize * 8
    planes = [array] if planar == 1 else [array[..., k] for k in range(samples)]
    parts = []
    for plane in planes:
        rows = -(-height // strips)
        cut = [plane[at : at + rows] for at in range(0, height, rows)]
        if tile:
            padded = np.pad(plane, [(0, -height % tile), (0, -width % tile), *[(0, 0)] * (plane.ndim - 2)])
            places = np.ndindex(len(padded) // tile, padded.shape[1] // tile)
            cut = [padded[y * tile : (y + 1) * tile, x * tile : (x + 1) * tile] for y, x in places]
        for part in cut:
            if predictor == 2:
                part = np.concatenate([part[:, :1], np.diff(part, axis=1)], axis=1)
            data = part.astype(part.dtype.newbyteorder(order)).tobytes()
            if bits == 1:
                data = np.packbits(part, axis=1).tobytes()
            parts.append(lzw(data))
    body, offsets = bytearray(8), []
    for part in parts:
        offsets.append(len(body))
        body += part + b"\0" * (len(part) % 2)
    fields = {256: [width], 257: [height], 258: [bits] * samples, 259: [5], 262: [photometric], 277: [samples]}
    fields |= {284: [planar], 317: [predictor], 339: [kinds[array.dtype.kind]] * samples}
    fields |= {322: [tile], 323: [tile], 324: offsets, 325: [len(p) for p in parts]} if tile else {}
    fields |= {} if tile else {273: offsets, 278: [-(-height // strips)], 279: [len(p) for p in parts]}
    fields |= {int(tag[1:]): [value] for tag, value in tags.items()}
    entries = b""
    for tag, values in sorted(fields.items()):
        at = values[0]
        if len(values) > 1:
            at = len(body)
            body += struct.pack(f"{order}{len(values)}I", *values)
        entries += struct.pack(f"{order}HHII", tag, 4, len(values), at)
    body[:8] = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", len(body))
    path.write_bytes(bytes(body) + struct.pack(f"{order}H", len(fields)) + entries + bytes(4))
    return path


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("options", [{}, {"predictor": 2}, {"tile": 16}, {"tile": 16, "predictor": 2}])
@pytest.mark.parametrize(
    ("dtype", "samples"),
    [("u1", 1), ("u2", 1), ("u2", 3), ("u2", 4), ("i1", 1), ("i2", 1), ("u4", 1), ("f4", 1), ("f4", 2)],
)
def test_packed_values_are_those_that_were_stored(tmp_path, dtype, samples, order, options):
    """Through a decoder that knows colours of 8 bits only."""
    shape = (20, 24) if samples == 1 else (20, 24, samples)
    array = np.random.default_rng(0).integers(0, 60000, shape).astype(np.uint16).astype(dtype)
    if dtype[0] == "f" and "predictor" in options:
        pytest.skip("differences of real values are another predictor")
    path = packed(tmp_path / "a.tif", array, photometric=2 if samples == 3 else 1, order=order, **options)
    stored = array[None] if samples == 1 else np.moveaxis(array, -1, 0)
    read = image_of(path).array
    assert read.dtype == array.dtype and np.array_equal(read, stored)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "group4"])
def test_every_page_of_a_packed_stack_is_read(tmp_path, compression):
    pages = [noise(300, 400, high=255) + n for n in range(3)]
    if compression == "group4":
        pages = [page > 100 for page in pages]
    first, *others = [Image.fromarray(page) for page in pages]
    first.save(tmp_path / "a.tif", save_all=True, append_images=others, compression=compression)
    assert np.array_equal(image_of(tmp_path / "a.tif").array[0], np.stack(pages))


def test_packed_planes_and_bits_are_those_that_were_stored(tmp_path):
    colours = noise(20, 24, 3, high=60000, dtype=np.uint16)
    planes = image_of(packed(tmp_path / "a.tif", colours, photometric=2, planar=2))
    assert np.array_equal(planes.array, np.moveaxis(colours, -1, 0))
    bits = (noise(20, 21) > 100).astype(np.uint8)
    assert np.array_equal(labels_of(packed(tmp_path / "b.tif", bits, bits=1)).array[0], bits)


def test_packed_values_are_not_turned_twice(tmp_path):
    array = noise(20, 24, high=60000, dtype=np.uint16)
    assert np.array_equal(image_of(packed(tmp_path / "a.tif", array, t274=3)).array[0], array[::-1, ::-1])
    Image.fromarray(noise(9, 12) > 100).save(tmp_path / "fax.tif", compression="group4", tiffinfo={274: 3})
    assert np.array_equal(labels_of(tmp_path / "fax.tif").array[0], (noise(9, 12) > 100)[::-1, ::-1])


def test_what_cannot_be_unpacked_exactly_is_refused(tmp_path):
    path = packed(tmp_path / "a.tif", noise(20, 24), predictor=3)
    with pytest.raises(DataError, match=r"is packed as LZW, which is not read with .*; save it without compression"):
        image_of(packed(path, noise(20, 24), bits=4))
    Image.fromarray(noise(20, 24)).save(tmp_path / "jpeg.tif", compression="jpeg")
    assert image_of(tmp_path / "jpeg.tif").size == (20, 24)
    with pytest.raises(DataError, match="is packed as JPEG, which does not keep label values"):
        labels_of(tmp_path / "jpeg.tif")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}])
def test_white_is_the_largest_value_of_an_image(tmp_path, dtype, options):
    array = noise(6, 5).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="miniswhite", **options)
    volume = image_of(tmp_path / "a.tif")
    assert volume.array.dtype == dtype and np.array_equal(volume.array[0], np.iinfo(dtype).max - array)
    assert volume.meta.notes == ("says that white is zero; read as shown, white is the largest value",)
    assert np.array_equal(image_of(packed(tmp_path / "b.tif", array, photometric=0)).array, volume.array)


def test_class_numbers_are_numbers_also_where_white_is_zero(tmp_path):
    classes = noise(6, 5, high=4)
    for path in (tmp_path / "a.tif", packed(tmp_path / "b.tif", classes, photometric=0)):
        if path.name == "a.tif":
            tifffile.imwrite(path, classes, photometric="miniswhite")
        volume = labels_of(path)
        assert np.array_equal(volume.array[0], classes)
        assert volume.meta.notes == ("says that white is zero; the stored values are the classes, 0 is background",)


def test_real_values_are_not_inverted(tmp_path):
    array = noise(6, 5).astype(np.float32)
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="miniswhite")
    volume = image_of(tmp_path / "a.tif")
    assert np.array_equal(volume.array[0], array) and "means nothing for float32" in volume.meta.notes[0]


def test_frames_that_are_no_stack_are_refused(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for number in range(3):
            file.write(noise(6, 5) + number)
    with pytest.raises(DataError, match="holds 3 pictures of 6 x 5 that are no stack; save them as one stack"):
        image_of(tmp_path / "a.tif")
    with tifffile.TiffWriter(tmp_path / "b.tif") as file:
        file.write(noise(6, 5), photometric="minisblack")
        file.write(noise(6, 5, 3), photometric="rgb")
    with pytest.raises(DataError, match="holds 2 pictures of 6 x 5 that are no stack; save them as one stack"):
        image_of(tmp_path / "b.tif")
    with tifffile.TiffWriter(tmp_path / "c.tif") as file:
        file.write(noise(60, 50), photometric="minisblack")
        file.write(noise(6, 5), photometric="minisblack")
    assert image_of(tmp_path / "c.tif").meta.notes == ("holds 2 pictures, the first is read",)


def test_pages_that_mean_something_else_are_found(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise(3, 40, 50), photometric="minisblack", compression="zlib")
    with tifffile.TiffFile(path) as file:
        place = file.pages[2].tags["PhotometricInterpretation"].valueoffset
    data = bytearray(path.read_bytes())
    data[place] = 0
    path.write_bytes(data)
    with pytest.raises(DataError, match="page 3 does not agree with the first"):
        image_of(path)


@pytest.mark.parametrize("kind", ["imagej", "ome"])
def test_a_run_along_time_is_told_and_stays_one(tmp_path, kind):
    array = noise(4, 6, 5)
    suffix = "ome.tif" if kind == "ome" else "tif"
    tifffile.imwrite(
        tmp_path / f"a.{suffix}", array, metadata={"axes": "TYX"}, photometric="minisblack", **{kind: True}
    )
    volume = image_of(tmp_path / f"a.{suffix}")
    assert volume.array.shape == (1, 4, 6, 5)
    assert "has 4 pictures along time, read as depth; where they are none, save one a file" in volume.meta.notes
    with tifffile.TiffFile(write_labels(tmp_path / "m", array > 100, volume)) as file:
        assert file.series[0].axes == "TYX"
    with tifffile.TiffFile(write_labels(tmp_path / "k", np.stack([array > 100] * 2), volume)) as file:
        assert file.series[0].axes == "TCYX"


@pytest.mark.parametrize(
    ("axes", "shape", "read", "told"),
    [
        ("ZYX", (4, 6, 5), (1, 4, 6, 5), False),
        ("CYX", (2, 6, 5), (2, 6, 5), False),
        ("TCYX", (4, 2, 6, 5), (2, 4, 6, 5), True),
        ("ZCYX", (4, 2, 6, 5), (2, 4, 6, 5), False),
        ("TYX", (1, 6, 5), (1, 6, 5), False),
    ],
)
def test_axes_by_their_names(tmp_path, axes, shape, read, told):
    tifffile.imwrite(tmp_path / "a.tif", noise(*shape), imagej=True, metadata={"axes": axes})
    volume = image_of(tmp_path / "a.tif")
    assert volume.array.shape == read and any("along time" in note for note in volume.meta.notes) == told
    tifffile.imwrite(tmp_path / "b.tif", noise(2, 3, 6, 5), imagej=True, metadata={"axes": "TZYX"})
    with pytest.raises(DataError, match="has the axes TZYX of"):
        image_of(tmp_path / "b.tif")


def test_check_tells_of_time_in_tiff(tmp_path):
    for number in range(4):
        for folder, array in (("images", noise(4, 24, 20) + number), ("labels", np.stack([shapes((24, 20))] * 4))):
            (tmp_path / folder).mkdir(exist_ok=True)
            tifffile.imwrite(tmp_path / folder / f"c{number}.tif", array, imagej=True, metadata={"axes": "TYX"})
    assert any("4 cases, for example c0: has 4 pictures along time" in note for note in check(tmp_path).notes)


@pytest.mark.parametrize("unit", ["um", "µm", "mm", "inch", "pixel", "nm", "meter", "micrometre"])
@pytest.mark.parametrize("spacing", [None, 2.0])
def test_unit_and_resolution_of_imagej_go_back_as_they_came(tmp_path, unit, spacing):
    about = {"axes": "ZYX", "unit": unit.replace("µ", "\\u00B5"), **({"spacing": spacing} if spacing else {})}
    tifffile.imwrite(tmp_path / "a.tif", noise(4, 6, 5), imagej=True, resolution=(2, 4), metadata=about)
    volume = image_of(tmp_path / "a.tif")
    assert (volume.unit == "mm") == (spacing is not None and unit not in ("inch", "pixel"))
    mask = write_labels(tmp_path / "m", noise(4, 6, 5) > 100, volume)
    with tifffile.TiffFile(tmp_path / "a.tif") as one, tifffile.TiffFile(mask) as other:
        for name in ("unit", "spacing"):
            assert other.imagej_metadata.get(name) == one.imagej_metadata.get(name)
        assert other.pages[0].resolution == one.pages[0].resolution == (2, 4)
        assert other.pages[0].resolutionunit == one.pages[0].resolutionunit
    assert labels_of(mask).spacing == volume.spacing


def test_the_plane_of_an_ome_stack_keeps_its_size(tmp_path):
    sizes = {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.25, "axes": "ZYX"}
    tifffile.imwrite(tmp_path / "a.ome.tif", noise(4, 6, 5), ome=True, photometric="minisblack", metadata=sizes)
    volume = image_of(tmp_path / "a.ome.tif")
    assert volume.unit == "px"
    with tifffile.TiffFile(write_labels(tmp_path / "m", volume.array[0] > 100, volume)) as file:
        assert file.imagej_metadata["unit"] == "um" and file.pages[0].resolution == pytest.approx((2, 4))


def test_centimetres_go_back_as_centimetres(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", noise(6, 5), resolution=(20000, 10000), resolutionunit="CENTIMETER")
    volume = image_of(tmp_path / "a.tif")
    mask = write_labels(tmp_path / "m", volume.array[0] > 100, volume)
    with tifffile.TiffFile(mask) as file:
        assert file.pages[0].resolution == (20000, 10000) and file.pages[0].resolutionunit == 3
    assert labels_of(mask).unit == "mm" and np.allclose(labels_of(mask).spacing, volume.spacing)


def test_a_strip_that_grows_beyond_its_header_is_stopped(tmp_path):
    import zlib

    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise(64, 64), compression="zlib", rowsperstrip=64)
    with tifffile.TiffFile(path) as file:
        tags = file.pages[0].tags
        places = [tags[name].valueoffset for name in ("StripOffsets", "StripByteCounts")]
    strip = zlib.compress(bytes(200_000_000), 9)
    data = bytearray(path.read_bytes())
    for place, value in zip(places, (len(data), len(strip)), strict=True):
        struct.pack_into("<I", data, place, value)
    path.write_bytes(bytes(data) + strip)
    with pytest.raises(DataError, match="a strip unpacks to more than its header declares"):
        image_of(path)


def test_animated_png_is_refused(tmp_path):
    frames = [Image.fromarray(noise(24, 20) + n) for n in range(3)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match="is an animation of 3 pictures; save each as a file of its own"):
        image_of(tmp_path / "a.png")
    root = png_set(tmp_path / "set") if (tmp_path / "set").mkdir() is None else None
    frames[0].save(root / "images" / "c1.gif", save_all=True, append_images=frames[1:])
    assert any("'.gif', which is not read" in problem.what for problem in check(root).problems)


def test_a_grey_mask_in_an_rgb_tiff_is_one_map(tmp_path):
    """As CVC-ClinicDB has them; three maps that are no colours stay three classes."""
    grey = np.repeat(shapes((24, 20), 255)[..., None], 3, axis=2)
    for number in range(2):
        for folder, array in (("images", noise(24, 20, 3)), ("labels", grey)):
            (tmp_path / folder).mkdir(exist_ok=True)
            tifffile.imwrite(
                tmp_path / folder / f"{number}.tif", array + number * (folder == "images"), photometric="rgb"
            )
    report = check(tmp_path)
    assert report.ok and report.labels.foreground == ("foreground",)
    image = image_of(tmp_path / "images" / "0.tif")
    maps = np.repeat(shapes((24, 20))[None], 3, axis=0)
    assert not labels_of(write_labels(tmp_path / "maps", maps, image)).meta.colour
