"""Trees of DICOM files as data sets: cases by folder or study, labels by their own references, classes by name."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests import dicom_series as dicom
from tests.data.formats.dicom.test_labels_in import contours, seg, square
from ulna.data.formats.dicom.choosing import Wishes
from ulna.data.layout.dataset import Dataset
from ulna.errors import UsageError
from ulna.inference.batches import usable
from ulna.recipe import Labels

VALUES = dicom.ramp(3, 6, 7)


def box(lo, hi):
    mask = np.zeros(VALUES.shape, np.uint8)
    mask[:, lo:hi, lo:hi] = 1
    return mask


def case(root, name, *, series="ct", labels="seg", names=("liver",), study=None, **kwargs):
    study = study or name
    files = dicom.write_series(root / name / "deep" / series, VALUES, study=study, series=series, **kwargs)
    if labels:
        (root / name / "other").mkdir(exist_ok=True, parents=True)
        mask = np.stack([box(n, n + 2) for n in range(0, 2 * len(names), 2)], axis=-1)
        seg(root / name / "other" / f"{series}.dcm", files, mask, names=names)
    return files


def test_labels_find_their_series_by_reference_and_not_by_folder(tmp_path):
    case(tmp_path, "a")
    case(tmp_path, "b")
    one, two = (tmp_path / name / "other" / "ct.dcm" for name in "ab")
    one.rename(tmp_path / "x.dcm"), two.rename(one), (tmp_path / "x.dcm").rename(two)  # in the wrong folders
    dataset = Dataset.from_folder(tmp_path)
    assert [c.id for c in dataset.cases] == ["a", "b"]
    for name, other in (("a", two), ("b", one)):
        label = dataset.case(name).label
        assert label.path == other
        assert label.series.grid[0].is_relative_to(tmp_path / name)
    assert dataset.labels == Labels(names=("background", "liver"))


def test_a_seg_without_a_series_is_told(tmp_path):
    case(tmp_path, "a")
    files = case(tmp_path / "elsewhere", "z", study="zz", labels="")
    seg(tmp_path / "a" / "lost.dcm", files, box(0, 2), names=("liver",))
    import shutil

    shutil.rmtree(tmp_path / "elsewhere")
    dataset = Dataset.from_folder(tmp_path)
    assert any("lost.dcm: a SEG that refers to no series" in note for note in dataset.notes)


def test_a_case_without_labels_is_a_problem_for_training_only(tmp_path):
    case(tmp_path, "a"), case(tmp_path, "b", labels="")
    with pytest.raises(UsageError, match="b: has no SEG and no RTSTRUCT that refers to its series"):
        Dataset.from_folder(tmp_path)
    assert [c.label is None for c in Dataset.from_folder(tmp_path, need_labels=False).cases] == [False, True]


def test_the_labelled_series_of_a_case_is_taken_and_said(tmp_path):
    case(tmp_path, "a")
    case(tmp_path, "a", series="longer", labels="", description="longer")
    case(tmp_path, "b")
    dataset = Dataset.from_folder(tmp_path)
    assert dataset.case("a").images[0].files[0].parent.name == "ct"
    (said,) = (note for note in dataset.notes if "a: of 2 series the labelled one" in note)
    for listed in ("CT 'axial 5 mm', 7 x 6 x 3", "CT 'longer', 7 x 6 x 3"):
        assert listed in said.partition("all: ")[2]


def test_two_labelled_series_of_a_patient_are_two_cases_of_one_group(tmp_path):
    case(tmp_path, "a"), case(tmp_path, "a", series="second"), case(tmp_path, "b")
    dataset = Dataset.from_folder(tmp_path)
    assert [(c.id, c.group) for c in dataset.cases] == [("a-1", "a"), ("a-2", "a"), ("b", None)]
    for number, series in ((1, "ct"), (2, "second")):
        uid = dicom.uid("a", series)
        assert any(
            note.startswith(f"a-{number}: one of 2 labelled series of a, CT") and uid in note for note in dataset.notes
        )


def test_studies_of_a_patient_are_cases_of_one_group(tmp_path):
    for visit in ("first", "second"):
        files = dicom.write_series(tmp_path / "p" / visit / "ct", VALUES, study=visit)
        (tmp_path / "p" / visit / "seg").mkdir()
        seg(tmp_path / "p" / visit / "seg" / "1.dcm", files, box(0, 2), names=("liver",))
    case(tmp_path, "q")
    dataset = Dataset.from_folder(tmp_path)
    assert [(c.id, c.group) for c in dataset.cases] == [("p-first", "p"), ("p-second", "p"), ("q", None)]


def test_a_folder_of_one_study_is_one_case(tmp_path):
    root = tmp_path / "study"
    dicom.write_series(root / "1", VALUES, series="a", description="T1")
    dicom.write_series(root / "2", VALUES[:2], series="b", description="T2")
    dataset = Dataset.from_folder(root, need_labels=False)
    assert [c.id for c in dataset.cases] == ["study"]
    assert any("'T1', 7 x 6 x 3" in note and "'T2', 7 x 6 x 2" in note for note in dataset.notes)


def test_channels_by_description_from_dicom_json(tmp_path):
    for name in "ab":
        for series in ("t1 axial", "t2 axial", "localiser"):
            case(tmp_path, name, series=series, labels="seg" if series == "t2 axial" else "", description=series)
    (tmp_path / "dicom.json").write_text(json.dumps({"series": ["t2", "t1"]}))
    dataset = Dataset.from_folder(tmp_path)
    assert dataset.channel_names == ("t2", "t1")
    for one in dataset.cases:
        assert [source.path.name for source in one.images] == ["t2 axial", "t1 axial"]
        assert one.read_image().channels == 2 and one.read_labels().array.any()
    assert Dataset.from_folder(tmp_path, need_labels=False, wishes=Wishes(channels=("t1", "t2"))).cases[0].images


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("[1]", "no JSON object"),
        ('{"series": 3}', "something else than text"),
        ('{"tilt": "bend"}', "tilt is 'bend'; give resample or refuse"),
        ('{"tlit": "refuse"}', "did you mean 'tilt'"),
        ("{", "dicom.json"),
        ('{"series": "bone"}', "no series 'bone'"),
    ],
)
def test_a_wrong_dicom_json_is_named(tmp_path, text, wanted):
    case(tmp_path, "a"), case(tmp_path, "b")
    (tmp_path / "dicom.json").write_text(text)
    with pytest.raises(UsageError, match=wanted):
        Dataset.from_folder(tmp_path)


def test_classes_json_chooses_renames_and_unites(tmp_path):
    for name in "ab":
        case(tmp_path, name, names=("Kidney_L", "Kidney_R", "liver"))
    (tmp_path / "classes.json").write_text(json.dumps({"organ": ["kidney l", "KIDNEY_R"], "second": "liver"}))
    dataset = Dataset.from_folder(tmp_path)
    assert dataset.labels == Labels(names=("background", "organ", "second"))
    found = dataset.case("a").read_labels().array[0]
    wanted = box(0, 2) + box(2, 4) + 2 * box(4, 6)
    assert np.array_equal(found, wanted.transpose(2, 1, 0))
    (tmp_path / "classes.json").write_text(json.dumps({"1": "liver"}))
    dataset = Dataset.from_folder(tmp_path)
    assert dataset.labels == Labels(names=("background", "liver"))
    assert np.array_equal(dataset.case("b").read_labels().array[0], box(4, 6).transpose(2, 1, 0))
    (tmp_path / "classes.json").write_text(json.dumps({"spleen": ["milz"]}))
    with pytest.raises(UsageError, match="'spleen', which no label file holds; they hold Kidney_L, Kidney_R, liver"):
        Dataset.from_folder(tmp_path)


def test_structures_that_overlap_become_channels(tmp_path):
    for name in "ab":
        files = case(tmp_path, name, labels="")
        mask = np.stack([box(0, 4), box(2, 6)], axis=-1)
        seg(tmp_path / name / "s.dcm", files, mask)
    dataset = Dataset.from_folder(tmp_path)
    assert dataset.labels == Labels(names=("a", "b"), multilabel=True)
    assert dataset.case("a").read_labels().array.shape[0] == 2


def test_rtstruct_and_seg_side_by_side_and_one_structure_in_two_files(tmp_path):
    files = case(tmp_path, "a")
    contours(tmp_path / "a" / "rt.dcm", files, {"tumour": [square(-9, 6, -6, 9, 32)]})
    case(tmp_path, "b")
    dataset = Dataset.from_folder(tmp_path)
    assert dataset.labels == Labels(names=("liver", "tumour"), multilabel=True)
    assert any("'tumour' (1)" in note for note in dataset.notes)
    contours(tmp_path / "a" / "again.dcm", files, {"Liver": [square(-9, 6, -6, 9, 32)]})
    with pytest.raises(UsageError, match=r"holds the structure 'liver', which again\.dcm"):
        Dataset.from_folder(tmp_path)


def test_labels_that_cannot_be_used_are_no_hindrance_to_prediction(tmp_path):
    """Two readers' structures of one name, and a drawing on no series that is clear: both lie in many an archive."""
    files = case(tmp_path, "a")
    contours(tmp_path / "a" / "again.dcm", files, {"Liver": [square(-9, 6, -6, 9, 32)]})
    case(tmp_path, "b", labels="")
    (tmp_path / "classes.json").write_text('{"labels": {"x": "spleen"}}')
    with pytest.raises(UsageError, match="which again"):
        Dataset.from_folder(tmp_path)
    dataset = Dataset.from_folder(tmp_path, need_labels=False)
    assert [c.id for c in dataset.cases] == ["a", "b"]
    assert any("holds the structure 'liver', which again.dcm of the same series holds too" in n for n in dataset.notes)
    assert not any("are background in the others" in note for note in dataset.notes)  # classes are those of the run


