"""Every class of fault, planted by hand in a sound data set: found, with its file and what to do; nothing else is told."""

import gzip
import io
import json
import os
import socket
import struct
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tifffile
from PIL import Image

from ulna.data.quality.check import check

SHAPE = (9, 10, 11)


def random(seed, *shape, high=200):
    return np.random.default_rng(seed).integers(0, high, shape).astype(np.uint8)


def shapes(shape, value=1, at=2):
    labels = np.zeros(shape, np.uint8)
    labels[at : at + 3, 1:6] = value
    return labels


def png_set(root):
    for number in range(4):
        for folder, array in (("images", random(number, 24, 20)), ("labels", shapes((24, 20), at=2 + number))):
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(root / folder / f"c{number}.png")
    return root


def nifti_set(root):
    for number in range(3):
        for folder, array in (("images", random(number, *SHAPE)), ("labels", shapes(SHAPE, at=1 + number))):
            (root / folder).mkdir(parents=True, exist_ok=True)
            nifti(root / folder / f"c{number}.nii.gz", array)
    return root


def npz_set(root):
    for name, seed in (("train", 0), ("val", 10)):
        images = np.stack([random(seed + row, 24, 20) for row in range(3)])
        np.savez_compressed(root / f"{name}.npz", images=images, masks=np.stack([shapes((24, 20), at=2)] * 3))
    return root


def nifti(path, array, affine=None, **fields):
    image = nib.Nifti1Image(array, np.diag([1.0, 1, 2, 1]) if affine is None else np.asarray(affine, float))
    image.set_qform(image.affine if fields.pop("qform", None) is None else None, code=1)
    image.set_sform(image.affine, code=1)
    image.header.set_xyzt_units("mm")
    image.to_filename(path)
    if fields:
        patch_nifti(path, **fields)


OFFSETS = {"scl_slope": (112, "f"), "pixdim": (76, "8f"), "srow_x": (280, "4f"), "srow_z": (312, "4f"), "dim": (40, "8h"),
           "qform_code": (252, "h"), "sform_code": (254, "h"), "qoffset_x": (268, "f"), "quatern_b": (256, "f"),
           "xyzt_units": (123, "B"), "vox_offset": (108, "f")}  # fmt: skip


def patch_nifti(path, **fields):
    """Write header fields that nibabel would mend."""
    data = bytearray(gzip.decompress(path.read_bytes()))
    for name, value in fields.items():
        at, kind = OFFSETS[name]
        struct.pack_into("<" + kind, data, at, *np.atleast_1d(value).tolist())
    path.write_bytes(gzip.compress(bytes(data)))


def image(array, name="c1.png", folder="images", **options):
    def plant(root):
        picture = array if isinstance(array, Image.Image) else Image.fromarray(array)
        for old in (root / folder).glob(name.split(".")[0] + ".*"):
            old.unlink()
        picture.save(root / folder / name, **options)

    return plant


def label(array, name="c1.png", **options):
    return image(array, name, "labels", **options)


def volume(array, affine=None, folder="images", **fields):
    return lambda root: nifti(root / folder / "c1.nii.gz", array, affine, **fields)


def every_volume(make, folder="images", **fields):
    return lambda root: [nifti(root / folder / f"c{n}.nii.gz", make(n), **fields) for n in range(3)]


def every_label(make):
    return lambda root: [Image.fromarray(make(n)).save(root / "labels" / f"c{n}.png") for n in range(4)]


def every_image(make, name="c{}.png", **options):
    def plant(root):
        for number in range(4):
            (root / "images" / f"c{number}.png").unlink()
            make(number).save(root / "images" / name.format(number), **options)

    return plant


def palette(number):
    picture = Image.fromarray(random(number, 24, 20, high=3)).convert("P")
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    return picture


def colours(number, channels, mode):
    return Image.merge(mode, [Image.fromarray(random(number * 4 + n, 24, 20)) for n in range(channels)])


def declared(name, content):
    def plant(root):
        text = content if isinstance(content, str) else json.dumps(content)
        (root / f"{name}.json").write_text(text, encoding="utf-8")

    return plant


