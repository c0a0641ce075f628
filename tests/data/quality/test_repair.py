"""check --fix: what can be mended is, the rest is left out and named; the copy is sound, the original untouched."""

import gzip
import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.data.quality.test_faults import (
    FAULTS,
    MOVED,
    NAN,
    PALETTE,
    RGB,
    SHAPE,
    TURNED,
    both,
    declared,
    every_label,
    exact_copy,
    image,
    label,
    near_copy,
    nifti,
    nifti_set,
    npz_set,
    png_set,
    random,
    rename,
    several,
    shapes,
    special,
    split,
    volume,
    written,
)
from tests.dicom_series import write_series
from ulna.cli import main as cli
from ulna.data.formats.dicom.choosing import Wishes, series_in
from ulna.data.formats.read import read_image
from ulna.data.formats.write import write_labels
from ulna.data.layout.dataset import Dataset
from ulna.data.quality.check import check
from ulna.data.quality.fixed_splits import safe_names
from ulna.data.turning import upright
from ulna.errors import UsageError
from ulna.system.files import TEMPORARY


def state(root):
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def repaired(tmp_path, make, plant):
    root = tmp_path / "data"
    root.mkdir()
    make(root)
    plant(root)
    before = state(root)
    report = check(root, fix=tmp_path / "fixed")
    assert state(root) == before and sorted(p.name for p in tmp_path.iterdir()) == ["data", "fixed"]
    assert report.ok and report.root == tmp_path / "fixed", f"{report}"
    record = json.loads((tmp_path / "fixed" / "changes.json").read_text())
    assert len(record["changes"]) == len(report.repair.changes)
    files = {p.relative_to(report.root).as_posix() for f in ("images", "labels") for p in (report.root / f).iterdir()}
    assert set(record["files"]) == files
    return report, record


