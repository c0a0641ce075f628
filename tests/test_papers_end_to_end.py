"""Every recipe on a miniature of its data as they are handed out: train, predict, evaluate, without a file renamed.

Sizes, widths and epochs alone are smaller than the recipe says.
"""

import itertools
import json
import shlex

import nibabel as nib
import numpy as np
import pytest
import yaml
from PIL import Image

import ulna
from tests import miniatures
from tests.training.tiny import rows_of
from ulna.data.layout.case import Case
from ulna.data.layout.dataset import Dataset
from ulna.data.layout.published import sequence_of
from ulna.data.layout.splitting import choose_split
from ulna.planning.choosing import choose
from ulna.planning.plan import division
from ulna.recipe import Plan, Split, from_yaml, stated
from ulna.recipe.library import names
from ulna.study.variants import make_variants

MODALITIES = ("FLAIR", "T1w", "t1gd", "T2w")
TUMOURS = ("edema", "non-enhancing tumor", "enhancing tumour")


def brain(folder):
    return miniatures.decathlon(
        folder / "Task01_BrainTumour", names=TUMOURS, modalities=MODALITIES, spacing=(1, 1, 1), size=(44, 48, 8)
    )


def lung(folder):
    return miniatures.decathlon(folder / "Task06_Lung", names=["cancer"])


def pancreas(folder):
    return miniatures.decathlon(folder / "Task07_Pancreas", names=["pancreas", "cancer"], size=(40, 36, 8))


DATA = {
    "zhou_nuclei": miniatures.bowl, "zhou_polyp": miniatures.frames, "zhou_liver": miniatures.lits,
    "zhou_lung": miniatures.lidc, "carvalho_nuclei": miniatures.bowl, "carvalho_polyps": miniatures.cvc_clinicdb,
    "carvalho_liver": miniatures.lits, "carvalho_ablation_axes": miniatures.cvc_clinicdb,
    "carvalho_ablation_channels": miniatures.cvc_clinicdb, "carvalho_ablation_directions": miniatures.cvc_clinicdb,
    "carvalho_ablation_scales": miniatures.cvc_clinicdb, "laird": brain, "wang_kidney": miniatures.kits,
    "wang_pancreas": pancreas, "wang_liver": miniatures.lits, "marimont_lung": lung, "marimont_pancreas": pancreas,
}  # fmt: skip
FLAT = {"size": (32, 32)}
POLYPS = {"size": (32, 48), "normalization": "rescale", "split": (23, 3, 3)}
SLICES = {"size": (32, 32, None), "axis": 2}
ORGAN = {**SLICES, "normalization": "zscore", "multilabel": True}
# what the plan and the split must hold, with sizes as they are shrunk here
HELD = {
    "zhou_nuclei": FLAT,
    "zhou_polyp": FLAT,
    "zhou_liver": {**SLICES, "classes": ("liver",)},
    "zhou_lung": {"kept_axes": (0, 1, 2), "classes": ("foreground",)},
    "carvalho_nuclei": {**FLAT, "normalization": "rescale", "split": (8, 1, 1)},
    "carvalho_polyps": POLYPS,
    "carvalho_liver": {
        **SLICES, "classes": ("liver",), "clip": (-1000, 1000), "normalization": "rescale", "split": (5, 1, 2),
    },
    **{f"carvalho_ablation_{what}": POLYPS for what in ("axes", "channels", "directions", "scales")},
    "laird": {
        "crop": (32, 32, None), "axis": 2, "classes": ("tumour",), "normalization": "zscore_joint", "split": (8, 2, 0),
        "channels": 4, "whitened": True,
    },
    "wang_kidney": {**ORGAN, "classes": ("kidney", "tumour"), "split": (7, 1, 2)},
    "wang_pancreas": {**ORGAN, "classes": ("pancreas", "tumour"), "split": (7, 1, 2)},
    "wang_liver": {**ORGAN, "classes": ("liver", "tumour")},
    "marimont_lung": {"kept_axes": (0, 1), "classes": ("cancer",), "normalization": "zscore", "step": 1.25, "capped": True},
    "marimont_pancreas": {
        "kept_axes": (0, 1), "classes": ("pancreas", "cancer"), "normalization": "zscore", "step": 2.5, "capped": True,
    },
}  # fmt: skip