def rename(old, new):
    return lambda root: (root / old).rename(root / new)


def both(new):
    return lambda root: [(root / f / "c1.png").rename(root / f / f"{new}.png") for f in ("images", "labels")]


def written(path, content):
    def plant(root):
        data = content((root / path).read_bytes()) if callable(content) else content
        (root / path).unlink(missing_ok=True)
        (root / path).write_bytes(data)

    return plant


def link(path, target):
    def plant(root):
        leads_to = target(root) if callable(target) else target
        (root / path).unlink(missing_ok=True)
        (root / path).symlink_to(leads_to)

    return plant


def special(path, make):
    def plant(root):
        (root / path).unlink(missing_ok=True)
        make(root / path)

    return plant


def in_a_socket(path):
    here = Path.cwd()
    os.chdir(path.parent)  # the name of a socket is short
    try:
        server = socket.socket(socket.AF_UNIX)
        server.bind(path.name)
        server.close()
    finally:
        os.chdir(here)


def outside(root):
    target = root.parent / "elsewhere.png"
    (root / "images" / "c1.png").rename(target)
    return target


def several(*plants):
    return lambda root: [plant(root) for plant in plants]


def flip(at):
    def change(data):
        data = bytearray(data)
        data[at] ^= 16
        return bytes(data)

    return change


def png_part(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_bomb(width, height):
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    lines = zlib.compress(bytes(10_000_000), 9)
    return b"\x89PNG\r\n\x1a\n" + png_part(b"IHDR", head) + png_part(b"IDAT", lines) + png_part(b"IEND", b"")


def gz_bomb(path, shape, inside):
    head = bytearray(nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)).to_bytes()[:352])
    head[42:48] = struct.pack("<3h", *shape)
    path.write_bytes(gzip.compress(bytes(head) + bytes(inside)))


def bombs(root):
    """A set in which c1, c3, d, e and f unpack to 5 million pixels and more."""
    images = png_set(nifti_set(root)) / "images"
    gz_bomb(images / "c1.nii.gz", (1000, 1000, 5), 5_000_000)
    (images / "c3.png").write_bytes(png_bomb(3000, 3000))
    np.save(images / "d.npy", np.zeros((3000, 2000), np.uint8))
    tifffile.imwrite(images / "e.tif", np.zeros((3000, 2000), np.uint8), compression="zlib")
    Image.fromarray(np.zeros((3000, 2000), np.uint8)).save(images / "f.jpg")
    return root


def jpeg(array):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "JPEG", quality=60)
    return stream.getvalue()


def split(**sets):
    return declared("splits", {"train": ["c0", "c1"], "val": ["c2", "c3"], **sets})


def smooth(seed):
    """A picture with structure, which a photograph has and noise has not."""
    small = random(seed, 8, 8, 3)
    return np.asarray(Image.fromarray(small).resize((96, 96), Image.Resampling.BICUBIC))


def pictures(root):
    for number in range(4):
        Image.fromarray(smooth(number)).save(root / "images" / f"c{number}.png")
        Image.fromarray(shapes((96, 96))).save(root / "labels" / f"c{number}.png")


def near_copy(root):
    pictures(root)
    changed = (smooth(0) * 0.9 + 8 + np.random.default_rng(1).normal(0, 3, (96, 96, 3))).clip(0, 255).astype(np.uint8)
    (root / "images" / "c3.png").unlink()
    (root / "images" / "c3.jpg").write_bytes(jpeg(changed))
    split()(root)


def exact_copy(root):
    pictures(root)
    (root / "images" / "c3.png").unlink()
    Image.fromarray(smooth(0)).save(root / "images" / "c3.bmp")
    split()(root)


def cmyk_tiff(root):
    (root / "images" / "c1.png").unlink()
    tifffile.imwrite(root / "images" / "c1.tif", random(0, 24, 20, 4), photometric="separated")


