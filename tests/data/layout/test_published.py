"""Data sets as their sites hand them out, in miniature: check, train, predict and evaluate without a file renamed."""

import gzip
import json

import nibabel as nib
import numpy as np
import pytest
import tifffile
from PIL import Image

import ulna
from tests.places import SHARED
from tests.training.tiny import TINY
from ulna.cli import main as cli
from ulna.data.layout.dataset import Dataset, split
from ulna.data.layout.published import LAST_FRAMES, sequence_of
from ulna.data.quality.check import check
from ulna.errors import DataError
from ulna.recipe import Labels

BOX = (20, 18, 16)


def disc(n, size=(32, 40), radius=6):
    """Where a disc lies, another one in every image."""
    rng = np.random.default_rng(n)
    grids = np.ogrid[tuple(slice(s) for s in size)]
    middle = [rng.integers(radius, s - radius) for s in size]
    return sum((grid - m) ** 2 for grid, m in zip(grids, middle, strict=True)) < radius**2


def scan(n, inside, values=(0, 900)):
    """Noise that is brighter inside."""
    noise = np.random.default_rng(n).normal(0, 30, inside.shape)
    return np.where(inside, values[1], values[0]) + noise


def nifti(path, array, spacing=(1.0, 1.0, 2.0), dtype=np.int16):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.asarray(array).astype(dtype), np.diag([*spacing, 1.0])), path)
    return path


def resource_fork(path):
    """What macOS leaves beside every file in an archive."""
    path.with_name(f"._{path.name}").write_bytes(b"\x00\x05\x16\x07Mac OS X")


def cvc(root, frames=(1, 2, 25, 26, 27, 51, 52, 70, 110, 300, 611, 612)):
    for folder in ("Original", "Ground Truth"):
        (root / folder).mkdir(parents=True)
    for n in frames:
        inside = disc(n)
        picture = np.stack([scan(n, inside, (60, 170)) * share for share in (1.0, 0.8, 0.6)], axis=-1)
        tifffile.imwrite(root / "Original" / f"{n}.tif", picture.clip(0, 255).astype(np.uint8), photometric="rgb")
        mask = np.repeat(255 * inside[..., None], 3, axis=2).astype(np.uint8)
        tifffile.imwrite(root / "Ground Truth" / f"{n}.tif", mask, photometric="rgb")
    (root / "README.txt").write_text("CVC-ClinicDB")
    return root


def lits(root, count=6, tests=1):
    for n in range(count):
        folder = root / f"Training Batch {1 + (n >= 2)}"
        liver, tumour = disc(n, BOX, 6), disc(n, BOX, 3)
        nifti(folder / f"volume-{n}.nii", scan(n, liver, (-100, 60)) + 80 * tumour)
        nifti(folder / f"segmentation-{n}.nii", liver * (1 + tumour), dtype=np.uint8)
    for n in range(tests):
        nifti(root / "LITS-Challenge-Test-Data" / f"test-volume-{n}.nii", scan(n, disc(n, BOX)))
    return root


def kits(root, count=6, tests=1):
    for n in range(count):
        kidney, tumour = disc(n, BOX, 6), disc(n, BOX, 3)
        case = root / "data" / f"case_{n:05d}"
        nifti(case / "imaging.nii.gz", scan(n, kidney, (-100, 150)) + 60 * tumour)
        nifti(case / "segmentation.nii.gz", kidney * (1 + tumour), dtype=np.uint8)
    for n in range(210, 210 + tests):
        nifti(root / "data" / f"case_{n:05d}" / "imaging.nii.gz", scan(n, disc(n, BOX)))
    (root / "data" / "kits.json").write_text("[]")
    (root / "starter_code").mkdir()
    (root / "starter_code" / "get_imaging.py").write_text("")
    return root


MODALITIES = {"Task01_BrainTumour": ("FLAIR", "T1w", "t1gd", "T2w"), "Task06_Lung": ("CT",), "Task07_Pancreas": ("CT",)}
CLASSES = {
    "Task01_BrainTumour": ("edema", "non-enhancing tumor", "enhancing tumour"),
    "Task06_Lung": ("cancer",),
    "Task07_Pancreas": ("pancreas", "cancer"),
}