def small(name):
    """Changes with which it takes seconds; the ways that the recipe states stay."""
    recipe = choose(model=None, recipe=name)
    widths = [2, 3, 4, 6, 8, 8][: len(recipe.architecture.channels)]
    changes = [f"architecture.channels={widths}", "planning.batch=2", "training.accumulate=1"]
    patch = [32, 48] if HELD[name] is POLYPS else [32, 32]
    if recipe.requires.spatial_dims == 3:
        patch = [32, 32, 32] if name == "zhou_lung" else [32, 32, 16]
    changes.append(f"planning.patch={patch}")
    changes += [f"planning.{key}={patch}" for key in ("size", "crop") if getattr(recipe.planning, key)]
    changes += ["requires.size=[32, 32, 32]"] if recipe.requires.size else []
    if recipe.architecture.head.kind == "points":
        changes += ["architecture.head.points.width=8", "points.count=200"]
    if recipe.training.samples_per_epoch == "all":
        changes.append("training.steps_per_epoch=4")
    return changes


def facts_of(plan: Plan, split: Split):
    """What `HELD` names."""
    (kind,) = {channel.kind for channel in plan.normalization}
    first = plan.normalization[0]
    return {
        "size": plan.size, "crop": plan.crop, "kept_axes": plan.kept_axes, "axis": plan.slices and plan.slices.axis,
        "classes": plan.labels.foreground, "multilabel": plan.labels.multilabel, "normalization": kind, "clip": first.clip,
        "channels": plan.in_channels, "whitened": plan.whitening is not None, "capped": first.cap is not None,
        "step": plan.spacing[-1], "split": tuple(len(part) for part in (split.train, split.val, split.test)),
    }  # fmt: skip


def check_geometry(folder, dataset, stacked):
    """Every mask lies on the grid of its image, under its name."""
    for case in dataset.cases:
        source = case.images[0].path
        if source.name.endswith((".nii", ".nii.gz")):
            mask = next(path for path in folder.glob(f"{case.id}.nii*"))
            made, given = nib.load(mask), nib.load(source)
            assert made.shape == (*given.shape[:3], 2)[: 4 if stacked else 3]
            np.testing.assert_allclose(made.affine, given.affine)
        else:
            mask = next(path for path in folder.glob(f"{case.id}.*"))
            with Image.open(mask) as made, Image.open(source) as given:
                assert made.size == given.size


# the fourth goes the same way
LONG = ("carvalho_ablation_axes", "carvalho_ablation_channels", "carvalho_ablation_scales")
OTHERS = [name for name in names() if name not in LONG]


@pytest.mark.share(4)
@pytest.mark.parametrize("name", [*(pytest.param(n, marks=pytest.mark.slow) for n in LONG), *OTHERS])
def test_it_goes_from_the_published_folder_to_the_scores_of_the_paper(name, tmp_path):
    data = DATA[name](tmp_path / "data")
    recipe = choose(model=None, recipe=name)
    fold = {"fold": 0} if recipe.study.folds else {}
    run = ulna.train(data, recipe=name, out=tmp_path / "run", epochs=1, set=small(name), **fold)
    plan = from_yaml(Plan, run.folder / "plan.yaml")
    split = Split(**json.loads((run.folder / "splits.json").read_text()))
    held = facts_of(plan, split)
    assert {key: held[key] for key in HELD[name]} == HELD[name]
    stored = yaml.safe_load((run.folder / "recipe.yaml").read_text())
    assert stored["requires"]["data"] == recipe.requires.data
    assert np.isfinite(float(rows_of(run.folder)[0]["train_loss"]))

    part = run.summary["evaluated_on"]
    assert part == ("test" if len(split.test) else "val")
    ulna.predict(run.folder, data, out=tmp_path / "masks", split=part)
    scores = ulna.evaluate(tmp_path / "masks", data).summary
    assert scores["cases"] == run.summary[part]["cases"]
    assert scores["mean"]["dice"] == run.summary[part]["mean"]["dice"]
    assert [*scores["classes"]] == [*plan.labels.foreground]
    kept = {*getattr(split, part)}
    dataset = Dataset.from_folder(data)
    some = Dataset(dataset.root, dataset.layout, tuple(case for case in dataset.cases if case.id in kept))
    check_geometry(tmp_path / "masks", some, plan.labels.stacked)


