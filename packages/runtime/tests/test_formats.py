"""Files are read and written as ulna does it, in all orientations: NIfTI, .mha, DICOM series; and the rows of an .npz."""

import numpy as np
import onnx
import pytest
from onnx import helper

from packages.runtime.tests.conftest import OVERLAPPING, plan_for, recipe_of
from packages.runtime.tests.test_dicom import ABOUT, in_ulna
from packages.runtime.tests.test_dicom import of_ulna as series_of_ulna
from tests.data.pipeline.test_orientation import ALL_48, oblique, stored_as
from tests.dicom_series import write_series
from tests.inference.test_geometry import GRID, OFFSET, distances, plan_of, write
from ulna.data.formats.read import read_image as ulna_image
from ulna.data.formats.read import read_labels
from ulna.data.formats.source import Source
from ulna_runtime import UsageError, bundle, load
from ulna_runtime.cli import run as command
from ulna_runtime.files import read_image, write_mask
from ulna_runtime.segmenter import Segmenter

SPACING = (1.25, 0.875, 2.5)


def of_ulna(path, dims):
    return series_of_ulna(path, dims) if path.is_dir() else ulna_image([Source(path)], dims)


def store(folder, suffix, array, affine):
    """(i, j, k) as a file of that kind, or as a DICOM series; its path."""
    if suffix != ".dcm":
        path = folder / f"scan{suffix}"
        write(path, np.ascontiguousarray(array), affine)
        return path
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    directions = np.diag([-1.0, -1.0, 1.0]) @ affine[:3, :3] / steps
    first = np.diag([-1.0, -1.0, 1.0]) @ affine[:3, 3]

    def change(made, k):
        made.ImagePositionPatient = [f"{v:.10f}"[:16] for v in first + k * steps[2] * directions[:, 2]]

    axes = (tuple(directions[:, 0]), tuple(directions[:, 1]))
    spacing = (steps[1], steps[0])
    write_series(folder, array.transpose(2, 1, 0), orientation=axes, spacing=spacing, thickness=steps[2], change=change)
    return folder


@pytest.mark.parametrize("suffix", [".nii", ".mha", ".dcm"])
@pytest.mark.parametrize("shape", [(4, 5, 3), (5, 4, 1)])
def test_files_are_read_as_ulna_reads_them_in_all_48_orientations(shape, suffix, tmp_path):
    array = np.random.default_rng(0).integers(-300, 900, shape).astype(np.int16)
    affine = oblique((4, -9, 13), SPACING)
    for number, letters in enumerate(ALL_48):
        other, its = stored_as(array, affine, letters)
        if suffix == ".dcm" and 1 in other.shape[:2]:
            continue
        folder = tmp_path / letters
        folder.mkdir()
        path, dims = store(folder, suffix, other, its), 3 if shape[2] > 1 or number % 2 else 2
        ours, theirs = of_ulna(path, dims), read_image([path], dims)
        assert np.array_equal(ours.array, theirs.array)
        assert (ours.unit, ours.spacing) == (theirs.unit, theirs.spacing)
        np.testing.assert_allclose(theirs.affine, ours.affine, atol=1e-9)
        mask = (theirs.array[0] > 300).astype(np.uint8) + 2 * (theirs.array[0] < 0)
        made = write_mask(tmp_path / "masks" / letters, mask, theirs, ABOUT)
        if suffix != ".dcm":
            back = ulna_image([Source(made)], dims)
            assert np.array_equal(back.array[0], mask)
            assert back.array.dtype == np.uint8
            np.testing.assert_allclose(back.affine, ours.affine, atol=1e-5)
        elif number % 6 == 0:
            assert np.array_equal(in_ulna(made, ours), mask)