def decathlon(root, count=6):
    """As it is unpacked on another system than macOS: `._` files beside everything, test images without label maps."""
    names, classes = MODALITIES[root.name], CLASSES[root.name]
    cases = [f"{root.name[7:12].lower()}_{n:03d}" for n in range(count + 1)]
    for n, case in enumerate(cases):
        labels = sum(disc(n, BOX, 7 - 2 * k).astype(int) for k in range(len(classes)))
        channels = np.stack([scan(n + 100 * c, labels > 0) for c in range(len(names))], axis=-1)
        test = n == count
        image = nifti(root / ("imagesTs" if test else "imagesTr") / f"{case}.nii.gz", np.squeeze(channels))
        resource_fork(image)
        if not test:
            resource_fork(nifti(root / "labelsTr" / f"{case}.nii.gz", labels, dtype=np.uint8))
    about = {
        "name": root.name[7:], "tensorImageSize": "4D" if len(names) > 1 else "3D", "licence": "CC-BY-SA 4.0",
        "modality": {str(c): name for c, name in enumerate(names)},
        "labels": {"0": "background", **{str(k): name for k, name in enumerate(classes, start=1)}},
        "numTraining": count, "numTest": 1,
        "training": [{"image": f"./imagesTr/{c}.nii.gz", "label": f"./labelsTr/{c}.nii.gz"} for c in cases[:-1]],
        "test": [f"./imagesTs/{cases[-1]}.nii.gz"],
    }  # fmt: skip
    (root / "dataset.json").write_text(json.dumps(about))
    resource_fork(root / "dataset.json")
    return root


def lidc(root, patients=5):
    for n in range(patients):
        for nodule in range(1 + n % 2):
            inside = disc(10 * n + nodule, (64, 64, 64), 9)
            for folder, array in (("images", scan(n, inside)), ("labels", inside)):
                (root / folder).mkdir(parents=True, exist_ok=True)
                kind = np.int16 if folder == "images" else np.uint8
                np.save(root / folder / f"LIDC-IDRI-{n:04d}_nodule-{nodule}.npy", array.astype(kind))
    return root


def bowl(root, count=6):
    for n in range(count):
        case = root / f"{n:02d}ae65"
        for folder in ("images", "masks"):
            (case / folder).mkdir(parents=True)
        inside = disc(n)
        picture = np.dstack([scan(n, inside, (20, 200)).clip(0, 255)] * 3 + [np.full(inside.shape, 255)])
        Image.fromarray(picture.astype(np.uint8)).save(case / "images" / f"{case.name}.png")
        for number, half in enumerate((inside[:, :20], inside[:, 20:])):
            mask = np.zeros(inside.shape, np.uint8)
            mask[:, 20 * number : 20 * number + 20] = 255 * half
            if mask.any():
                Image.fromarray(mask).save(case / "masks" / f"{number}.png")
    return root


PUBLISHED = {
    "CVC-ClinicDB": (cvc, "layout: CVC-ClinicDB (Original/, Ground Truth/), 12 frames of 7 sequences, each a group",
                     ("background", "polyp"), None),
    "LiTS": (lits, "layout: LiTS (volume-N.nii, segmentation-N.nii), 6 volumes in Training Batch 1 and Training Batch 2; "
             "test volumes without label maps: 1",
             ("background", "liver", "tumour"), ("CT",)),
    "kits19": (kits, "layout: KiTS19 (case_N/imaging.nii.gz, segmentation.nii.gz), 7 cases; without label maps: 1",
               ("background", "kidney", "tumour"), ("CT",)),
    **{name: (decathlon, f"layout: {name} of the Medical Segmentation Decathlon (dataset.json, imagesTr/, labelsTr/), 7 "
              "cases",
              ("background", *CLASSES[name]), MODALITIES[name]) for name in MODALITIES},
    "LIDC": (lidc, "layout: LIDC-IDRI, 7 crops of 5 patients by their names, each patient a group",
             ("background", "foreground"), None),
    "stage1_train": (bowl, "layout: stage1_train of the 2018 Data Science Bowl (CASE/images/, CASE/masks/), 6 cases",
                     ("background", "foreground"), None),
}  # fmt: skip


