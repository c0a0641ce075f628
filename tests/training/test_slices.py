"""A 2D network trained on the slices of volumes: what it is shown, that each volume is read once, and the whole path."""

import csv
import dataclasses
import json
from collections import Counter

import nibabel as nib
import numpy as np
import pytest
import torch

import ulna
from tests.training.tiny import rows_of
from tests.volumes import draw_balls
from ulna.data.layout.case import Case
from ulna.data.layout.dataset import Dataset
from ulna.data.pipeline.augment import Augment
from ulna.data.pipeline.preprocess import prepare, prepare_labels
from ulna.errors import UsageError
from ulna.planning.choosing import choose
from ulna.planning.plan import plan_training, read_training_data
from ulna.recipe import Augmentation
from ulna.system.reading import read_yaml
from ulna.training.estimate import plan as plan_verb
from ulna.training.feed import Feed
from ulna.training.loop import Loop
from ulna.training.slices import SliceCases, SliceSamples, slice_order, sliced
from ulna.training.spool import Spool

CPU = torch.device("cpu")
STILL = Augmentation(**dict.fromkeys(("flip", "quarter_turn", "affine", "intensity", "gamma", "noise", "blur"), 0))
TINY = (
    "planning.spatial_dims=2",
    "architecture.channels=[4, 8]",
    "planning.batch=4",
    "training.min_steps=4",
    "training.checkpoint_minutes=0",
    "training.precision=fp32",
    "optimizer.lr=1e-2",
)


@pytest.fixture(scope="module")
def balls(tmp_path_factory):
    return draw_balls(tmp_path_factory.mktemp("balls"), 6, channels=2, stored="SAR")


def prepared(data, *changes):
    recipe = choose(model="unet", recipe=None, set=(*TINY, *changes))
    found = read_training_data(Dataset.from_folder(data), recipe.training)
    made = plan_training(found, recipe)
    return found.dataset.cases_of(made.split.train), made


def filled(cases, plan, **options):
    kept = SliceCases(cases, plan, **options)
    assert [*kept.fill()] == list(range(len(cases)))
    return kept


def samples_of(kept, made, settings=STILL):
    return SliceSamples(kept, augment=Augment(settings, made.plan), foreground=0.5, seed=3)