def test_one_series_in_the_folders_of_two_cases_is_a_problem(tmp_path):
    paths = dicom.write_series(tmp_path / "a", dicom.ramp(6, 4, 4), study="one")
    (tmp_path / "b").mkdir()
    for path in paths[3:]:
        path.rename(tmp_path / "b" / path.name)
    dicom.write_series(tmp_path / "c", VALUES, study="two")
    with pytest.raises(UsageError, match="holds slices of a series that a/ holds too"):
        Dataset.from_folder(tmp_path, need_labels=False)


def test_other_images_beside_are_not_read_and_that_is_said(tmp_path):
    case(tmp_path, "a"), case(tmp_path, "b")
    (tmp_path / "mask.nii.gz").write_bytes(b"x")
    dataset = Dataset.from_folder(tmp_path, need_labels=False)
    assert any("not read beside DICOM files: 1 image of other formats, mask.nii.gz" in note for note in dataset.notes)


def test_slices_laid_side_by_side_in_images_are_not_cases(tmp_path):
    dicom.write_series(tmp_path / "images", VALUES)
    with pytest.raises(UsageError, match=r"3 slices of one series.*images/CASE/"):
        Dataset.from_folder(tmp_path, need_labels=False)


def test_pairs_with_segs_take_their_classes_by_name_too(tmp_path):
    for name in "ab":
        files = dicom.write_series(tmp_path / "images" / name, VALUES, study=name)
        (tmp_path / "labels").mkdir(exist_ok=True)
        mask = np.stack([box(0, 2), box(2, 4)], axis=-1)
        seg(tmp_path / "labels" / f"{name}.dcm", files, mask, names=("Leber", "Milz"))
    (tmp_path / "classes.json").write_text(json.dumps({"spleen": ["milz"], "liver": ["leber"]}))
    dataset = Dataset.from_folder(tmp_path)
    assert dataset.layout == "pairs"
    assert dataset.labels == Labels(names=("background", "spleen", "liver"))
    assert np.array_equal(dataset.case("a").read_labels().array[0], (2 * box(0, 2) + box(2, 4)).transpose(2, 1, 0))


