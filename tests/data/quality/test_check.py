"""Checks: every fault class with its words, no false alarm on real data."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.places import SHARED
from ulna.data.layout.classes import classes_found
from ulna.data.layout.dataset import Dataset, split
from ulna.data.quality.check import check, check_dataset
from ulna.data.quality.intensity import _percentiles
from ulna.data.quality.scan import scan_case
from ulna.errors import DataError
from ulna.recipe import Labels

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared data folder beside the repository")


def pixels(seed, *shape):
    return np.random.default_rng(seed).integers(0, 200, shape or (8, 9)).astype(np.uint8)


def half(value=1, shape=(8, 9)):
    labels = np.zeros(shape, np.uint8)
    labels[2:5] = value
    return labels


def save(path, array, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        Image.fromarray(array).save(path)
    else:
        nib.Nifti1Image(array, np.diag([1.0, 1, 2, 1]) if affine is None else affine).to_filename(path)


def png_set(root, labels, **files):
    for number, label in enumerate(labels):
        save(root / "images" / f"c{number}.png", pixels(number))
        save(root / "labels" / f"c{number}.png", label)
    for name, content in files.items():
        (root / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return root


def nifti_set(root, image, label, affine=None, count=2):
    for number in range(count):
        save(root / "images" / f"c{number}.nii.gz", image + np.asarray(number, image.dtype))
        save(root / "labels" / f"c{number}.nii.gz", label, affine)
    return root


def whats(report):
    return [problem.what for problem in report.problems]


VOLUME = (6, 7, 8)


def test_a_sound_data_set_has_no_problem_and_finds_its_classes(tmp_path):
    report = check(png_set(tmp_path, [half(), half(2)]))
    assert report.ok and report.labels == Labels(names=("background", "class 1", "class 2"))
    report.raise_if_bad()
    assert json.loads(json.dumps(report.to_json()))["ok"] is True
    assert check(png_set(tmp_path / "two", [half(), half()])).labels == Labels()


def test_survey_counts_and_measures_by_hand(tmp_path):
    image = np.arange(72, dtype=np.uint8).reshape(8, 9)
    save(tmp_path / "images" / "a.png", image)
    save(tmp_path / "labels" / "a.png", half(255))
    one = scan_case(Dataset.from_folder(tmp_path).cases[0], None)
    assert (one.size, one.spacing, one.unit, one.channels, one.dtype) == ((8, 9), (1.0, 1.0), "px", 1, "uint8")
    assert one.label_values == {0: 45, 1: 27} and one.two_valued_255 and one.problems == ()
    assert (one.image[0].mean, one.image[0].min, one.image[0].max, one.image[0].p50) == (35.5, 0, 71, 35.5)
    assert one.image[0].std == pytest.approx(image.std())
    assert (one.foreground[0].min, one.foreground[0].max) == (18, 44)
    assert np.array_equal(one.foreground_values[0], np.arange(18, 45))


@pytest.mark.parametrize("dtype", ["u1", "i2", "u4", "f4", "f8"])
@pytest.mark.parametrize("count", [1, 2, 3, 1000])
def test_percentiles_are_those_of_numpy(dtype, count):
    values = np.random.default_rng(count).integers(0, 250, count).astype(dtype)
    levels = (0, 0.5, 50, 99.5, 100)
    assert _percentiles(values, levels) == pytest.approx(np.percentile(values.astype(float), levels), rel=1e-12)


def test_survey_keeps_affine_and_spacing(tmp_path):
    affine = np.array([[0, -1.5, 0, 3], [2.0, 0, 0, 4], [0, 0, 1, 5], [0, 0, 0, 1]])
    for folder, array in (("images", pixels(0, *VOLUME)), ("labels", half(1, VOLUME))):
        save(tmp_path / folder / "a.nii.gz", array, affine)
    one = scan_case(Dataset.from_folder(tmp_path).cases[0], None)
    assert np.allclose(one.affine, affine) and np.allclose(one.spacing, (2, 1.5, 1)) and one.unit == "mm"


@pytest.mark.parametrize(
    ("image", "label", "affine", "text"),
    [
        (pixels(0, *VOLUME), half(1, (6, 7, 9)), None, "has the size (6, 7, 9), its image (6, 7, 8)"),
        (pixels(0, *VOLUME), half(1, VOLUME), np.diag([1.0, 1, 3, 1]), "has the spacing 1 x 1 x 3 mm, its image 1 x 1"),
        (pixels(0, *VOLUME), half(1, VOLUME), np.diag([-1.0, 1, 2, 1]), "has another orientation or origin (affine)"),
        (pixels(0, *VOLUME), half(1, VOLUME) * 0.5, None, "fractional label values, such as 0.5"),
        (pixels(0, *VOLUME), -half(1, VOLUME).astype(np.int16), None, "holds negative label values, down to -1"),
        (pixels(0, *VOLUME), half(1, (*VOLUME, 2)), None, "holds 2 label maps"),
        (pixels(0, *VOLUME), half(1, VOLUME) * np.float32(np.nan), None, "label values that are not finite"),
        (pixels(0, *VOLUME), np.arange(336, dtype=np.uint16).reshape(VOLUME), None, "more than 256 label values"),
    ],
)  # fmt: skip
def test_faults_inside_a_case(tmp_path, image, label, affine, text):
    report = check(nifti_set(tmp_path, image, label, affine))
    found = [problem for problem in report.problems if text in problem.what]
    assert len(found) == 2 and all(problem.remedy for problem in found)


def test_values_that_are_not_finite_are_counted_and_the_rest_measured(tmp_path):
    image = pixels(0, *VOLUME).astype(np.float32)
    image[0, 0, :3], image[1, 1, 1] = np.nan, np.inf
    report = check(nifti_set(tmp_path, image, half(1, VOLUME), count=1))
    assert whats(report)[:1] == ["the image holds 4 values that are not finite (NaN or infinite), of 336"]
    assert np.isfinite(report.scans[0].image[0].mean)


def test_label_values_beyond_the_declared_classes(tmp_path):
    report = check(png_set(tmp_path, [half(1), half(3)], classes=["a", "b"]))
    (problem,) = report.problems
    assert problem.file.endswith("c1.png") and "label values 3 do not fit 3 classes" in problem.what


def test_damaged_files_and_faults_of_the_folder_are_told_together(tmp_path):
    root = png_set(tmp_path, [half()] * 5, splits={"train": ["c0"], "val": ["nobody"]})
    (root / "labels" / "c0.png").unlink()
    data = (root / "images" / "c1.png").read_bytes()
    (root / "images" / "c1.png").write_bytes(data[: len(data) // 2])
    (root / "labels" / "c2.png").write_bytes(b"")
    save(root / "labels" / "c3.png", half(2, (8, 10)))
    report = check(root)
    text = str(report)
    for part in [
        "has no label map",
        "'nobody', which is no case",
        "is cut short",
        "is empty (0 bytes)",
        "has the size",
    ]:
        assert part in text
    assert len(report.scans) == 5 and not report.ok
    with pytest.raises(DataError, match=f"{len(report.problems)} problems"):
        report.raise_if_bad()


def test_values_that_float32_does_not_hold_are_told_as_such(tmp_path):
    image = pixels(0, *VOLUME).astype(np.float64)
    image[0, 0, :3], image[1, 1, 1] = (1e300, -2e300, 1e39), np.nan
    report = check(nifti_set(tmp_path, image, half(1, VOLUME)))
    assert (
        whats(report)
        == [
            "holds 3 values beyond what float32 holds, up to 2e+300",
            "the image holds 1 values that are not finite (NaN or infinite), of 336",
        ]
        * 2
    )
    labels = half(1, VOLUME).astype(np.float64)
    labels[0, 0, 0] = 1e300
    (problem, _) = check(nifti_set(tmp_path / "labels", pixels(0, *VOLUME), labels)).problems
    assert problem.what == "holds label values up to 1e+300"


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".tif", ".nrrd"])
def test_values_beyond_float32_are_found_in_every_format(tmp_path, suffix):
    from tests.data.formats.test_read import image_of

    array = np.ones((6, 7))
    array[2, 3] = 1e300
    path = tmp_path / f"a{suffix}"
    if suffix == ".npz":
        np.savez(path, images=array[None])
    elif suffix == ".tif":
        tifffile.imwrite(path, array)
    elif suffix == ".npy":
        np.save(path, array)
    else:
        head = "NRRD0004\ntype: double\ndimension: 2\nsizes: 7 6\nencoding: raw\nendian: little\n\n"
        path.write_bytes(head.encode() + array.tobytes())
    assert image_of(path, 0 if suffix == ".npz" else None).meta.too_large == (1, 1e300)


def test_what_is_wrong_with_any_channel_file_is_told(tmp_path):
    from tests.data.quality.test_faults import nifti

    for number in range(2):
        for channel in range(3):
            values = np.ones((6, 7, 8))
            values[2, 3, channel] = 10.0 ** (298 + channel) if (number, bool(channel)) == (1, True) else number
            shift = {"qoffset_x": 30} if (number, channel) == (0, 2) else {}
            nifti(tmp_path / f"c{number}_{channel:04d}.nii.gz", values, **shift)
    first, second = Dataset.from_folder(tmp_path, need_labels=False, channels=3).cases
    (told,) = scan_case(first, None).problems
    assert told.what.startswith("channel c0_0002.nii.gz: its sform and qform disagree")
    (told,) = scan_case(second, None).problems
    assert told.what == "holds 2 values beyond what float32 holds, up to 1e+300"


def test_check_of_nothing_is_a_report(tmp_path):
    report = check(tmp_path / "nowhere")
    assert whats(report) == ["does not exist"] and report.scans == ()


def test_two_valued_masks_are_noted(tmp_path):
    report = check(png_set(tmp_path, [half(255), half(255)]))
    assert report.ok and report.labels == Labels()
    assert "2 cases, for example c0: has label values 0 and 255, read as 0 and 1" in report.notes
    mixed = check(png_set(tmp_path / "mixed", [half(255), half(2), half(1)]))
    assert "c0: label values 0 and 255, other cases hold values up to 2" in mixed.problems[0].what


def test_classes_that_nothing_declares_must_be_plausible(tmp_path):
    gap = check(png_set(tmp_path / "gap", [half(1), half(3)]))
    assert whats(gap) == ["the label values found are 0, 1, 3 (2 never; 3 in case c1)"] and gap.labels is None
    many = np.arange(72, dtype=np.uint8).reshape(8, 9)
    assert "71 classes without a name" in whats(check(png_set(tmp_path / "many", [many])))[0]
    shifted = check(png_set(tmp_path / "shifted", [np.maximum(half(2), 1)]))
    assert "(0 never; 2 in case c0)" in shifted.problems[0].what


def test_background_only(tmp_path):
    report = check(png_set(tmp_path / "some", [half(), half(0)], classes=["liver", "spleen"]))
    assert report.ok and "c1: all background" in report.notes
    assert "the class 'spleen' occurs in no case" in report.notes
    nothing = check(png_set(tmp_path / "none", [half(0), half(0)]))
    assert whats(nothing) == ["no case of 2 has any foreground: every label value is 0"]


def test_channels_and_dimensions_must_agree(tmp_path):
    root = png_set(tmp_path, [half()] * 3)
    save(root / "images" / "c1.png", np.repeat(pixels(1)[..., None], 3, axis=-1))
    save(root / "images" / "v.nii.gz", pixels(1, *VOLUME))
    save(root / "labels" / "v.nii.gz", half(1, VOLUME))
    report = check(root)
    assert whats(report)[:2] == ["has 3 channels, most cases have 1", "is 3D, most cases are 2D"]
    units = report.problems[2]
    assert units.what == "1 case with a spacing in mm, 3 with none (for example c0)" and len(report.problems) == 3
    assert units.remedy == "state the spacing in all files or in none"


def test_declared_channels_must_be_there(tmp_path):
    png_set(tmp_path, [half()] * 2, dataset={"channel_names": ["T1", "T2"]})
    assert whats(check(tmp_path)) == ["has 1 channel, dataset.json names 2"] * 2


def test_copies_in_two_sets_are_a_problem_and_in_one_set_a_note(tmp_path):
    root = png_set(tmp_path, [half()] * 4, splits={"train": ["c0", "c1"], "val": ["c2", "c3"]})
    shutil.copy(root / "images" / "c0.png", root / "images" / "c1.png")
    same = check(root)
    assert same.ok and "1 image more than once, for example c0 and c1" in same.notes
    shutil.copy(root / "images" / "c0.png", root / "images" / "c3.png")
    crossing = check(root)
    assert whats(crossing) == ["is the same image as c0 of train, and stands in val"]


def test_copies_in_another_container_are_found(tmp_path):
    save(tmp_path / "images" / "a.png", pixels(1))
    Image.fromarray(pixels(1)).save(tmp_path / "images" / "b.bmp")
    for name in "ab":
        save(tmp_path / "labels" / f"{name}.png", half())
    assert any("1 image more than once, for example a and b" in note for note in check(tmp_path).notes)


def test_a_blank_image_is_told_and_is_a_fault_only_if_all_are_blank(tmp_path):
    root = png_set(tmp_path, [half(), half(0), half(0)], splits={"train": ["c0", "c1"], "val": ["c2"]})
    for name in ("c1", "c2"):
        save(root / "images" / f"{name}.png", np.full((8, 9), 7, np.uint8))
    report = check(root)
    assert report.ok and "2 cases, for example c1: the image is constant, every value is 7" in report.notes
    save(root / "labels" / "c1.png", half())
    with_foreground = check(root)
    note = "c1: the image is constant, every value is 7, though its label map has foreground"
    assert with_foreground.ok and note in with_foreground.notes
    save(root / "images" / "c0.png", np.full((8, 9), 9, np.uint8))
    assert whats(check(root)) == ["every image is constant, for example c0: 9"]


def test_grey_labels_stored_as_colour_are_one_map(tmp_path):
    root = png_set(tmp_path, [np.repeat(half()[..., None], 3, axis=-1)] * 2)
    assert check(root).ok and check(root).scans[0].label_values == {0: 45, 1: 27}


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        (
            [{0: 9, 5: 1}],
            r"the label values found are 0, 5 \(1, 2, 3, 4 never; 5 in case c0\); name all classes 1\.\.5",
        ),
        ([{0: 9, 255: 1}, {0: 9, 2: 1}], "c0: label values 0 and 255, other cases hold values up to 2"),
        (
            [{0: 9, 1: 2, 255: 1}],
            r"found are 0, 1, 255 \(2, 3, 4, 5, 6, 7, \.\.\. never.*; remap 255 to 0 or to a class",
        ),
        (
            [{0: 9, 128: 2, 255: 1}],
            r"found are 0, 128, 255 .*; remap the label maps to 0\.\.K; check --fix OUT does so",
        ),
        ([{0: 9, 0.5: 1}], r"label values 0\.5 \(in case c0\) are no class indices; save the label maps with whole"),
        ([{0: 9, float("nan"): 1}], "label values nan"),
        ([{0: 9}, {-1: 1}], r"label values -1 \(in case c1\)"),
        ([dict.fromkeys(range(40), 1)], "39 classes without a name"),
    ],
)
def test_classes_that_values_do_not_tell(counts, text):
    with pytest.raises(DataError, match=text):
        classes_found({f"c{number}": one for number, one in enumerate(counts)}, "data")


def test_classes_that_values_tell():
    assert classes_found({"a": {0: 9, 255: 1}, "b": {0.0: 9, 1.0: 1}}, "data") == Labels()
    assert classes_found({"a": {0: 9}}, "data") == Labels()
    assert classes_found({"a": {0: 9, 2: 1}, "b": {1: 1}}, "data").foreground == ("class 1", "class 2")


def test_ids_that_differ_in_case_only(tmp_path):
    for name in ("a", "A"):
        save(tmp_path / "images" / f"{name}.png", pixels(ord(name)))
        save(tmp_path / "labels" / f"{name}.png", half())
    if len(list((tmp_path / "images").iterdir())) < 2:
        pytest.skip("this file system does not tell upper from lower case")
    assert "differs from 'A' in upper and lower case only" in whats(check(tmp_path))[0]


def test_multilabel_classes_are_counted_one_by_one(tmp_path):
    maps = np.stack([half(1, VOLUME), half(0, VOLUME)], axis=-1)
    maps[2, ..., 1] = 1
    root = nifti_set(tmp_path, pixels(0, *VOLUME), maps)
    (root / "classes.json").write_text(json.dumps({"mode": "multilabel", "labels": ["disc", "cup"]}))
    report = check(root)
    assert report.ok and report.scans[0].label_values == {0: 168, 1: 168, 2: 56}


def test_a_long_report_is_shortened_in_print_only(tmp_path):
    root = png_set(tmp_path, [half(1, (8, 10))] * 30)
    report = check(root)
    assert len(report.problems) == 30 and str(report).count("has the size") == 12
    assert "18 more problems of this kind" in str(report)


@needs_shared
@pytest.mark.parametrize("name", ["nuclei96", "lung_patches", "membrane", "brain_tumour"])
def test_no_false_alarm_on_real_data(name):
    report = check(SHARED / name)
    assert report.problems == () and len(report.labels.names) >= 2


@needs_shared
def test_no_false_alarm_on_ten_hippocampi():
    dataset = Dataset.from_folder(SHARED / "hippocampus")
    scans = [scan_case(case, dataset.labels) for case in dataset.cases[:10]]
    assert all(one.problems == () and set(one.label_values) == {0, 1, 2} for one in scans)


def frames(root, count):
    """Pictures of which each third shows the same scene, a little brighter each time."""
    rng = np.random.default_rng(0)
    scenes = [
        np.asarray(Image.fromarray(rng.integers(0, 255, (9, 9)).astype(np.uint8)).resize((64, 64))) for _ in "abc"
    ]
    for number in range(count):
        save(root / "images" / f"c{number:02d}.png", (scenes[number % 3] * (0.7 + 0.02 * number)).astype(np.uint8))
        save(root / "labels" / f"c{number:02d}.png", half(1, (64, 64)))
    return root


def test_copies_stay_in_one_set_where_ulna_makes_the_split(tmp_path):
    dataset = Dataset.from_folder(frames(tmp_path, 12))
    report = check_dataset(dataset)
    assert report.ok and report.copies == tuple(tuple(f"c{n:02d}" for n in range(start, 12, 3)) for start in range(3))
    assert any("nearly the same as another" in note and "keeps them in one set" in note for note in report.notes)
    for seed in range(5):
        made = split(dataset.grouped(report.copies), seed)
        assert {int(name[1:]) % 3 for name in made.train}.isdisjoint(int(name[1:]) % 3 for name in made.val)
    assert dataset.grouped([]) == dataset


def test_patients_and_copies_are_joined(tmp_path):
    png_set(tmp_path, [half()] * 5, groups={"c0": "p", "c1": "p", "c2": "q"})
    groups = [case.group for case in Dataset.from_folder(tmp_path).grouped([("c1", "c2"), ("c3", "c4")]).cases]
    assert groups == ["p", "p", "p", "copies of c3", "copies of c3"]


def test_a_film_does_not_make_a_split_impossible(tmp_path):
    for number in range(6):
        scene = np.add.outer(np.arange(64), 3 * np.arange(64)) % 97
        save(tmp_path / "images" / f"c{number}.png", (scene * (0.7 + 0.05 * number)).astype(np.uint8))
        save(tmp_path / "labels" / f"c{number}.png", half(1, (64, 64)))
    report = check(tmp_path)
    assert report.ok and report.copies == ()
    assert any("6 of 6 images run into one another; name the groups in groups.json" in note for note in report.notes)


def test_a_label_map_without_the_orientation_tag_of_its_image_is_the_first_note(tmp_path):
    """Of one size with its image it may lie on the stored pixels, and nothing in its file tells."""
    root = png_set(tmp_path, [half()] * 3, classes={"mode": "exclusive", "classes": ["background", "a", "nowhere"]})
    for number, tag in enumerate((1, 3, 2)):
        exif = Image.Exif()
        exif[0x0112] = tag
        Image.fromarray(pixels(number)).save(root / "images" / f"c{number}.png", exif=exif)
    report = check(root)
    assert report.ok
    assert report.notes[0].startswith("2 cases, for example c1: its label map may be rotated against the image: ")
    assert "give it the tag of the image" in report.notes[0]
    assert sum("may be rotated" in note for note in report.notes) == 1