NAN = random(1, *SHAPE).astype(np.float32)
NAN[0, 0, 0] = np.nan
SHEARED = [[1, 0.2, 0, 0], [0, 1, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]]
MOVED = [[1, 0, 0, 7], [0, 1, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]]
TURNED = [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]]
RGB = np.stack([shapes((24, 20), 255), shapes((24, 20), 128), shapes((24, 20), 0)], axis=-1)
PALETTE = Image.fromarray(shapes((24, 20))).convert("P")
PALETTE.putpalette([0, 0, 0, 255, 0, 0])

# name, data set, plant, words (None: nothing is wrong), whether it is a problem
FAULTS = [
    # the folder
    ("no folder of labels", png_set, rename("labels", "masks_of_bob"), "holds images/ and no labels/ beside it", True),
    ("no folder of images", png_set, rename("images", "pictures"), "holds labels/ and no images/ beside it", True),
    ("no labels of nnU-Net", nifti_set, several(rename("images", "imagesTr"), rename("labels", "masks")), "holds imagesTr/ and no labelsTr/ beside it", True),
    ("nothing known", png_set, several(rename("labels", "a"), rename("images", "b")), "has a layout that is not known", True),
    ("a file in place of a folder", png_set, several(rename("labels", "gone"), written("labels", b"x")), "Not a dir", True),
    ("label missing", png_set, lambda root: (root / "labels/c1.png").unlink(), "has no label map labels/c1.*", True),
    ("image missing", png_set, lambda root: (root / "images/c1.png").unlink(), "has no image images/c1.*", True),
    ("sub-folder", png_set, lambda root: (root / "images/more").mkdir(), "images/ holds 1 folder that is not read", False),
    ("other files", png_set, several(written("images/a.XCF", b"x"), written("images/b.xcf", b"x"), written("images/list", b"x")), "images/ holds files that are not read: 2 .xcf, 1 without extension", False),
    ("one case", png_set, lambda root: [p.unlink() for p in root.glob("*/c[123].png")], "1 labelled case is too few to train", False),
    ("one patient", png_set, declared("groups", {f"c{n}": "p" for n in range(4)}), "all cases belong to one group", False),
    # names
    ("same name, other extension", png_set, lambda root: Image.fromarray(random(1, 24, 20)).save(root / "images/c0.bmp"), "has the name of c0.", True),
    ("upper and lower case", png_set, both("C0"), "differs from 'C0' in upper and lower case only", True),
    ("unicode forms", png_set, several(both("e\u0301"), image(random(5, 24, 20), "\u00e9.png")), "has the name of", True),
    ("long", png_set, both("n" * 230), "has a name of 230 bytes", True),
    ("space at the end", png_set, both("c1 "), "begins or ends with a space or a dot", True),
    ("line break", png_set, both("c\n1"), "has the id 'c\\n1', which cannot be a file name", True),
    ("no text", png_set, both("c\udcff1"), "which cannot be a file name", True),
    ("spaces differ", png_set, rename("labels/c1.png", "labels/C 1.png"), "has no label map", True),
    ("ending of a role", png_set, rename("labels/c1.png", "labels/c1_mask.png"), "c1_mask.png is nearly its name", True),
    ("hidden", png_set, rename("images/c1.png", "images/.c1.png"), "has no image images/c1.*", True),
    ("hidden image", png_set, image(random(9, 9, 9), ".d.png"), "1 image, by the name none of the data", False),
    # links and special files
    ("link in a circle", png_set, link("images/c1.png", "c1.png"), "Too many levels of symbolic links", True),
    ("link to nothing", png_set, link("images/c1.png", "/nowhere/x.png"), "is a link to nothing", True),
    ("link outside", png_set, link("images/c1.png", outside), "1 link to files outside the folder", False),
    ("pipe", png_set, special("images/c1.png", os.mkfifo), "is a named pipe, not a file", True),
    ("pipe of labels", png_set, special("labels/c1.png", os.mkfifo), "is a named pipe, not a file", True),
    ("pipe for JSON", png_set, special("dataset.json", os.mkfifo), "is a named pipe, not a file", True),
    ("pipe for splits", png_set, special("splits.json", os.mkfifo), "is a named pipe, not a file", True),
    ("pipe for classes", png_set, special("classes.json", os.mkfifo), "is a named pipe, not a file", True),
    ("link for groups", png_set, link("groups.json", "nothing.json"), "is a link to nothing", True),
    ("folder for an image", png_set, special("images/c1.png", Path.mkdir), "has no image images/c1.*", True),
    ("folder of images in a circle", png_set, lambda root: (root / "more").symlink_to(root), "more/ is not read", False),
    ("pipe for npz", npz_set, special("val.npz", os.mkfifo), "is a named pipe, not a file", True),
    ("socket", png_set, special("images/c1.png", in_a_socket), "is a socket, not a file", True),
    ("device", png_set, link("images/c1.png", "/dev/zero"), "is a device, not a file", True),
    # image and mask
    ("other size", png_set, label(shapes((24, 21))), "has the size (24, 21), its image (24, 20)", True),
    ("transposed", png_set, label(shapes((20, 24))), "has the size (20, 24), its image (24, 20)", True),
    ("other spacing", nifti_set, volume(shapes(SHAPE), np.diag([1, 1, 3, 1]), "labels"), "has the spacing 1 x 1 x 3", True),
    ("other origin", nifti_set, volume(shapes(SHAPE), MOVED, "labels"), "has another orientation or origin", True),
    ("mirrored", nifti_set, volume(shapes(SHAPE), np.diag([-1, 1, 2, 1]), "labels"), "has another orientation or", True),
    ("axes exchanged", nifti_set, volume(shapes(SHAPE), TURNED, "labels"), "has another orientation or origin", True),
    ("image is its mask", png_set, image(shapes((24, 20), at=3)), "is its own label map, value by value", True),
    # label values
    ("beyond the classes", png_set, several(declared("classes", ["a"]), label(shapes((24, 20), 2))), "values 2 do not", True),
    ("gap", png_set, label(shapes((24, 20), 3)), "the label values found are 0, 1, 3", True),
    ("0 and 255", png_set, every_label(lambda n: shapes((24, 20), 255, n)), "0 and 255, read as 0 and 1", False),
    ("255 of some only", png_set, several(label(shapes((24, 20), 255)), label(shapes((24, 20), 2), "c2.png")), "0 and 255, other", True),
    ("0, 1 and 255", png_set, label(np.where(shapes((24, 20), at=8) > 0, 255, shapes((24, 20))).astype(np.uint8)), "0, 1, 255", True),
    ("fractional", nifti_set, volume(shapes(SHAPE) * 0.5, folder="labels"), "fractional label values, such as 0.5", True),
    ("negative", nifti_set, volume(-shapes(SHAPE).astype(np.int16), folder="labels"), "negative label values, down to -1", True),
    ("not finite", nifti_set, volume(NAN, folder="labels"), "label values that are not finite", True),
    ("missing class", png_set, declared("classes", ["a", "b"]), "the class 'b' occurs in no case", False),
    ("all background", png_set, every_label(lambda n: shapes((24, 20), 0)), "no case of 4 has any foreground", True),
    ("one without foreground", png_set, label(shapes((24, 20), 0)), "c1: all background", False),
    ("all foreground", png_set, label(np.ones((24, 20), np.uint8)), "its label map is class 1 everywhere", False),
    ("palette", png_set, label(PALETTE), None, False),
    ("RGB", png_set, label(RGB), "is a colour picture, of 2 colours", True),
    ("RGBA", png_set, label(np.dstack([RGB, np.full((24, 20), 255, np.uint8)])), "is a colour picture, of 2 colours", True),
    ("grey as RGB", png_set, label(np.repeat(shapes((24, 20))[..., None], 3, -1)), None, False),
    ("16 bits", png_set, label(shapes((24, 20)).astype(np.uint16)), None, False),
    ("16 bits of objects", png_set, label(np.arange(480, dtype=np.uint16).reshape(24, 20)), "more than 256 label values", True),
    ("1 bit", png_set, label(shapes((24, 20)) > 0), None, False),
    ("grey values", png_set, label(random(1, 24, 20)), "the label values found are", True),
    ("JPEG", png_set, label(shapes((24, 20), 255), "c1.jpg"), "is a JPEG, which does not keep label values", True),
    ("JPEG under another name", png_set, written("labels/c1.png", jpeg(shapes((24, 20), 255))), "is a JPEG, which", True),
    # images of other kinds
    ("palette image", png_set, every_image(palette), "has a palette, read as colour", False),
    ("RGBA image", png_set, every_image(lambda n: colours(n, 4, "RGBA")), "has an alpha channel, dropped", False),
    ("CMYK", png_set, every_image(lambda n: colours(n, 4, "CMYK"), "c{}.jpg"), "is CMYK, read as RGB", False),
    ("CMYK TIFF", png_set, cmyk_tiff, "is CMYK, the colours of print", True),
    ("16 bits of one", png_set, image(random(1, 24, 20).astype(np.uint16) * 200), "c1: of type uint16, others are not", False),
    ("colour of one", png_set, image(random(1, 24, 20, 3)), "has 3 channels, most cases have 1", True),
    # files
    ("empty", png_set, written("images/c1.png", b""), "is empty (0 bytes)", True),
    ("cut PNG", png_set, written("images/c1.png", lambda d: d[:-20]), "is cut short", True),
    ("cut nii.gz", nifti_set, written("images/c1.nii.gz", lambda d: d[:-12]), "is cut short", True),
    ("cut npz", npz_set, written("val.npz", lambda d: d[:-12]), "is cut short or no npz file", True),
    ("damaged PNG", png_set, written("images/c1.png", flip(60)), "is damaged", True),
    ("damaged nii.gz", nifti_set, written("images/c1.nii.gz", flip(-6)), "is damaged", True),
    ("damaged npz", npz_set, written("val.npz", flip(400)), "Bad CRC-32", True),
    ("text for PNG", png_set, written("images/c1.png", b"<html>404</html>"), "is not a PNG, JPEG or BMP file", True),
    ("PNG for NIfTI", nifti_set, written("images/c1.nii.gz", png_bomb(2, 2)), "is not gzip-compressed", True),
    ("BMP for PNG", png_set, image(random(1, 24, 20), format="BMP"), "is a BMP file under another name", False),
    ("more bytes than voxels", nifti_set, written("images/c1.nii.gz", lambda d: gzip.compress(gzip.decompress(d) + bytes(2000))), "holds 2000 bytes after the voxels", True),
    # values
    ("NaN", nifti_set, volume(NAN), "holds 1 values that are not finite", True),
    ("infinite", nifti_set, volume(np.where(np.isnan(NAN), np.inf, NAN)), "holds 1 values that are not finite", True),
    ("constant", nifti_set, volume(np.full(SHAPE, 7, np.uint8)), "the image is constant, every value is 7, though its label map has foreground", False),
    ("all constant", nifti_set, every_volume(lambda n: np.full(SHAPE, n, np.uint8)), "every image is constant", True),
    # geometry
    ("4D of one", nifti_set, volume(random(1, *SHAPE, 3)), "has 3 channels, most cases have 1", True),
    ("4D of all", nifti_set, every_volume(lambda n: random(n, *SHAPE, 3)), "a fourth axis of 3 is read as channels", False),
    ("time", nifti_set, every_volume(lambda n: random(n, *SHAPE, 3), xyzt_units=10), "3 volumes along time", False),
    ("4D label", nifti_set, volume(np.stack([shapes(SHAPE)] * 2, -1), folder="labels"), "holds 2 label maps", True),
    ("singular", nifti_set, volume(random(1, *SHAPE), srow_x=[1, 0, 2, 0], srow_z=[0, 0, 0, 0]), "has a singular orientation matrix", True),
    ("sheared", nifti_set, several(volume(random(1, *SHAPE), SHEARED, sform_code=1, qform_code=0), volume(shapes(SHAPE), SHEARED, "labels", qform_code=0)), "axes that are not perpendicular (off by 11 degrees)", True),
    ("spacing of zero", nifti_set, volume(random(1, *SHAPE), pixdim=[1, 0, 1, 2, 0, 0, 0, 0], sform_code=0), "has a voxel size of (0", True),
    ("infinite spacing", nifti_set, volume(random(1, *SHAPE), pixdim=[1, np.inf, 1, 2, 0, 0, 0, 0], sform_code=0), "orientation that is not finite", True),
    ("spacing that is not a number", nifti_set, volume(random(1, *SHAPE), srow_x=[np.nan, 0, 0, 0]), "orientation that is not finite", True),
    ("pixdim against affine", nifti_set, volume(random(1, *SHAPE), pixdim=[1, 5, 5, 5, 0, 0, 0, 0], qform_code=0), "header spacing 5 x 5 x 5 differs", False),
    ("sform against qform", nifti_set, volume(random(1, *SHAPE), qoffset_x=30), "its sform and qform disagree", True),
    ("two spaces", nifti_set, volume(random(1, *SHAPE), qoffset_x=30, sform_code=4), "name two different spaces", False),
    ("slope of zero", nifti_set, volume(random(1, *SHAPE), scl_slope=0), "its scaling slope is 0, which is read as no scaling", False),
    ("slope that is not a number", nifti_set, volume(random(1, *SHAPE), scl_slope=np.nan), "its scaling slope is nan", False),
    ("spacing in metres", nifti_set, several(volume(random(1, *SHAPE), np.diag([1e-3, 1e-3, 2e-3, 1])), volume(shapes(SHAPE), np.diag([1e-3, 1e-3, 2e-3, 1]), "labels")), "has a spacing of 0.00126 mm, the others", False),
    ("no orientation", nifti_set, lambda root: [patch_nifti(p, sform_code=0, qform_code=0) for p in root.glob("*/c1*")], "c1: states no orientation (sform and qform code 0)", False),
    ("no orientation anywhere", nifti_set, lambda root: [patch_nifti(p, sform_code=0, qform_code=0) for p in root.glob("*/*.gz")], "3 cases, for example c0: states no orientation", False),
    ("metres", nifti_set, lambda root: [patch_nifti(p, xyzt_units=1) for p in root.glob("*/*.gz")], "3 cases, for example c0: states lengths in metres; they are converted to mm", False),
    ("micrometres", nifti_set, lambda root: [patch_nifti(p, xyzt_units=3) for p in root.glob("*/*.gz")], "states lengths in micrometres; they are converted", False),
    ("no unit", nifti_set, volume(random(1, *SHAPE), xyzt_units=0), "c1: states no unit of length; mm is assumed", False),
    ("data in the header", nifti_set, volume(random(1, *SHAPE), vox_offset=8), "says that its data begin at byte 8, inside the header; byte 352 is used", False),
    ("numTraining of Decathlon", nifti_set, several(rename("images", "imagesTr"), rename("labels", "labelsTr"), declared("dataset", {"numTraining": 9})), "numTraining 9, imagesTr holds 3 cases", False),
    ("numTraining of pairs", png_set, declared("dataset", {"numTraining": 9}), "dataset.json says numTraining 9, images holds 4 cases", False),
    ("numTraining as text", png_set, declared("dataset", {"numTraining": "9"}), "dataset.json says numTraining 9, images holds 4 cases", False),
    ("other axes", nifti_set, several(volume(random(1, *SHAPE), np.diag([-1, -1, 2, 1])), volume(shapes(SHAPE), np.diag([-1, -1, 2, 1]), "labels")), "along other axes than most (2 RAS, 1 LPS)", False),
    # bombs
    ("PNG bomb that lies", png_set, written("images/c1.png", png_bomb(90_000, 90_000)), "declares 90000 x 90000 pixels", True),
    # JSON
    ("broken", png_set, declared("splits", "{'train': ["), "is not valid JSON", True),
    ("deep", png_set, declared("classes", "[" * 100_000), "cannot be read", True),
    ("not UTF-8", png_set, written("classes.json", b'["\xff"]'), "cannot be read", True),
    ("half a character", png_set, declared("classes", '["\\ud800"]'), "cannot be read", True),
    ("a key twice", png_set, declared("splits", '{"train": ["c0"], "val": ["c1"], "train": ["c2"]}'), "'train' stands in one object twice", True),
    ("classes that skip", png_set, declared("classes", {"1": "a", "3": "b"}), "which skip [2]", True),
    ("unknown ids", png_set, split(val=["c2", "c9"]), "`val` names 'c9', which is no case", True),
    ("groups over sets", png_set, several(split(), declared("groups", {"c0": "p", "c2": "p"})), "cases of the group 'p' stand in train and in val", True),
    ("an id in two sets", png_set, split(val=["c0", "c2"]), "'c0' stands in train and in val", True),
    ("channels that are not there", png_set, declared("dataset", {"channel_names": {"0": "a", "1": "b"}}), "has 1 channel, dataset.json names 2", True),
    ("a file outside", png_set, declared("dataset", {"training": [{"image": "../../etc/passwd", "label": "labels/c1.png"}]}), "which lies outside the folder", True),
    ("a file that is not there", png_set, declared("dataset", {"training": [{"image": "images/x.png", "label": "labels/c1.png"}]}), "names images/x.png, which does not exist", True),
    # copies
    ("exact copy in two sets", png_set, exact_copy, "is the same image as c0 of train, and stands in val", True),
    ("near copy in two sets", png_set, near_copy, "is nearly the same image as c0 of train, and stands in val", True),
]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "plant", "words", "problem"), [row[1:] for row in FAULTS], ids=[row[0] for row in FAULTS]
)
def test_a_planted_fault_is_found(tmp_path, make, plant, words, problem):
    root = tmp_path / "data"
    root.mkdir()
    make(root)
    plant(root)
    report = check(root)
    str(report).encode(), json.dumps(report.to_json()).encode()  # what is told can be printed and stored
    if words is None:
        assert report.problems == () and report.notes == ()
    elif problem:
        found = [one for one in report.problems if words in one.what]
        assert found, f"{report}"
        assert all(one.file.startswith(str(tmp_path)) and one.remedy for one in found)
    else:
        assert report.ok and any(words in note for note in report.notes), f"{report}"