def test_an_image_that_is_called_a_label_map_is_not_segmented_in_silence(tmp_path):
    import nibabel

    for name in ("liver_label", "scan"):
        nibabel.save(nibabel.Nifti1Image(np.zeros((3, 4, 5), np.int16), np.eye(4)), tmp_path / f"{name}.nii.gz")
    for given in (tmp_path, tmp_path / "liver_label.nii.gz"):
        (said,) = Dataset.from_folder(given, need_labels=False).notes
        assert "liver_label.nii.gz has the name of a label map; it is read as an image" in said
    assert not Dataset.from_folder(tmp_path / "scan.nii.gz", need_labels=False).notes


def download(root, patients):
    """As TCIA hands it out: MANIFEST/COLLECTION/PATIENT/STUDY/SERIES, a SEG as a series of its own, papers beside."""
    for patient, studies in patients.items():
        for study in studies:
            place = root / "COLLECTION" / patient / study
            change = lambda made, _, patient=patient: setattr(made, "PatientID", patient)  # noqa: E731
            files = dicom.write_series(place / "1.000000-CT", VALUES, study=patient + study, change=change)
            (place / "300.000000-Segmentation").mkdir()
            seg(place / "300.000000-Segmentation" / "1-1.dcm", files, box(0, 2), names=("liver",))
    for name in ("metadata.csv", "COLLECTION/LICENSE"):
        (root / name).write_text("x")
    return root


def test_a_download_from_tcia_is_a_data_set_of_patients_from_its_manifest_on(tmp_path):
    root = download(tmp_path / "manifest-1", {"A-1": ["2000"], "A-2": ["2000", "2001"], "A-3": ["2000"]})
    for given in (root, root / "COLLECTION"):
        dataset = Dataset.from_folder(given)
        wanted = [("A-1", None), ("A-2-2000", "A-2"), ("A-2-2001", "A-2"), ("A-3", None)]
        assert [(c.id, c.group) for c in dataset.cases] == wanted
        assert all(c.read_labels().array.any() for c in dataset.cases)


def test_one_fault_in_such_a_download_leaves_the_other_patients(tmp_path):
    root = download(tmp_path / "manifest-1", {"A-1": ["2000"], "A-2": ["2000", "2001"], "A-3": ["2000"]})
    (root / "COLLECTION" / "A-2" / "2001" / "1.000000-CT" / "2.dcm").write_bytes(b"")
    dataset, problems = Dataset.scan(root, need_labels=False)
    kept, failed = usable(dataset, problems)
    assert [case.id for case in kept.cases] == ["A-1", "A-2-2000", "A-3"] and set(failed) == {"A-2-2001"}


def test_studies_of_one_patient_alone_in_a_folder_stay_one_group(tmp_path):
    root = download(tmp_path / "d", {"A-2": ["2000", "2001"]})
    assert {c.group for c in Dataset.from_folder(root / "COLLECTION").cases} == {"A-2"}
    assert len({c.group for c in Dataset.from_folder(root, need_labels=False).cases}) == 1