def shifted(plan):
    """A segmenter whose logit of a voxel is 8 times the value of the one that lies `OFFSET` before it."""
    nodes, name = [], "image"
    constants = []
    for axis, offset in zip((2, 3, 4), OFFSET, strict=True):
        for key, value in (("z", 0), ("cut", -offset), ("end", 1 << 40), ("axis", axis)):
            constants.append(helper.make_tensor(f"{key}{axis}", onnx.TensorProto.INT64, [1], [value]))
        nodes.append(helper.make_node("Slice", [name, f"cut{axis}", f"end{axis}", f"axis{axis}"], [f"a{axis}"]))
        nodes.append(helper.make_node("Slice", [name, f"z{axis}", f"cut{axis}", f"axis{axis}"], [f"b{axis}"]))
        nodes.append(helper.make_node("Concat", [f"a{axis}", f"b{axis}"], [f"c{axis}"], axis=axis))
        name = f"c{axis}"
    constants.append(helper.make_tensor("eight", onnx.TensorProto.FLOAT, [], [8.0]))
    nodes.append(helper.make_node("Mul", [name, "eight"], ["logits"]))
    shape = ["n", 1, "x", "y", "z"]
    ends = [helper.make_tensor_value_info(one, onnx.TensorProto.FLOAT, shape) for one in ("image", "logits")]
    graph = helper.make_graph(nodes, "shifted", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    values = recipe_of("unet", {}).model_dump(mode="json")
    facts = {"kind": "dense", "files": ["networks/0.onnx"], "divisor": [1, 1, 1]}
    pipeline = {"members": [{"plan": plan.to_json(), "inference": values["inference"], "graphs": facts}]}
    return Segmenter(bundle.Bundle("file", "", pipeline, {}, {"networks/0.onnx": model.SerializeToString()}), threads=1)


@pytest.mark.parametrize("suffix", [".nii", ".mha", ".dcm"])
@pytest.mark.parametrize(("shape", "spacing"), [((15, 18, 11), GRID), ((12, 20, 14), (2.1, 1.0, 1.6))])
def test_a_structure_lies_where_it_does_in_the_world_in_all_48_orientations(shape, spacing, suffix, tmp_path):
    """100 % of the voxels that are farther than half a voxel from the border of the structure are right, as for ulna."""
    segment, radius = shifted(plan_of()), 4.0
    affine = oblique((4, -9, 13), spacing)
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    middle = affine[:3, :3] @ ((np.array(shape) - 1) / 2) + affine[:3, 3]
    moved = directions @ np.multiply(OFFSET, GRID)
    bright = np.clip(radius - distances(shape, affine, middle - moved / 2), -4, 4)
    bright = np.rint(bright * 1000).astype(np.int16) if suffix == ".dcm" else bright.astype(np.float32)
    for letters in ALL_48[:: 5 if suffix == ".dcm" else 1]:  # of a series, the test above reads all
        array, its = stored_as(bright, affine, letters)
        folder = tmp_path / letters
        folder.mkdir()
        result = segment(store(folder, suffix, array, its))
        if suffix != ".dcm":  # there, slices are sorted by where they lie
            assert result.mask.shape == array.shape
            np.testing.assert_allclose(result.affine, its, atol=1e-3)
        from_centre = distances(result.mask.shape, result.affine, middle + moved / 2)
        clear = np.abs(from_centre - radius) > max(spacing) / 2
        assert np.array_equal(result.mask[clear], from_centre[clear] < radius), letters
        assert result.mask.sum() > 20


def test_arrays_in_one_file_become_masks_in_one_file(flat, tmp_path, rng, capsys):
    import ulna

    file = flat.write(tmp_path / "a.ulna", plan_for(2))
    images = rng.integers(0, 255, (3, 21, 34, 3), np.uint8)
    np.savez(tmp_path / "x.npz", images=images, ids=["p", "q", "r"])
    np.savez(tmp_path / "y.npz", images=images[:1])
    ulna.predict(file, tmp_path / "x.npz", out=tmp_path / "ulna")
    for name in ("x", "y"):
        assert command(["predict", str(file), str(tmp_path / f"{name}.npz"), "--out", str(tmp_path / "runtime")]) == 0
    ours, theirs = (np.load(tmp_path / name / "x.npz") for name in ("ulna", "runtime"))
    assert sorted(ours) == sorted(theirs) == ["ids", "masks"]
    assert np.array_equal(ours["masks"], theirs["masks"])
    assert ours["masks"].dtype == theirs["masks"].dtype
    assert ours["ids"].tolist() == theirs["ids"].tolist()
    assert np.load(tmp_path / "runtime" / "y.npz")["ids"].tolist() == ["y_0000"]
    with pytest.raises(UsageError, match="holds 3 images"):
        load(file)(tmp_path / "x.npz")
    assert np.array_equal(load(file)(tmp_path / "y.npz").mask, ours["masks"][0])
    broken = images.astype(np.float32)
    broken[1, 3, 3, 0] = np.nan
    np.savez(tmp_path / "z.npz", images=broken, ids=["p", "q", "r"])
    assert command(["predict", str(file), str(tmp_path / "z.npz"), "--out", str(tmp_path / "runtime")]) == 3
    assert "1 of 3 images failed" in capsys.readouterr().err
    assert np.load(tmp_path / "runtime" / "z.npz")["ids"].tolist() == ["p", "r"]
    assert command(["predict", str(file), str(tmp_path / "x.npz"), "--out", str(tmp_path), "--overwrite"]) == 2


def test_overlapping_classes_in_arrays_and_meta_images(flat, tmp_path, rng):
    import ulna

    file = flat.write(tmp_path / "a.ulna", plan_for(2, labels=OVERLAPPING))
    np.savez(tmp_path / "x.npz", images=rng.integers(0, 255, (2, 21, 34, 3), np.uint8))
    ulna.predict(file, tmp_path / "x.npz", out=tmp_path / "ulna")
    assert command(["predict", str(file), str(tmp_path / "x.npz"), "--out", str(tmp_path / "runtime")]) == 0
    ours, theirs = (np.load(tmp_path / name / "x.npz") for name in ("ulna", "runtime"))
    assert sorted(ours) == sorted(theirs) == ["ids", "masks", "multilabel"]
    assert np.array_equal(ours["masks"], theirs["masks"])
    write(tmp_path / "scan.mha", rng.normal(size=(4, 5, 6)), np.diag([2.0, 1.0, 1.0, 1.0]))
    volume = read_image([tmp_path / "scan.mha"], 3)
    maps = rng.integers(0, 2, (3, 4, 5, 6)).astype(np.uint8)
    back = read_labels(Source(write_mask(tmp_path / "maps", maps, volume, ABOUT)))
    assert np.array_equal(back.array, maps)
    values = rng.integers(0, 999, (4, 5, 6))
    back = read_image([write_mask(tmp_path / "values", values, volume, ABOUT)], 3)
    assert np.array_equal(back.array[0], values)
    assert back.array.dtype == np.uint16


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda d: d[:-3], "promises 48 bytes of values"),
        (lambda d: d + b"\0", "promises 48 bytes of values"),
        (lambda d: d[:30], "its header does not end"),
        (lambda d: b"x" * 100, "its header does not end"),
        (lambda d: d.replace(b"LOCAL", b"other.raw"), "keeps its values in another file"),
        (lambda d: d.replace(b"2 4 6", b"2 4"), "has the sizes"),
        (lambda d: d.replace(b"2 4 6", b"99999 99999 99999"), "more than are read"),
        (lambda d: d.replace(b"2 4 6", b"a b c"), "cannot be read"),
        (lambda d: d.replace(b"MET_UCHAR", b"MET_OTHER"), "cannot be read"),
        (lambda d: d.replace(b"= 1 1 2", b"= 1 0 2"), "orientation that cannot be"),
        (lambda d: d.replace(b"= 1 1 2", b"= 1 nan 2"), "cannot be read"),
        (lambda d: d.replace(b"NDims", b"NDims = 3\nNDims = 2\nX"), "stated twice"),
        (lambda d: d.replace(b"ElementType", b"CompressedData = True\nElementType"), "is damaged"),
    ],
)
def test_meta_images_that_are_damaged_are_refused(change, match, tmp_path):
    header = "NDims = 3\nDimSize = 2 4 6\nElementSpacing = 1 1 2\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n"
    (tmp_path / "a.mha").write_bytes(change(header.encode() + bytes(48)))
    with pytest.raises(UsageError, match=rf"a\.mha: .*{match}"):
        read_image([tmp_path / "a.mha"], 3)