def test_the_test_cases_of_sdu_net_are_the_first_batch_of_lits(tmp_path):
    """28 volumes of Training Batch 1 are kept for the end, the 103 of Training Batch 2 divided in 82 and 21."""
    training = choose(model=None, recipe="carvalho_liver").training
    cases = [Case(f"volume-{number}", (), None) for number in range(131)]
    made = choose_split(cases, (), 7, division(training))
    assert set(made.test) == {f"volume-{number}" for number in range(28)}
    assert (len(made.train), len(made.val)) == (82, 21)


def test_the_sequences_of_sdu_net_are_divided_as_printed():
    training = choose(model=None, recipe="carvalho_polyps").training
    cases = [Case(str(frame), (), None, group=f"sequence {sequence_of(frame)}") for frame in range(1, 613)]
    made = choose_split(cases, (), 7, division(training))
    parts = [{sequence_of(int(case)) for case in part} for part in (made.train, made.val, made.test)]
    assert [len(part) for part in parts] == [23, 3, 3]
    assert len(set().union(*parts)) == 29


@pytest.mark.parametrize("what", ["axes", "channels", "directions", "scales"])
def test_the_ablations_of_the_liver_are_the_command_that_their_recipe_names(what):
    """Those of the polyps, on what `carvalho_liver` says of the data."""
    (packaged,) = ulna.recipes(f"carvalho_ablation_{what}")
    text = packaged.text.replace("\\\n#", "").splitlines()
    words = shlex.split(next(line for line in text if "LITS" in line).removeprefix("#"), comments=True)
    flags = {flag: [b for a, b in itertools.pairwise(words) if a == flag] for flag in words if flag[:2] == "--"}
    assert flags["--recipe"] == ["carvalho_liver"]
    liver = make_variants(flags["--models"], stated("carvalho_liver"), flags["--vary"], flags["--set"])
    polyps = make_variants([], stated(packaged.name), packaged.values["study"]["vary"], [])
    assert [v.recipe.architecture for v in liver] == [v.recipe.architecture for v in polyps]
    assert {v.recipe.planning.size for v in liver} == {(128, 128)}


@pytest.mark.slow
def test_a_paper_on_folds_is_one_command(tmp_path):
    data = lung(tmp_path)
    changes = [*small("marimont_lung"), "training.validate_every=1"]
    run = ulna.train(data, recipe="marimont_lung", out=tmp_path / "run", folds=2, epochs=1, set=changes)
    assert run.summary["all"]["cases"] == 10
    assert [one["run"] for one in run.summary["folds"]] == ["fold_0", "fold_1"]


def test_the_modular_protocol_scores_slices_and_keeps_the_epoch_of_the_best_iou(tmp_path):
    """Laird: IoU of slices, 1 where neither mask has a tumour; the slices of one value are not drawn."""
    data = brain(tmp_path)
    run = ulna.train(data, recipe="laird", out=tmp_path / "run", epochs=2, set=small("laird"))
    assert run.summary["monitor"] == "iou"
    assert run.summary["val"]["cases"] == 2 * 8
    plan = from_yaml(Plan, run.folder / "plan.yaml")
    assert plan.slices.full_count + plan.slices.empty_count == 8 * 7  # one of eight holds one value alone
    rows = ulna.evaluate(ulna_masks(run, data, tmp_path), data).rows
    empty = [row for row in rows if row["tp"] + row["fp"] + row["fn"] == 0]
    assert all(row["iou"] == 1 for row in empty)


def ulna_masks(run, data, folder):
    ulna.predict(run.folder, data, out=folder / "masks", split="val")
    return folder / "masks"


@pytest.mark.slow
def test_compare_makes_the_table_of_a_recipe(tmp_path):
    """Networks, seeds and variations are those of the recipe, unless they are given."""
    folder = miniatures.cvc_clinicdb(tmp_path / "data")
    name = "carvalho_ablation_axes"
    study = ulna.compare(folder, recipe=name, out=tmp_path / "a", epochs=1, seeds=2, set=small(name))
    assert study.outcome.models == [
        "carvalho/unet_nuclei conv.sdn.directions=[right, left]", "carvalho/unet_nuclei conv.sdn.directions=[right, down]",
    ]  # fmt: skip
    assert study.outcome.seeds == 2
    alone = ulna.compare(
        folder,
        recipe=name,
        models="carvalho/unet_nuclei",
        out=tmp_path / "b",
        epochs=1,
        set=[*small(name), "study.seeds=1"],
    )
    assert (alone.outcome.models, alone.outcome.seeds) == (["carvalho/unet_nuclei"], 1)