@pytest.mark.parametrize("make", [png_set, nifti_set, npz_set])
def test_nothing_is_told_of_a_sound_data_set(tmp_path, make):
    report = check(make(tmp_path))
    assert report.problems == () and report.notes == ()


def test_all_faults_are_told_in_one_run(tmp_path):
    """Thirty cases of three faults each are counted to the last and shown twelve lines a class."""
    root = tmp_path / "data"
    for number in range(30):
        for folder, array in (("images", random(number, 24, 20)), ("labels", shapes((24, 21)))):
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(root / folder / f"c{number}.png")
        os.mkfifo(root / "images" / f"p{number}.png")
        (root / "labels" / f"p{number}.png").write_bytes(b"")
    report = check(root)
    text = str(report)
    assert len(report.problems) == 90
    for words in ("has the size", "is a named pipe", "is empty"):
        assert text.count(words) == 12
    assert text.count("18 more problems of this kind") == 3


def test_bombs_are_refused_before_memory_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr("ulna.data.formats.limits.memory", lambda: 1 << 23)
    root = bombs(tmp_path / "pairs")
    np.savez_compressed(tmp_path / "train.npz", images=np.zeros((5, 1000, 1000), np.uint8))
    told = [*check(root).problems, *check(tmp_path / "train.npz").problems]
    found = [one.file for one in told if "unpacks to" in one.what and "this machine has 0.0 GB of memory" in one.what]
    assert {Path(name).name for name in found} == {"c1.nii.gz", "c3.png", "d.npy", "e.tif", "f.jpg", "train.npz"}


def test_what_goes_on_behind_the_voxels_is_not_read_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr("ulna.data.formats.nifti._MOST_SPARE", 1 << 20)
    root = nifti_set(tmp_path)
    gz_bomb(root / "images" / "c1.nii.gz", SHAPE, 20_000_000)
    assert any("holds more than 1048576 bytes after the voxels" in one.what for one in check(root).problems)