def turned_image(root):
    """An image with an orientation tag, whose label map lies on its stored pixels."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image(random(1, 24, 20), exif=exif)(root)
    for number in (0, 2, 3):
        image(random(number, 20, 24), f"c{number}.png")(root)
        label(shapes((20, 24), at=2 + number), f"c{number}.png")(root)


def labels_of(report, case="c1"):
    return Dataset.from_folder(report.root).case(case).read_labels().array[0]


MENDED = [
    ("gap", png_set, label(shapes((24, 20), 3)), "label values 0, 3 became 0, 2"),
    ("colours", png_set, label(RGB), "colours became classes"),
    ("gap up to 255", png_set, label(np.maximum(shapes((24, 20), 128), shapes((24, 20), 255, at=9))), "label values 0, 128, 255 became 0, 2, 3"),
    ("rounding", nifti_set, volume(shapes(SHAPE) * 1.001, folder="labels"), "rounded to whole numbers"),
    ("scaled", nifti_set, volume(shapes(SHAPE) * 2.06, folder="labels"), "(the largest change is 0.06)"),
    ("stored turned", png_set, several(turned_image, lambda root: None), "has the orientation tag 6 of its image now"),
    ("NaN", nifti_set, volume(NAN), "1 values that were not finite: NaN became 0"),
    ("turned", nifti_set, volume(np.swapaxes(shapes(SHAPE, at=2), 0, 1), TURNED, "labels"), "resampled to the grid of its"),
    ("sform against qform", nifti_set, volume(random(1, *SHAPE), qoffset_x=30), "its sform and qform disagree"),
    ("bytes behind", nifti_set, written("images/c1.nii.gz", lambda d: gzip.compress(gzip.decompress(d) + bytes(2000))), "after the voxels"),
    ("space at the end", png_set, both("c1 "), "the case was called 'c1 '"),
    ("ending of a role", png_set, rename("labels/c1.png", "labels/c1_mask.png"), "paired with c1_mask.png"),
    ("wrong extension", png_set, rename("images/c1.png", "images/c1.tif"), "was named .tif, though it is .png"),
    ("unpacked", nifti_set, written("images/c1.nii.gz", gzip.decompress), "was named .nii.gz, though it is .nii"),
    ("ids with extension", png_set, split(val=["c2.png", "c3"]), "'c2.png' in val became 'c2'"),
    ("unknown ids", png_set, split(val=["c2", "c9"]), "'c9' was taken out of val: it is not in this copy"),
    ("an id in two sets", png_set, split(val=["c0", "c2"]), "'c0' was taken out of train: it stands in val too"),
    ("groups over sets", png_set, several(split(), declared("groups", {"c0": "p", "c2": "p"})), "the group 'p' stands in val too"),
    ("exact copy", png_set, exact_copy, "'c0' was taken out of train"),
    ("near copy", png_set, near_copy, "'c0' was taken out of train"),
    ("maps of classes", nifti_set, volume(np.stack([shapes(SHAPE), 1 - shapes(SHAPE)], -1), folder="labels"), "2 maps, one per class"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "plant", "words"), [row[1:] for row in MENDED], ids=[row[0] for row in MENDED])
def test_what_can_be_mended_is_and_is_recorded(tmp_path, make, plant, words):
    report, record = repaired(tmp_path, make, plant)
    assert any(words in change for change in report.repair.changes), report.repair.changes
    assert len(Dataset.from_folder(report.root)) == (3 if make is nifti_set else 4) and not record["left_out"]


LEFT = [
    ("cut", nifti_set, written("images/c1.nii.gz", lambda d: d[:-12]), "is cut short"),
    ("empty", png_set, written("labels/c1.png", b""), "is empty"),
    ("pipe", png_set, special("images/c1.png", os.mkfifo), "is a named pipe"),
    ("other size", png_set, label(shapes((24, 21))), "nothing says where its pixels lie"),
    ("elsewhere", nifti_set, volume(shapes(SHAPE), [[1, 0, 0, 99], *MOVED[1:]], "labels"), "lies beside its image"),
    ("channels", png_set, image(random(1, 24, 20, 3)), "is 2D with 3 channels, most cases are 2D with 1"),
    ("beyond the classes", png_set, several(declared("classes", ["a"]), label(shapes((24, 20), 2))), "values 2 do not fit"),
    ("no label", png_set, lambda root: (root / "labels/c1.png").unlink(), "has no label map"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "plant", "words"), [row[1:] for row in LEFT], ids=[row[0] for row in LEFT])
def test_what_would_need_a_guess_is_left_out_and_named(tmp_path, make, plant, words):
    report, record = repaired(tmp_path, make, plant)
    (told,) = report.repair.left_out
    assert words in told.what and "c1" in told.file and record["left_out"][0]["what"] == told.what
    assert "c1" not in {case.id for case in Dataset.from_folder(report.root).cases}


def test_changed_values_can_be_told_back(tmp_path):
    report, record = repaired(tmp_path, png_set, every_label(lambda n: shapes((24, 20), 5 + 2 * (n % 2), at=n)))
    assert report.labels.names == ("background", "value 5", "value 7")
    tables = {change["file"]: change["values"] for change in record["changes"]}
    assert tables["labels/c0.png"] == {"0": 0, "5": 1} and tables["labels/c1.png"] == {"0": 0, "7": 2}
    assert np.array_equal(labels_of(report), 2 * shapes((24, 20), at=1))
    assert record["files"]["labels/c1.png"] == "data/labels/c1.png"  # by names, wherever the data lie


def test_255_is_a_class_beside_others_and_a_stretched_1_alone(tmp_path):
    """Nobody says which value a map of 0 and 255 means, unless 255 stands beside other values."""
    mixed = several(
        label(shapes((24, 20), 128)),
        label(shapes((24, 20), 255), "c2.png"),
        *(label(shapes((24, 20), 64), f"c{n}.png") for n in (0, 3)),
    )
    report, record = repaired(tmp_path, png_set, mixed)
    assert report.labels.names == ("background", "value 64", "value 128", "value 255")
    tables = {change["file"]: change["values"] for change in record["changes"] if "values" in change}
    assert tables["labels/c2.png"] == {"0": 0, "255": 3} and tables["labels/c1.png"] == {"0": 0, "128": 2}


def test_255_beside_classes_without_gaps_is_left_and_the_reason_told(tmp_path):
    root = png_set(tmp_path / "data") if (tmp_path / "data").mkdir() is None else None
    label(np.maximum(shapes((24, 20)), shapes((24, 20), 255, at=9)))(root)
    report = check(root, fix=tmp_path / "fixed")
    assert any("255 beside 0..1 may mean 'not known'" in one.what for one in report.repair.left_out)
    assert np.array_equal(labels_of_file(tmp_path / "fixed"), labels_of_file(root))


def labels_of_file(root):
    return np.asarray(Image.open(root / "labels" / "c1.png"))


def test_what_check_advises_is_accepted_by_check(tmp_path):
    (tmp_path / "few").mkdir()
    few = png_set(tmp_path / "few")
    label(shapes((24, 20), 3))(few)
    (problem,) = check(few).problems
    assert "name all classes 1..3 in classes.json, also those that occur nowhere" in problem.remedy
    (few / "classes.json").write_text(json.dumps(["a", "b", "c"]))
    assert check(few).ok
    (tmp_path / "many").mkdir()
    many = png_set(tmp_path / "many")
    every_label(lambda n: np.maximum(shapes((24, 20), 128, at=n), shapes((24, 20), 255, at=12)))(many)
    (problem,) = check(many).problems
    assert "check --fix OUT does so" in problem.remedy
    fixed = check(many, fix=tmp_path / "fixed")
    assert fixed.ok and fixed.labels.names == ("background", "value 128", "value 255")
    for said, names in zip(re.findall(r"{.*?}", problem.remedy), ["ab", "a"], strict=True):  # apart, and as one
        (many / "classes.json").write_text(said)
        assert check(many).ok and check(many).labels.foreground == tuple(names)


@pytest.mark.parametrize("alone", [False, True])
def test_128_and_255_are_never_merged_and_a_person_is_asked(tmp_path, alone):
    """Alone: no case holds both, so that nothing in the files tells 255 from a stretched 1."""

    def drawn(n):
        both = np.maximum(shapes((24, 20), 128, at=n), shapes((24, 20), 255, at=12))
        return shapes((24, 20), 128 if n == 3 else 255, at=n) if alone else both

    report, _ = repaired(tmp_path, png_set, every_label(drawn))
    assert report.labels.names == ("background", "value 128", "value 255")
    asked = report.repair.changes[0]
    assert asked.startswith("classes.json: the label values 128, 255 stay classes of their own; if they are one, write")
    (report.root / "classes.json").write_text(re.search(r"{.*}", asked)[0])
    again = check(report.root)
    assert again.ok and again.labels.names == ("background", "object")


def test_what_is_said_of_255_beside_classes_can_be_done(tmp_path):
    (tmp_path / "data").mkdir()
    root = png_set(tmp_path / "data")
    label(np.maximum(shapes((24, 20)), shapes((24, 20), 255, at=9)))(root)
    report = check(root, fix=tmp_path / "fixed")
    (left,) = report.repair.left_out
    assert '"ignore": 255' in left.remedy and '{"NAME": [255]}' in left.remedy
    for said in ({"labels": {"1": "a"}, "ignore": 255}, {"a": [1], "b": [255]}):
        (tmp_path / "fixed" / "classes.json").write_text(json.dumps(said))
        assert check(tmp_path / "fixed").ok


def test_values_beyond_one_class_are_told_how_they_become_one(tmp_path):
    (tmp_path / "data").mkdir()
    root = png_set(tmp_path / "data")
    several(declared("classes", ["cell"]), label(shapes((24, 20), 2)))(root)
    (problem,) = check(root).problems
    assert '{"NAME": [2]} makes one class of them' in problem.remedy


def test_an_image_that_could_be_read_only_after_the_repair_is_no_copy_across_sets(tmp_path):
    """Its copy in another set is not seen before, and would be a fault of the repaired set."""

    def plant(root):
        shutil.copy(root / "images" / "c0.png", root / "images" / "c2.tif")
        (root / "images" / "c2.png").unlink()
        split(train=["c0", "c1"], val=["c2", "c3"])(root)

    report, _ = repaired(tmp_path, png_set, plant)
    assert any("was taken out of train" in change for change in report.repair.changes)


ALL = {row[0]: row[1:3] for row in [*FAULTS, *MENDED, *LEFT]}


@pytest.mark.parametrize(("make", "plant"), ALL.values(), ids=ALL)
@pytest.mark.share(3)
def test_no_message_names_a_file_that_is_gone(tmp_path, make, plant):
    """While a copy is made, its files lie in a folder of their own."""
    (tmp_path / "data").mkdir()
    make(tmp_path / "data")
    plant(tmp_path / "data")
    try:
        report = check(tmp_path / "data", fix=tmp_path / "fixed")
        said = f"{report} {report.repair}"
    except UsageError as error:
        said = str(error)
    assert ".case" not in said and TEMPORARY not in said


def test_labels_that_a_program_scaled_are_rounded(tmp_path):
    """nibabel spreads real values over the integers of the header: 1, 2, 3 come back as 0.988, 1.976, 3.012."""
    root = nifti_set(tmp_path / "data") if (tmp_path / "data").mkdir() is None else None
    wanted = (random(0, *SHAPE) % 13).astype(np.uint8)
    for number in range(3):
        made = nib.Nifti1Image(wanted.astype(float), np.diag([1.0, 1, 2, 1]))
        made.set_data_dtype(np.uint8)
        nib.save(made, root / "labels" / f"c{number}.nii.gz")
    (problem, *_) = check(root).problems
    assert "all lie within 0.024 of whole numbers, as programs write them through a scaled header" in problem.what
    assert problem.remedy == "round them, check --fix does so"
    report = check(root, fix=tmp_path / "fixed")
    assert report.ok and np.array_equal(labels_of(report), wanted)


@pytest.mark.parametrize(
    ("plant", "file", "words"),
    [
        (volume(shapes(SHAPE) * 0.5, folder="labels"), "labels/c1.nii.gz", "no whole numbers"),
        (volume(np.stack([random(1, *SHAPE)] * 2, -1)), "images/c1.nii.gz", "most cases are 3D with 1"),
        (written("images/c1.nii.gz", lambda data: data[:-12]), "images/c1.nii.gz", "is cut short"),
        (volume(-shapes(SHAPE).astype(np.int16), folder="labels"), "labels/c1.nii.gz", "negative"),
    ],
)
def test_what_is_left_out_is_told_of_the_users_own_files(tmp_path, plant, file, words):
    report, _ = repaired(tmp_path, nifti_set, plant)
    (told,) = report.repair.left_out
    assert told.file == str(tmp_path / "data" / file) and words in told.what and ".tmp-" not in str(report.repair)


def test_labels_are_turned_with_their_place_in_space(tmp_path):
    turned = np.swapaxes(shapes(SHAPE, at=4), 0, 1)[:, ::-1]
    affine = np.array([[0, -1, 0, SHAPE[0] - 1], [1, 0, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1.0]])
    report, _ = repaired(tmp_path, nifti_set, volume(turned, affine, "labels"))
    assert np.array_equal(labels_of(report), shapes(SHAPE, at=4))
    made = nib.load(report.root / "labels" / "c1.nii.gz")
    assert np.allclose(made.affine, nib.load(report.root / "images" / "c1.nii.gz").affine)


@pytest.mark.parametrize("orientation", range(5, 9))
def test_labels_on_stored_pixels_take_the_spacing_of_their_image(tmp_path, orientation):
    drawn, scale = shapes((20, 24)), {"imagej": True, "resolution": (4, 2), "metadata": {"axes": "YX", "unit": "mm"}}

    def make(root):
        for folder, array, tags in (
            ("images", random(1, 20, 24), [(274, 3, 1, orientation, True)]),
            ("labels", drawn, []),
        ):
            (root / folder).mkdir()
            tifffile.imwrite(root / folder / "c1.tif", array, extratags=tags, **scale)

    report, _ = repaired(tmp_path, make, lambda root: None)
    case = Dataset.from_folder(report.root).case("c1")
    image, labels = case.read_image(), case.read_labels()
    assert np.array_equal(labels.array[0], upright(drawn, orientation))
    assert (labels.size, labels.spacing, image.spacing) == ((24, 20), (0.25, 0.5), (0.25, 0.5))


def test_sound_files_are_copied_byte_for_byte(tmp_path):
    report, record = repaired(tmp_path, png_set, several(label(PALETTE), declared("classes", ["liver"])))
    assert record["changes"] == [] and report.labels.names == ("background", "liver")
    for name, origin in record["files"].items():
        assert (report.root / name).read_bytes() == (tmp_path / origin).read_bytes()


def test_what_is_said_of_images_and_of_the_data_stays(tmp_path):
    """Beside an image that is copied, one that is written anew under another name, and one that is left out."""
    texts = {
        "images/c0.json": '{"EchoTime": 0.03}',
        "labels/c1 .txt": "drawn by A",
        "LICENSE": "CC0",
        "README.md": "# Data",
    }

    root = nifti_set(tmp_path / "data")
    volume(NAN)(root)
    for folder in ("images", "labels"):
        rename(f"{folder}/c1.nii.gz", f"{folder}/c1 .nii.gz")(root)
    written("images/c2.nii.gz", lambda data: b"")(root)
    for name, text in {**texts, "images/c2.json": "{}"}.items():
        (root / name).write_text(text)
    about = {"name": "Hearts", "licence": "CC0", "numTraining": 3, "channel_names": {"0": "MR"}}
    (root / "dataset.json").write_text(json.dumps(about))
    declared("groups", {"c0": {"patient": "p", "site": "A"}})(root)
    declared("classes", {"0": "air", "1": "heart"})(root)
    report = check(root, fix=tmp_path / "fixed")
    for name, text in texts.items():
        assert (report.root / name.replace("c1 ", "c1")).read_text() == text
    assert not (report.root / "images" / "c2.json").exists()
    record = json.loads((report.root / "changes.json").read_text())
    assert record["files"]["labels/c1.txt"] == "data/labels/c1 .txt" and record["files"]["LICENSE"] == "data/LICENSE"
    told = json.loads((report.root / "dataset.json").read_text())
    assert told == {"name": "Hearts", "licence": "CC0", "channel_names": {"0": "MR"}}
    assert json.loads((report.root / "groups.json").read_text()) == {"c0": {"patient": "p", "site": "A"}}
    assert report.labels.names == ("air", "heart")


def test_what_cannot_be_copied_and_no_case_needs_costs_no_case(tmp_path, monkeypatch):
    """A read-me and a sidecar that belong to somebody else."""
    root, opened = png_set(tmp_path / "data"), Path.open
    sealed = [root / "README.md", root / "images" / "c0.json"]
    for path in sealed:
        path.write_text("{}")

    def refused(path, *how, **more):
        if path in sealed:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *how, **more)

    monkeypatch.setattr(Path, "open", refused)
    report = check(root, fix=tmp_path / "fixed")
    assert len(Dataset.from_folder(report.root)) == 4
    assert {Path(one.file).name for one in report.repair.left_out} == {"README.md", "c0.json"}
    assert all("Permission denied" in one.what for one in report.repair.left_out)
    assert not {"README.md", "images/c0.json"} & set(json.loads((report.root / "changes.json").read_text())["files"])


def test_no_data_are_copied_for_their_name(tmp_path):
    """What is called as texts about the data are, and is one of its files, or an archive of them."""
    root = tmp_path / "data"
    root.mkdir()
    np.savez(root / "synthetic.npz", images=random(0, 3, 24, 20), masks=np.stack([shapes((24, 20))] * 3))
    texts = ["LICENSE", "LICENSE-CC-BY-4.0", "README.md", "synthetic.txt"]
    for name in [*texts, "synthetic.zip", "README_scans.tar"]:
        (root / name).write_text("of the data")
    report = check(root, fix=tmp_path / "fixed")
    assert len(Dataset.from_folder(report.root)) == 3
    kept = {path.name for path in report.root.iterdir() if path.is_file()}
    assert kept & {*texts, "synthetic.zip", "synthetic.npz", "README_scans.tar"} == set(texts)


def test_no_file_beside_a_case_of_a_series_is_copied(tmp_path):
    """It may hold its header, beside the label map too."""
    root = nifti_set(tmp_path / "data")
    write_series(root / "images" / "c9", random(9, 6, 20, 24).astype(np.int16))
    volume = read_image(series_in(root / "images" / "c9", Wishes())[0], 3)
    labels = np.zeros(volume.size, np.uint8)
    labels[2:5, 2:5, 2:5] = 1
    write_labels(root / "labels" / "c9", labels, volume, format="nifti")
    for name in ("images/c9.json", "labels/c9.json"):
        (root / name).write_text('{"PatientName": "MARK^MARK"}')
    report = check(root, fix=tmp_path / "fixed")
    assert (report.root / "labels" / "c9.nii.gz").exists(), report.repair.left_out
    assert not any(b"MARK" in path.read_bytes() for path in report.root.rglob("*") if path.is_file())


def test_rows_of_an_npz_become_files(tmp_path):
    report, record = repaired(tmp_path, npz_set, lambda root: None)
    dataset = Dataset.from_folder(report.root)
    assert len(dataset) == 6 and dataset.given_splits[0].val == ("val_0000", "val_0001", "val_0002")
    assert record["files"]["images/val_0001.npy"].endswith("val.npz[1]")
    assert np.array_equal(dataset.case("val_0001").read_image().array[0], random(11, 24, 20))


def test_a_folder_that_is_there_is_never_written_to(tmp_path):
    root = png_set(tmp_path / "data")
    (tmp_path / "fixed").mkdir()
    with pytest.raises(UsageError, match="is there already; --fix never overwrites"):
        check(root, fix=tmp_path / "fixed")
    with pytest.raises(UsageError, match="lies in the data set itself"):
        check(root, fix=root / "fixed")
    assert list((tmp_path / "fixed").iterdir()) == [] and not (root / "fixed").exists()


def test_a_copy_that_fails_leaves_nothing(tmp_path, monkeypatch):
    root = png_set(tmp_path / "data")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ulna.data.quality.copying.shutil.copyfile", full)
    with pytest.raises(UsageError, match=r"fixed: cannot be written \(No space left on device: .* are free\)"):
        check(root, fix=tmp_path / "fixed")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_nothing_to_repair_is_told(tmp_path):
    root = png_set(tmp_path / "data")
    for path in root.glob("*/*.png"):
        path.write_bytes(b"")
    with pytest.raises(UsageError, match="no case can be repaired"):
        check(root, fix=tmp_path / "fixed")
    assert not (tmp_path / "fixed").exists()


def test_the_command_line_tells_what_was_done(tmp_path, capsys):
    root = png_set(tmp_path / "data")
    label(shapes((24, 20), 3))(root)
    (root / "images" / "c2.png").write_bytes(b"")
    assert cli.run(["check", str(root), "--fix", str(tmp_path / "fixed"), "--quiet"]) == 0
    out = capsys.readouterr().out
    assert "changed  labels/c1.png: label values 0, 3 became 0, 2" in out and "left out" in out
    assert "is empty (0 bytes)" in out and f"repaired copy: {tmp_path / 'fixed'}" in out
    nifti(root / "images" / "x.nii.gz", random(0, *SHAPE))
    Image.fromarray(shapes((4, 4))).save(root / "labels" / "x.png")
    assert cli.run(["check", str(root), "--fix", str(tmp_path / "more"), "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["repair"]["left_out"]


def test_safe_names_differ_and_fit():
    names = safe_names(["a" * 300, "a" * 299 + "b", "x\ny", "x_y", ".", ""])
    assert len({name.casefold() for name in names.values()}) == 6 and names["x_y"] == "x_y"
    assert all(len(name.encode()) <= 200 and name.isprintable() for name in names.values())
