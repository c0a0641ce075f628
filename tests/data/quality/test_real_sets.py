"""No false alarm: every real data set in every layout that it fits, and in other formats."""

import json

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from ulna.data.formats.read import read_image, read_labels
from ulna.data.formats.source import Source
from ulna.data.layout.dataset import Dataset
from ulna.data.quality.check import check

pytestmark = pytest.mark.slow


def linked(target, source):
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(source)


def sound(root, cases=None):
    report = check(root)
    assert report.problems == (), f"{report}"
    assert report.scans and (cases is None or len(report.scans) == cases)
    return report


@pytest.mark.parametrize(
    ("name", "cases"),
    [
        ("nuclei", 598),
        ("nuclei96", 598),
        ("hippocampus", 208),
        ("polyps", 544),
        ("membrane", 25),
        ("retina", 16),
        ("brain_tumour", 4),
        ("brain_tumour_4ch", 1),
        ("lung_patches", 130),
    ],
)
def test_a_set_as_it_stands(shared_data, name, cases):
    assert len(sound(shared_data / name, cases).labels.names) >= 2


def test_hippocampus_as_nnunet_and_as_pairs_with_folds_and_groups(shared_data, tmp_path):
    source = shared_data / "hippocampus"
    ids = sorted(path.name.removesuffix(".nii.gz") for path in (source / "labelsTr").glob("*.nii.gz"))
    for id in ids:
        linked(tmp_path / "nnunet" / "imagesTr" / f"{id}_0000.nii.gz", source / "imagesTr" / f"{id}.nii.gz")
        linked(tmp_path / "nnunet" / "labelsTr" / f"{id}.nii.gz", source / "labelsTr" / f"{id}.nii.gz")
        linked(tmp_path / "pairs" / "images" / f"{id}.nii.gz", source / "imagesTr" / f"{id}.nii.gz")
        linked(tmp_path / "pairs" / "labels" / f"{id}.nii.gz", source / "labelsTr" / f"{id}.nii.gz")
    about = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "Anterior": 1, "Posterior": 2}}
    about |= {"numTraining": len(ids), "file_ending": ".nii.gz"}
    (tmp_path / "nnunet" / "dataset.json").write_text(json.dumps(about))
    folds = [{"train": [c for c in ids if c not in ids[n::5]], "val": ids[n::5]} for n in range(5)]
    (tmp_path / "pairs" / "splits.json").write_text(json.dumps(folds))
    groups = {id: f"patient {number}" for number, id in enumerate(ids)}
    (tmp_path / "pairs" / "groups.json").write_text(json.dumps(groups))
    assert sound(tmp_path / "nnunet", 208).labels.foreground == ("Anterior", "Posterior")
    sound(tmp_path / "pairs", 208)
    assert len(Dataset.from_folder(tmp_path / "pairs").given_splits) == 5


def test_nuclei_with_one_mask_per_nucleus(shared_data, tmp_path):
    source = shared_data / "nuclei"
    paths = sorted((source / "images").iterdir())[:40]
    for path in paths:
        linked(tmp_path / path.stem / "images" / path.name, path)
        instances = np.asarray(Image.open(source / "instances" / path.name))
        masks = tmp_path / path.stem / "masks"
        masks.mkdir()
        for number in range(1, int(instances.max()) + 1):
            Image.fromarray(np.where(instances == number, 255, 0).astype(np.uint8)).save(masks / f"{number}.png")
    sound(tmp_path, len(paths))
    case = Dataset.from_folder(tmp_path).cases[7]
    whole = read_labels(Source(source / "labels" / f"{case.id}.png")).array
    assert np.array_equal(case.read_labels().array, whole)


def test_single_scans_as_pairs(shared_data, tmp_path):
    liver, organs = shared_data / "ct_liver" / "chaos_ct_set_3", shared_data / "ct_organs" / "example_ct_sm"
    for name, image, label in [
        ("liver", liver / "image.nii.gz", liver / "label_liver.nii.gz"),
        ("organs", organs / "image.nii.gz", organs / "label_model.nii.gz"),
    ]:
        linked(tmp_path / name / "images" / "case.nii.gz", image)
        linked(tmp_path / name / "labels" / "case.nii.gz", label)
        sound(tmp_path / name, 1)
    sound(liver / "slices128.npz", 78)


@pytest.mark.parametrize("suffix", [".mha", ".nrrd", ".npy", ".nii"])
def test_real_volumes_in_other_formats(shared_data, tmp_path, suffix):
    sitk = pytest.importorskip("SimpleITK")
    for path in sorted((shared_data / "brain_tumour_4ch").glob("*Tr/*.nii.gz")):
        folder = tmp_path / ("images" if path.parent.name == "imagesTr" else "labels")
        folder.mkdir()
        target = folder / f"case{suffix}"
        if suffix == ".npy":
            np.save(target, np.asarray(nib.load(path).dataobj))
        elif suffix == ".nii":
            nib.load(path).to_filename(target)
        else:
            sitk.WriteImage(sitk.ReadImage(str(path)), str(target), True)
    report = sound(tmp_path, 1)
    original = check(shared_data / "brain_tumour_4ch").scans[0]
    assert report.scans[0].label_values == original.label_values and report.scans[0].channels == 4
    assert report.scans[0].image == original.image


def test_every_file_of_the_collection_that_has_a_known_ending_is_read(shared_data):
    files = [path for path in shared_data.rglob("*") if path.name.endswith((".nii.gz", ".nrrd", ".mha"))]
    files = [path for path in files if "hippocampus" not in path.parts]
    assert len(files) >= 10
    for path in files:
        volume = read_image([Source(path)])
        assert volume.meta.faults == (), path
        if path.name.endswith(".nii.gz"):
            assert volume.size == tuple(n for n in nib.load(path).shape[:3]), path


def test_a_sound_set_is_repaired_without_a_change(shared_data, tmp_path):
    report = check(shared_data / "membrane", fix=tmp_path / "fixed")
    record = json.loads((tmp_path / "fixed" / "changes.json").read_text())
    assert report.ok and record["changes"] == [] and record["left_out"] == []
    for name, origin in record["files"].items():
        assert (tmp_path / "fixed" / name).read_bytes() == (shared_data / origin).read_bytes()