@pytest.mark.parametrize("neighbours", [0, 1])
def test_a_sample_is_a_slice_of_a_volume_with_its_neighbours(balls, neighbours):
    cases, made = prepared(balls, f"planning.neighbours={neighbours}", "planning.patch=[32, 32]")
    kept = filled(cases, made.plan)
    samples = samples_of(kept, made)
    axis = made.plan.slices.axis
    for item, (case, place) in enumerate(kept.places.tolist()):
        volume = cases[case].read_image()
        image = prepare(volume, made.plan).image
        labels = prepare_labels(cases[case].read_labels().array[0], volume, made.plan)
        seen = [min(max(place + n, 0), image.shape[axis + 1] - 1) for n in range(-neighbours, neighbours + 1)]
        whole = torch.cat([image.select(axis + 1, at) for at in seen])
        found, of_labels = (part[0] for part in samples.make([samples.draw((0, 7, item))], CPU))
        # the slice lies in the middle of a larger patch
        (top, left), (h, w) = ((32 - n) // 2 for n in whole.shape[1:]), whole.shape[1:]
        assert torch.equal(found[:, top : top + h, left : left + w], whole)
        assert torch.equal(of_labels[top : top + h, left : left + w], labels.select(axis, place))
        assert bool(labels.select(axis, place).any()) == (item < kept.full_count)


def test_blank_slices_are_not_drawn_and_all_others_are(balls):
    cases, made = prepared(balls)
    kept = filled(cases, made.plan)
    places = kept.places.tolist()
    assert len({*map(tuple, places)}) == len(places) == 4 * 7, "of nine slices the first and the last are blank"
    assert (kept.full_count, len(places) - kept.full_count) == (
        made.plan.slices.full_count,
        made.plan.slices.empty_count,
    )


def test_a_volume_without_anything_still_has_slices():
    found = sliced(torch.zeros(1, 2, 3, 4), torch.zeros(4, 2, 3, dtype=torch.uint8), 2)
    assert found.empty.tolist() == [0, 1, 2, 3] and not len(found.full)


def test_overlapping_classes_have_slices_too():
    labels = torch.zeros(3, 2, 4, 5, dtype=torch.uint8)
    labels[1, 1, 2, 3] = 1
    found = sliced(torch.rand(1, 4, 5, 3), labels, 2)
    assert found.full.tolist() == [1] and found.empty.tolist() == [0, 2]
    assert found.structures[1].random_voxel(np.random.default_rng(0)) == (2, 3)


@pytest.mark.parametrize("maps", [None, 2])
def test_what_is_not_known_is_no_structure_of_a_slice(maps):
    """Slices: a structure, background, background beside what is not known, nothing known at all."""
    labels, ignored = torch.zeros(4, 4, 5, dtype=torch.uint8), 2
    labels[0, 1, 2], labels[2, :2], labels[3] = 1, ignored, ignored
    if maps is not None:
        labels = torch.stack([labels, torch.where(labels == ignored, ignored, 0).to(torch.uint8)], dim=1)
    found = sliced(torch.rand(1, 4, 5, 4), labels, 2, ignored)
    assert found.full.tolist() == [0] and found.empty.tolist() == [1, 2]
    assert found.structures[0].random_voxel(np.random.default_rng(0)) == (1, 2)
    assert all(found.structures[place].random_voxel(np.random.default_rng(0)) is None for place in (1, 2, 3))


def test_slices_with_a_value_to_ignore_are_trained_on_and_scored_without_it(tmp_path):
    data = draw_balls(tmp_path / "data", 4)
    (data / "classes.json").write_text(json.dumps({"labels": {"1": "ball"}, "ignore": [2]}))
    for path in sorted((data / "labels").iterdir()):
        file = nib.load(path)
        values = np.asarray(file.dataobj).copy()
        values[:, :, 3] = 2  # a slice of which nothing is known
        values[:4] = 2
        nib.save(nib.Nifti1Image(values, file.affine, file.header), path)
    cases, made = prepared(data)
    slices = made.plan.slices
    kept = filled(cases, made.plan)
    assert 3 not in kept.places[:, 1]
    assert (kept.full_count, len(kept.places)) == (slices.full_count, slices.full_count + slices.empty_count)
    run = small(data, tmp_path / "run", epochs=1)
    ulna.predict(run.folder, data, out=tmp_path / "masks", split="test")
    wrong = nib.load(next((tmp_path / "masks").glob("*.nii.gz")))
    before = {by: ulna.evaluate(tmp_path / "masks", data, by=by).rows for by in ("case", "slice")}
    values = np.asarray(wrong.dataobj).copy()
    values[:, :, 3], values[:4] = 1, 1  # whatever is said there
    nib.save(nib.Nifti1Image(values, wrong.affine, wrong.header), wrong.get_filename())
    for by, rows in before.items():
        again = ulna.evaluate(tmp_path / "masks", data, by=by).rows
        assert [[row[n] for n in ("tp", "fp", "fn")] for row in again] == [
            [row[n] for n in ("tp", "fp", "fn")] for row in rows
        ], by


def test_slices_of_a_crop_are_trained_on_and_volumes_come_back_whole(tmp_path):
    """As Laird crops slices: shorter than the image along one axis, and padded along the other."""
    data = draw_balls(tmp_path / "data", 4)
    run = small(data, tmp_path / "run", "planning.crop=[16, 28]", epochs=1)
    plan = read_yaml(run.folder / "plan.yaml")
    assert plan["crop"] == [16, 28, None] and plan["patch"] == [16, 28]
    ulna.predict(run.folder, data, out=tmp_path / "masks", split="test")
    made, given = (nib.load(folder / "ball3.nii.gz") for folder in (tmp_path / "masks", data / "labels"))
    assert made.shape == given.shape == (20, 24, 9)
    np.testing.assert_allclose(made.affine, given.affine)
    assert not np.asarray(made.dataobj)[[0, 1, 18, 19]].any(), "beyond the crop"


@pytest.mark.parametrize(("full", "total", "share"), [(5, 12, 0.5), (5, 5, 1.0), (0, 4, 0.0), (5, 12, 0.0)])
def test_an_epoch_shows_every_slice_with_a_structure_before_any_again(full, total, share):
    drawn = full + round(share * (total - full)) or total
    order = slice_order(full, total, share, 3 * drawn, seed=0, epoch=4)
    for start in range(0, len(order), drawn):
        some = Counter(order[start : start + drawn])
        assert max(some.values()) == 1
        assert {*range(full)} <= {*some}
        assert len([n for n in some if n >= full]) == drawn - full
    assert order == slice_order(full, total, share, 3 * drawn, seed=0, epoch=4)
    others = [slice_order(full, total, share, drawn, seed=0, epoch=epoch) for epoch in range(40)]
    assert len({tuple(one) for one in others}) > 1
    if share > 0:
        assert {*range(total)} == {n for one in others for n in one}, "in time all are drawn"


def test_every_volume_is_read_once_wherever_it_is_kept(balls, tmp_path, monkeypatch):
    cases, made = prepared(balls, "planning.neighbours=1")
    made_of = {}
    read = Counter()
    plainly = Case.read_image

    def counted(self):
        read[self.id] += 1
        return plainly(self)

    monkeypatch.setattr(Case, "read_image", counted)
    ways = {"memory": {}, "disk": {"keep_bytes": 0, "folder": tmp_path}, "nowhere": {"keep_bytes": 0}}
    for way, options in ways.items():
        read.clear()
        kept = filled(cases, made.plan, **options)
        samples = samples_of(kept, made, Augmentation())
        batches = samples.batches(made.recipe.training.replaced(samples_per_epoch=40), 4)
        made_of[way] = [*Feed(samples, batches, CPU, threads=2 if way == "disk" else 0)]
        if way != "nowhere":
            assert {*read.values()} == {1}
        else:
            assert sum(read.values()) == len(cases) + 40
    for way in ("disk", "nowhere"):
        for ours, theirs in zip(made_of[way], made_of["memory"], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert not [*tmp_path.iterdir()], "files without a name"


def test_where_nothing_has_room_that_is_said(balls, tmp_path, caplog, monkeypatch):
    cases, made = prepared(balls)
    monkeypatch.setattr("ulna.training.spool.SHARE", 0.0)
    kept = filled(cases, made.plan, keep_bytes=0, folder=tmp_path)
    assert not any(map(kept.keeps, range(len(cases))))
    assert caplog.text.count("read again for every slice") == 1


def test_the_spool_gives_back_what_it_got(tmp_path, monkeypatch):
    monkeypatch.setattr("ulna.training.spool.SEGMENT", 300)
    spool = Spool(tmp_path, 2000)
    generator = torch.Generator().manual_seed(0)
    given = [
        torch.rand(3, 7, generator=generator),
        torch.randint(0, 9, (130,), generator=generator, dtype=torch.uint8),
        torch.rand(10, 8, generator=generator),
        torch.randint(0, 9, (5, 2), generator=generator, dtype=torch.int32).T,
        torch.rand(2, 3, 4, generator=generator),
    ]
    got = [spool.put(one) for one in given]
    assert all(torch.equal(a, b) for a, b in zip(given, got, strict=True))
    assert spool.put(torch.zeros(2000)) is None, "no room"
    assert not [*tmp_path.iterdir()]


def test_a_full_disk_ends_the_spool_and_not_the_training(tmp_path, monkeypatch):
    spool = Spool(tmp_path, 2000)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    assert spool.put(torch.zeros(4)) is None
    monkeypatch.undo()
    assert spool.put(torch.zeros(4)) is None


def small(data, out, *changes, **options):
    return ulna.train(data, model="unet", out=out, set=(*TINY, *changes), **options)


@pytest.mark.slow
def test_the_whole_path_from_volumes_to_scores_of_volumes(balls, tmp_path):
    run = small(balls, tmp_path / "run", "planning.neighbours=1", epochs=12)
    plan = read_yaml(run.folder / "plan.yaml")
    assert (plan["spatial_dims"], plan["slices"]["axis"], plan["in_channels"]) == (2, 2, 2)
    assert run.summary["test"]["cases"] == 1 and run.summary["val_dice"] > 0.6
    assert run.summary["test"]["tolerance_unit"] == "mm", "of a volume"
    masks = ulna.predict(run.folder, balls, out=tmp_path / "masks", split="test", tta=True, probabilities=True)
    case = masks.cases[0]["case"]
    made, given = (nib.load(folder / f"{case}.nii.gz") for folder in (tmp_path / "masks", balls / "labels"))
    assert made.shape == given.shape and nib.aff2axcodes(made.affine) == tuple("SAR")
    np.testing.assert_allclose(made.affine, given.affine)
    probabilities = nib.load(tmp_path / "masks" / f"{case}_probabilities.nii.gz").get_fdata()
    assert ((probabilities[..., 0] > 0.5) == np.asarray(made.dataobj)).all()
    scores = ulna.evaluate(tmp_path / "masks", balls, out=tmp_path / "scores")
    assert scores.summary["cases"] == 1 and scores.summary["mean"]["dice"]["mean"] > 0.6
    by_slice = ulna.evaluate(tmp_path / "masks", balls, by="slice")
    assert by_slice.summary["cases"] == 9 and by_slice.summary["tolerance_unit"] == "px"

    plain = ulna.load(run.folder)(balls / "images" / f"{case}.nii.gz")
    assert plain.mask.shape == given.shape


@pytest.mark.slow
def test_a_killed_training_takes_the_same_steps(balls, tmp_path, monkeypatch):
    whole = small(balls, tmp_path / "whole", epochs=2)
    steps = 0
    taken = Loop._step

    def stops(self, images, labels, step):
        nonlocal steps
        steps += 1
        if steps == 7:
            raise KeyboardInterrupt
        taken(self, images, labels, step)

    monkeypatch.setattr(Loop, "_step", stops)
    with pytest.raises(KeyboardInterrupt):
        small(balls, tmp_path / "killed", epochs=2)
    monkeypatch.undo()
    killed = ulna.train(balls, out=tmp_path / "killed", resume=True)
    for name in ("val_dice", "best_epoch", "test"):
        assert killed.summary[name] == whole.summary[name]
    ours, theirs = (
        [[row[n] for n in ("train_loss", "val_dice")] for row in rows_of(run.folder)] for run in (whole, killed)
    )
    assert ours == theirs


@pytest.mark.slow
def test_a_plan_from_a_file_repeats_the_training(balls, tmp_path):
    made = plan_verb(balls, model="unet", set=TINY, out=tmp_path / "plan.yaml", untimed=True)
    assert made.plan.slices is not None
    run = ulna.train(balls, plan=tmp_path / "plan.yaml", out=tmp_path / "run", epochs=1)
    again = ulna.train(
        balls, recipe=run.folder / "recipe.yaml", plan=run.folder / "plan.yaml", out=tmp_path / "again", epochs=1
    )
    assert run.summary["test"] == again.summary["test"]
    without = ulna.train(balls, recipe=run.folder / "recipe.yaml", out=tmp_path / "without", epochs=1)
    assert read_yaml(without.folder / "plan.yaml")["slices"] == read_yaml(run.folder / "plan.yaml")["slices"]
    with pytest.raises(UsageError, match=r"planning.slice_axis is 0, in the plan it is 2"):
        ulna.train(balls, plan=tmp_path / "plan.yaml", set=["planning.slice_axis=0"], out=tmp_path / "other")


def test_a_plan_is_timed_on_slices(balls):
    made = plan_verb(balls, model="unet", set=[*TINY, "planning.neighbours=1"])
    assert made.timing is not None and made.timing.step_s > 0 and made.timing.steps == 7  # 28 slices, four at a time
    assert json.loads(json.dumps(made.to_json()))


def test_two_classes_and_slices_scored_as_images(tmp_path):
    data = draw_balls(tmp_path / "data", 4, classes=2, stored="LPS")
    run = small(data, tmp_path / "run", "evaluation.by=slice", "evaluation.empty_score=1", epochs=2)
    summary = run.summary["test"]
    assert (summary["by"], summary["cases"], summary["images"]) == ("slice", 9, 1)
    rows = [*csv.DictReader((run.folder / "cases.csv").read_text().splitlines())]
    assert len(rows) == 2 * 9 and {row["slice"] for row in rows} == {str(n) for n in range(9)}
    ulna.predict(run.folder, data, out=tmp_path / "masks", split="test")
    found = ulna.evaluate(tmp_path / "masks", data).summary
    assert found["mean"] == summary["mean"] and found["by"] == "slice", "as the recipe of the run says"
    assert ulna.evaluate(tmp_path / "masks", data, by="case").summary["cases"] == 1


@pytest.mark.slow
def test_a_run_without_the_new_keys_predicts_as_before(tmp_path):
    data = draw_balls(tmp_path / "data", 4)
    changes = [change for change in TINY if "spatial_dims" not in change]
    run = ulna.train(data, model="unet", out=tmp_path / "run", epochs=1, set=changes)
    before = ulna.load(run.folder)(data / "images" / "ball3.nii.gz").probabilities
    recipe = (run.folder / "recipe.yaml").read_text().splitlines()
    new = ("  spatial_dims:", "  slice_axis:", "  neighbours:", "  empty_slices:", "  by:")
    (run.folder / "recipe.yaml").write_text("\n".join(line for line in recipe if not line.startswith(new)))
    plan = (run.folder / "plan.yaml").read_text()
    assert "slices:" not in plan and "kept_axes" not in plan
    after = ulna.load(run.folder)(data / "images" / "ball3.nii.gz").probabilities
    assert np.array_equal(before, after)
    assert dataclasses.is_dataclass(ulna.train(data, out=run.folder, resume=True, epochs=2))