@pytest.mark.share(5)
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_data_set_goes_in_as_it_is(tmp_path, name, capsys):
    make, note, classes, channels = PUBLISHED[name]
    root = make(tmp_path / name)
    assert cli.run(["check", str(root)]) == 0
    said = " ".join("".join(capsys.readouterr()).split())
    assert said.count(note) == 1
    report = check(root)
    assert report.ok and report.labels == Labels(names=classes) and report.notes.count(note) == 1
    dataset = Dataset.from_folder(root)
    assert dataset.channel_names == channels

    patch = "planning.patch=[16, 16]" if report.spatial_dims == 2 else "planning.patch=[16, 16, 16]"
    settings = [*TINY, patch, "training.min_steps=2", "architecture.channels=[4, 8]"]
    run = ulna.train(root, model="unet", out=tmp_path / "run", epochs=1, set=settings)
    made = ulna.predict(run.folder, root, out=tmp_path / "masks")
    assert len(made.cases) == len(dataset) and not made.failed
    scored = ulna.evaluate(tmp_path / "masks", root)
    assert scored.summary["cases"] == len(dataset.labelled) and not scored.summary["missing"]
    assert tuple(scored.summary["classes"]) == classes[1:]
    assert check(root).notes == report.notes  # nothing was written into it


def test_the_table_of_sequences_covers_612_frames_and_agrees_with_a_copy_of_it():
    counts = np.bincount([sequence_of(frame) for frame in range(1, 613)])
    assert counts[0] == 0 and len(counts) == 30 and counts[1:].min() == 6 and counts.sum() == 612
    assert list(LAST_FRAMES) == sorted(set(LAST_FRAMES))
    file = SHARED / "polyps" / "splits.json"
    if not file.exists():
        pytest.skip("real data are not on this machine")
    ranges = json.loads(file.read_text())["frame_ranges"]
    assert len(ranges) == 26
    for sequence, (first, last) in ranges.items():
        assert {sequence_of(frame) for frame in range(first, last + 1)} == {int(sequence)}
        assert sequence_of(first - 1) == int(sequence) - 1 if first > 1 else True
        assert LAST_FRAMES[int(sequence) - 1] == last


def test_no_sequence_and_no_patient_is_parted(tmp_path):
    for make, name in ((cvc, "cvc"), (lidc, "lidc")):
        dataset = Dataset.from_folder(make(tmp_path / name))
        group = {case.id: case.group for case in dataset.cases}
        for seed in range(5):
            parts = split(dataset, seed)
            sets = [{group[id] for id in ids} for ids in (parts.train, parts.val, parts.test)]
            assert not sets[0] & sets[1] and not sets[0] & sets[2] and not sets[1] & sets[2]


def test_groups_json_and_classes_json_take_the_place_of_what_the_layout_says(tmp_path):
    root = cvc(tmp_path / "cvc", frames=(1, 2, 3))
    (root / "groups.json").write_text(json.dumps({"1": "p", "2": "q", "3": "q"}))
    (root / "classes.json").write_text(json.dumps(["adenoma"]))
    dataset = Dataset.from_folder(root)
    assert [case.group for case in dataset.cases] == list("pqq") and dataset.labels.foreground == ("adenoma",)
    task = decathlon(tmp_path / "Task01_BrainTumour")
    (task / "classes.json").write_text(json.dumps({"whole tumour": [1, 2, 3]}))
    dataset = Dataset.from_folder(task)
    assert dataset.labels.values == ((1, 2, 3),) and dataset.channel_names == MODALITIES[task.name]
    assert "classes.json names the classes, in place of the labels of dataset.json" in dataset.notes
    omega = kits(tmp_path / "kits")
    (omega / "classes.json").write_text(json.dumps({"kidney": [1, 2], "tumour": [2]}))
    assert check(omega).ok and Dataset.from_folder(omega).labels.multilabel


