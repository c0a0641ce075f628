"""The made-up data: repeatable, well-formed, and neither trivial nor empty."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from ulna.demonstration import DEMO, WRITTEN, _clear, demo, make_nuclei, make_phantom
from ulna.errors import UsageError
from ulna.exporting import zoo_examples
from ulna.exporting.zoo_examples import real_images

LABELS = Path(__file__).parents[1] / "packages/runtime/src/ulna_runtime/zoo_files/nuclei_images/labels"


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def nuclei(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_nuclei(tmp_path_factory.mktemp("nuclei") / "data", count=30)


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_phantom(tmp_path_factory.mktemp("phantom") / "data", count=4)


def pairs(folder: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    return [
        (np.asarray(Image.open(path)), np.asarray(Image.open(folder / "labels" / path.name)))
        for path in sorted((folder / "images").iterdir())
    ]


def best_threshold_dice(image: np.ndarray, label: np.ndarray) -> float:
    """The highest Dice that any one threshold reaches, dark or bright, chosen with the answer known."""
    grey = gaussian_filter(image.mean(-1), 1)
    masks = [side for level in np.linspace(grey.min(), grey.max(), 48) for side in (grey > level, grey < level)]
    return max(2 * (mask & (label > 0)).sum() / (mask.sum() + (label > 0).sum()) for mask in masks)


@pytest.mark.parametrize("make", [make_nuclei, make_phantom])
def test_the_seed_decides_every_byte(make, tmp_path) -> None:
    first, again, other = (digest(make(tmp_path / name, count=3, seed=s)) for name, s in (("a", 4), ("b", 4), ("c", 5)))
    assert first == again
    assert first.keys() == other.keys() and first != other


def test_nuclei_are_rgb_images_of_several_sizes_with_labels_0_and_1(nuclei) -> None:
    sizes = set()
    for image, label in pairs(nuclei):
        assert image.dtype == label.dtype == np.uint8 and image.shape == (*label.shape, 3)
        assert set(np.unique(label)) == {0, 1}
        assert 0.04 < label.mean() < 0.5
        sizes.add(label.shape)
    assert sizes == {(96, 96), (96, 128), (128, 128)}


def test_nuclei_come_bright_on_dark_dark_on_bright_and_in_colour(nuclei) -> None:
    brighter = [image[label > 0].mean() > image[label == 0].mean() for image, label in pairs(nuclei)]
    coloured = [np.ptp(image.mean((0, 1))) > 25 for image, _ in pairs(nuclei)]
    assert 0.4 < np.mean(brighter) < 0.8 and 0.1 < np.mean(coloured) < 0.4


def test_no_threshold_solves_the_nuclei(nuclei) -> None:
    scores = [best_threshold_dice(image, label) for image, label in pairs(nuclei)]
    assert 0.7 < np.mean(scores) < 0.93
    assert np.mean(np.array(scores) > 0.95) < 0.1


def test_nuclei_are_declared_synthetic_and_split_without_overlap(nuclei) -> None:
    assert "synthetic" in (nuclei / "SYNTHETIC").read_text().lower()
    assert "Synthetic" in (nuclei / "README.md").read_text()
    assert json.loads((nuclei / "classes.json").read_text()) == {"1": "nucleus"}
    splits = json.loads((nuclei / "splits.json").read_text())
    assert {part: len(cases) for part, cases in splits.items()} == {"train": 19, "val": 5, "test": 6}
    assert sorted(case for cases in splits.values() for case in cases) == [
        path.stem for path in sorted((nuclei / "images").iterdir())
    ]


def test_phantom_is_a_decathlon_folder_with_both_classes(phantom) -> None:
    description = json.loads((phantom / "dataset.json").read_text())
    assert description["labels"] == {"background": 0, "head": 1, "tail": 2}
    labels = sorted((phantom / "labelsTr").iterdir())
    assert len(labels) == description["numTraining"] == 4
    for path in labels:
        image = nibabel.load(phantom / "imagesTr" / path.name.replace(".nii.gz", "_0000.nii.gz"))
        label = nibabel.load(path)
        values = np.asarray(label.dataobj)
        assert set(np.unique(values)) == {0, 1, 2} and values.dtype == np.uint8
        shares = [np.mean(values == k) for k in (1, 2)]
        assert all(0.005 < share < 0.15 for share in shares)
        assert not any(values.take(edge, axis).any() for axis in range(3) for edge in (0, -1)), "it lies inside"
        grey = np.asarray(image.dataobj)
        assert grey[values > 0].mean() > 1.3 * grey[values == 0].mean()


def test_phantom_geometry_is_real_and_shared_by_image_and_label(phantom) -> None:
    orientations = set()
    for path in sorted((phantom / "labelsTr").iterdir()):
        label = nibabel.load(path)
        image = nibabel.load(phantom / "imagesTr" / path.name.replace(".nii.gz", "_0000.nii.gz"))
        assert label.shape == image.shape == (32, 40, 28)
        np.testing.assert_allclose(label.affine, image.affine)
        np.testing.assert_allclose(label.header.get_zooms(), (1.0, 1.0, 1.5), rtol=1e-5)
        np.testing.assert_allclose(label.get_qform(), label.affine, atol=1e-3)  # float32 quaternion
        assert np.abs(label.affine[:3, 3]).max() > 1, "an offset"
        orientations.add("".join(nibabel.aff2axcodes(label.affine)))
    assert orientations == {"RAS", "LPS", "LAS"}


@pytest.mark.parametrize("make", [make_nuclei, make_phantom])
def test_a_folder_in_use_or_too_few_cases_are_refused(make, tmp_path) -> None:
    with pytest.raises(UsageError, match="at least 3"):
        make(tmp_path / "new", count=2)
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(UsageError, match="not empty"):
        make(tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "kept"


def test_the_page_shows_real_images_with_their_dice_and_the_score_of_all(tmp_path) -> None:
    pytest.importorskip("onnxruntime")
    section = real_images(tmp_path / "masks")
    told, dice = " ".join(section.words), [case.dice for case in section.cases]
    assert dice == sorted(dice) and len(dice) <= 6 and np.mean(dice) > 0.85
    for case in section.cases:
        mask, reference = (Image.open(folder / f"{case.case}.png") for folder in (tmp_path / "masks", LABELS))
        both = np.asarray(mask) + 2 * (np.asarray(reference) > 0)
        assert case.dice == pytest.approx(2 * (both == 3).sum() / ((both & 1).sum() + (both > 1).sum()))
    for said in ("are real", "CC0 1.0", "34 test images", "slightly optimistic", "Caicedo"):
        assert said in told


def test_without_the_runtime_the_page_says_how_to_see_them(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(zoo_examples, "find_spec", lambda _: None)
    section = real_images(tmp_path / "masks")
    assert section.cases == () and section.command.startswith("pip install ./packages/runtime")
    assert "is not installed" in section.words[0] and not (tmp_path / "masks").exists()


def test_demo_refuses_what_is_not_an_earlier_demo(tmp_path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "data").write_text("precious")
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "thesis", tmp_path / "file"):
        with pytest.raises(UsageError, match="name a new folder"):
            demo(out=out)
    assert (tmp_path / "thesis" / "data").read_text() == "precious"
    with pytest.raises(UsageError, match="cannot be written"):
        demo(out=tmp_path / "file" / "demo")


def test_an_earlier_demo_is_cleared_of_what_demos_write_and_of_nothing_else(tmp_path) -> None:
    out = tmp_path / "demo"
    _clear(out)
    assert (out / "SYNTHETIC").read_bytes() == DEMO
    for name in set(WRITTEN) - {"SYNTHETIC", "report.html"}:
        (out / name / "deep").mkdir(parents=True)
    (out / "report.html").write_text("old")
    (out / "notes.txt").write_text("mine")
    _clear(out)
    assert sorted(path.name for path in out.iterdir()) == ["SYNTHETIC", "notes.txt"]


@pytest.mark.slow
def test_the_quick_demo_runs_from_data_to_report(tmp_path) -> None:
    made = demo(out=tmp_path / "demo", quick=True)
    assert made.report.stat().st_size > 50_000
    assert "synthetic" in made.report.read_text(encoding="utf-8").lower()
    assert (made.run / "weights.safetensors").exists()
    demo(out=tmp_path / "demo", quick=True)  # replaces the first