def test_a_packed_value_that_unpacks_to_more_is_refused(tmp_path):
    import zlib

    packed = zlib.compress(bytes(1 << 20))
    header = f"NDims = 2\nDimSize = 2 4\nCompressedData = True\nCompressedDataSize = {len(packed)}\n"
    header += "ElementType = MET_UCHAR\nElementDataFile = LOCAL\n"
    (tmp_path / "a.mha").write_bytes(header.encode() + packed)
    with pytest.raises(UsageError, match="is cut short or damaged"):
        read_image([tmp_path / "a.mha"], 2)


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"masks": np.zeros((2, 4, 4))}, "holds no `images`"),
        ({"images": np.zeros((2, 4))}, "has `images` of shape"),
        ({"images": np.array([["a"]])}, "has `images` of shape"),
        ({"images": np.zeros((2, 4, 4)), "ids": ["a"]}, "has 1 ids for 2 images"),
        ({"images": np.zeros((2, 4, 4)), "ids": ["a", "a"]}, "or one twice"),
        ({"images": np.array([None])}, "cannot be read"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(arrays, match, tmp_path):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UsageError, match=rf"a\.npz: .*{match}"):
        read_image([tmp_path / "a.npz"], 2)


def test_a_file_that_is_no_zip_is_named(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"PK no")
    with pytest.raises(UsageError, match=r"a\.npz: cannot be read"):
        read_image([tmp_path / "a.npz"], 2)
