"""Training sees every image in one orientation, plans along those axes, and does not go on with what was begun otherwise."""

import json
import logging
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch

import ulna
from tests.data.pipeline.test_orientation import oblique, stored_as
from tests.inference.test_predict import run_folder
from tests.plans import make
from ulna.data.layout.dataset import Dataset
from ulna.data.quality.check import check_dataset
from ulna.errors import UsageError
from ulna.inference import segmenter
from ulna.planning.choosing import recommended
from ulna.planning.mask_values import AS_CLASSES
from ulna.planning.plan import plan_training, training_data
from ulna.recipe import PLAN_FORMAT, Labels, Plan, Split, from_yaml, set_value
from ulna.study import compare as comparing
from ulna.study import same_study
from ulna.training.samples import PreparedCases
from ulna.training.train import train

SIDED = Labels(names=("background", "left_structure", "right_structure"))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """One head, stored in three ways, and others like it."""
    root = tmp_path_factory.mktemp("mixed")
    (root / "images").mkdir()
    (root / "labels").mkdir()
    (root / "classes.json").write_text('["left_structure", "right_structure"]')
    rng = np.random.default_rng(0)
    array = rng.integers(0, 99, (12, 18, 9)).astype(np.int16)
    label = np.zeros(array.shape, np.uint8)
    label[1:4, 5:9, 2:5], label[8:11, 5:9, 2:5] = 1, 2
    for letters in ("RAS", "PSR", "ILA"):
        for kind, values in (("images", array), ("labels", label)):
            other, affine = stored_as(values, oblique((4, -3, 6), (1.0, 1.5, 3.0)), letters)
            nib.save(nib.Nifti1Image(np.ascontiguousarray(other), affine), root / kind / f"{letters}.nii.gz")
    return root


def planned(root, *changes, recipe=None):
    dataset = Dataset.from_folder(root)
    found = training_data(
        dataset, check_dataset(dataset), Split(train=tuple(case.id for case in dataset.cases), val=())
    )
    recipe = recipe or recommended("unet")
    for change in changes:
        recipe = set_value(recipe, change)
    return dataset, plan_training(replace(found, labels=SIDED, mask_values=AS_CLASSES), recipe).plan


def test_the_plan_goes_along_canonical_axes(mixed):
    _, plan = planned(mixed)
    assert (plan.format, plan.orientation) == (PLAN_FORMAT, "RAS")
    assert plan.spacing == (1.0, 1.5, 3.0)
    assert plan.fingerprint.size.min == plan.fingerprint.size.max == (12, 18, 9)
    assert plan.mirror_axes == (1, 2)  # never from left to right, which is axis 0 of every image
    assert "no flips along axis 0, which goes from left to right" in plan.reasons["mirror_axes"]
    assert "stored: 1 ILA, 1 PSR, 1 RAS" in plan.reasons["orientation"]


def test_what_the_recipe_fixes_goes_along_the_same_axes(mixed):
    dataset, plan = planned(mixed, "planning.spacing=[2, 1.5, 3]", "planning.patch=[8, 16, 8]")
    assert (plan.spacing, plan.patch) == ((2.0, 1.5, 3.0), (8, 16, 8))
    for prepared, _ in PreparedCases(dataset.cases, plan):
        assert prepared.image.shape == (1, 6, 18, 9)


@pytest.mark.parametrize("on_grid", [True, False])
def test_training_samples_are_the_same_however_a_case_is_stored(mixed, on_grid):
    dataset, plan = planned(mixed, "planning.spacing=[1.3, 1.5, 2.2]")
    cases = PreparedCases(dataset.cases, plan, on_grid=on_grid)
    (first, labels), *others = (cases[index] for index in range(3))

    def seen(prepared, reference):  # validation compares with label maps along the axes of the file
        return reference if on_grid else torch.from_numpy(prepared.turn.forward(reference.numpy()).copy())

    assert labels.unique().tolist() == [0, 1, 2]
    for prepared, reference in others:
        assert torch.equal(prepared.image, first.image)
        assert torch.equal(seen(prepared, reference), seen(first, labels))


def test_data_without_orientation_say_so(discs):
    _, plan = planned(discs)
    assert plan.orientation is None
    assert "stay as the files store them" in plan.reasons["orientation"]


def old(run):
    """What a plan.yaml held before formats were counted."""
    text = (run / "plan.yaml").read_text()
    lines = [line for line in text.splitlines() if not line.startswith(("format:", "orientation:"))]
    (run / "plan.yaml").write_text("\n".join(lines) + "\n")
    return run


def test_an_older_run_predicts_with_one_note(tmp_path, caplog):
    segmenter._note_format.cache_clear()
    runs = [old(run_folder(tmp_path / name, 0)) for name in "ab"]
    assert from_yaml(Plan, runs[0] / "plan.yaml").format == 1
    with caplog.at_level(logging.INFO, "ulna"):
        assert ulna.load(runs)(np.zeros((16, 16))).mask.shape == (16, 16)
    (note,) = [text for text in caplog.messages if "earlier ulna" in text]
    assert "plan format 1" in note


def test_an_older_run_does_not_go_on(tmp_path, discs):
    run = old(run_folder(tmp_path / "run", 0))
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    with pytest.raises(UsageError, match=r"plan format 1.*train anew: ulna train .*--model unet --out NEW_FOLDER"):
        train(discs, out=run, resume=True, epochs=3)
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_a_plan_of_a_later_ulna_is_refused(tmp_path):
    run = run_folder(tmp_path / "run", 0)
    text = (run / "plan.yaml").read_text()
    (run / "plan.yaml").write_text(text.replace(f"format: {PLAN_FORMAT}", f"format: {PLAN_FORMAT + 1}"))
    with pytest.raises(UsageError, match="format"):
        ulna.load(run)


def test_a_study_does_not_mix_formats(tmp_path):
    out = tmp_path / "study"
    out.mkdir()
    stored = dict.fromkeys(("data", "splits", "folds", "match", "plan", "recipes", "architectures"))
    stored |= {"plan": {"patch": [32, 32], "batch": 2}, "recipes": {}, "architectures": {}}
    (out / same_study.STUDY_FILE).write_text(json.dumps(stored))
    with pytest.raises(UsageError, match=r"plan format 1, now 2.*another --out"):
        same_study.check_same(out, same_study.stored_study(out), {"format": PLAN_FORMAT})
    with pytest.raises(UsageError, match="leave it out of --beside"):
        comparing.compare(tmp_path, models="unet", out=tmp_path / "new", beside=[str(out)])


def test_an_older_plan_in_code_is_of_format_1():
    values = make().model_dump(exclude={"format", "orientation"})
    assert (Plan(**values).format, Plan(**values).orientation) == (1, None)