def test_frames_that_are_renamed_have_no_sequence(tmp_path):
    root = cvc(tmp_path, frames=(1, 2))
    for folder in ("Original", "Ground Truth"):
        (root / folder / "2.tif").rename(root / folder / "polyp.tif")
    dataset = Dataset.from_folder(root)
    assert all(case.group is None for case in dataset.cases)
    assert "nothing says which sequence they are of: see groups.json" in dataset.notes[0]


def told(path, **options):
    with pytest.raises(DataError) as caught:
        Dataset.from_folder(path, **options)
    return str(caught.value)


def test_what_lacks_in_a_published_data_set_is_told(tmp_path):
    root = lits(tmp_path / "lits")
    (root / "Training Batch 1" / "segmentation-1.nii").unlink()
    (root / "Training Batch 2" / "volume-3.nii").unlink()
    text = told(root)
    assert "volume-1.nii: has no segmentation-1.nii; add the segmentation" in text
    assert "segmentation-3.nii: has no volume-3.nii" in text and text.count("\n") == 2
    assert len(Dataset.from_folder(root, need_labels=False)) == 6
    twice = root / "Training Batch 1" / "volume-2.nii"
    (root / "Training Batch 1" / "volume-2.nii.gz").write_bytes(gzip.compress(b"x"))
    assert "has the number of" in told(root) and not twice.exists()

    root = kits(tmp_path / "kits")
    (root / "data" / "case_00001" / "imaging.nii.gz").unlink()
    (root / "data" / "case_00002" / "segmentation.nii.gz").unlink()
    text = told(root)
    assert "case_00001: holds no imaging.nii.gz; download it" in text
    assert "case_00002: holds no segmentation.nii.gz; add" in text

    root = cvc(tmp_path / "cvc", frames=(1, 2))
    (root / "Ground Truth" / "2.tif").unlink()
    assert "2.tif: has no label map Ground Truth/2.*" in told(root)


def test_prediction_needs_no_label_maps(tmp_path):
    import shutil

    root = cvc(tmp_path / "cvc", frames=(1, 2))
    shutil.rmtree(root / "Ground Truth")
    assert [case.id for case in Dataset.from_folder(root, need_labels=False).cases] == ["1", "2"]
    root = lits(tmp_path / "lits", count=0, tests=2)
    assert [case.id for case in Dataset.from_folder(root, need_labels=False).cases] == [
        "test-volume-0",
        "test-volume-1",
    ]


UNKNOWN = [
    (["img/a.png", "mask/a.png"], True, "rename img/ to images/ and mask/ to labels/"),
    (["frames/a.png", "gt/a.png"], False, "give the folder frames/ itself"),
    (["inner/images/a.png", "inner/labels/a.png"], True, "nearest is a data set (images/, labels/): give the folder inner/"),
    (["TIF/Original/1.tif", "TIF/Ground Truth/1.tif", "PNG/Original/1.png"], True, "give the folder TIF/ itself"),
    (["a.png", "a_mask.png"], True, "in one folder: move the images to images/, the label maps to labels/"),
    (["a.png", "b.png"], True, "images without label maps, which can be predicted"),
    (["x/y/z.txt"], True, "lay the data out as"),
    (["x/y/z.txt"], False, "label maps are not needed"),
]  # fmt: skip


@pytest.mark.parametrize(("files", "need_labels", "words"), UNKNOWN)
def test_an_unknown_layout_lists_what_it_saw_and_the_nearest(tmp_path, files, need_labels, words):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(tmp_path / name) if not name.endswith(".txt") else (tmp_path / name).write_text("")
    text = told(tmp_path, need_labels=need_labels)
    assert "has a layout that is not known; it holds" in text and words in text
    assert files[0].split("/")[0].split(".")[-1] in text
    assert need_labels or "labels/CASE" not in text
