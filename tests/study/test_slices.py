"""Studies of networks that read slices, beside those that read volumes."""

import csv
import json
from types import SimpleNamespace

import pytest

import ulna
from tests.volumes import draw_balls
from ulna.data.layout.dataset import Dataset
from ulna.errors import UsageError
from ulna.planning.plan import read_training_data
from ulna.recipe import Training
from ulna.study.publishing import _of_images
from ulna.study.same_study import _checked_sizes
from ulna.study.scores import MEASURES, read_scores
from ulna.study.variants import make_variants, plan_variants, sizes_of

CHANGES = ("architecture.channels=[4, 8]", "training.min_steps=2")


@pytest.fixture(scope="module")
def balls(tmp_path_factory):
    return draw_balls(tmp_path_factory.mktemp("balls"), 6)


@pytest.fixture(scope="module")
def data(balls):
    return read_training_data(Dataset.from_folder(balls), Training())


def variants(vary, models=("unet", "attention_unet")):
    return make_variants(models, {}, [vary] if vary else [], CHANGES)


def test_networks_of_2d_and_3d_share_patch_and_batch_among_their_like(data):
    settled = plan_variants(variants("planning.spatial_dims=2,3"), data, match=None)
    by_dims = {}
    for one in settled.planned:
        by_dims.setdefault(one.plan.spatial_dims, set()).add((one.plan.patch, one.plan.batch))
    assert {dims: len(some) for dims, some in by_dims.items()} == {2: 1, 3: 1}
    assert any("read the slices of the volumes" in note for note in settled.footnotes)
    kept = json.loads(json.dumps(sizes_of(settled)))
    assert _checked_sizes(kept) == kept and len(kept["beside"]) == 1
    again = plan_variants(variants("planning.spatial_dims=2,3", ("unet",)), data, match=None, fixed=kept)
    assert sizes_of(again) == kept


def test_a_study_of_volumes_keeps_its_sizes_when_slices_are_added(data):
    first = plan_variants(variants(""), data, match=None)
    kept = sizes_of(first)
    assert set(kept) == {"patch", "batch"}
    both = sizes_of(plan_variants(variants("planning.spatial_dims=3,2"), data, match=None, fixed=kept))
    assert kept in ({n: both[n] for n in kept}, both["beside"][0])
    only = plan_variants(variants("planning.spatial_dims=2,3", ("unet",))[:1], data, match=None, fixed=both)
    assert sizes_of(only) == both, "what other dimensions share is not forgotten"


def test_neighbours_can_be_varied(data):
    base = {"planning": {"spatial_dims": 2}}
    rows = make_variants(("unet",), base, ["planning.neighbours=0,1"], CHANGES)
    settled = plan_variants(rows, data, match=None)
    assert [one.plan.inputs for one in settled.planned] == [1, 3]
    with pytest.raises(UsageError, match=r"unet planning.neighbours=1: .*add planning.spatial_dims=2"):
        plan_variants(make_variants(("unet",), {}, ["planning.neighbours=0,1"], CHANGES), data, match=None)


def test_slices_of_one_volume_are_one_unit_of_the_statistics(tmp_path):
    lines = [",".join(("case", "slice", "class", *MEASURES))]
    for case in ("a", "b"):
        lines += [
            ",".join((case, str(n), "ball", *[str(0.25 * (n + 1) if case == "a" else 1.0)] * len(MEASURES)))
            for n in (0, 1)
        ]
    (tmp_path / "cases.csv").write_text("\n".join(lines))
    job = SimpleNamespace(
        done=True, run=tmp_path, variant=SimpleNamespace(name="unet"), seed=0, fold=None,
        summary=lambda: {"evaluated_on": "test", "test": {}},
    )  # fmt: skip
    rows = read_scores([job], {"b": "patient"})
    assert [(row.case, row.image, row.group) for row in rows] == [
        ("a[0]", "a", "a"), ("a[1]", "a", "a"), ("b[0]", "b", "patient"), ("b[1]", "b", "patient"),
    ]  # fmt: skip
    assert _of_images(rows, "unet", job) == {"a": 0.375, "b": 1.0}


@pytest.mark.slow
def test_compare_slices_with_volumes(balls, tmp_path):
    study = ulna.compare(
        balls, models="unet", vary=["planning.spatial_dims=2,3"], epochs=1, out=tmp_path / "study",
        set=(*CHANGES, "evaluation.by=slice"),
    )  # fmt: skip
    with (tmp_path / "study" / "results.csv").open() as file:
        rows = [*csv.DictReader(file)]
    assert {row["model"] for row in rows} == {"unet planning.spatial_dims=2", "unet planning.spatial_dims=3"}
    assert {row["group"] for row in rows} == {"ball5"} and len(rows) == 2 * 9
    assert (tmp_path / "study" / "report.html").exists() and study is not None


@pytest.mark.slow
def test_prune_measures_levels_on_volumes(balls, tmp_path):
    run = ulna.train(
        balls, model="unetpp", out=tmp_path / "run", epochs=1,
        set=("planning.spatial_dims=2", "architecture.channels=[4, 8, 8]", "architecture.deep_supervision=true",
             "training.min_steps=2", "planning.neighbours=1"),
    )  # fmt: skip
    found = ulna.prune(run.folder, data=balls, level=1, out=tmp_path / "small")
    assert found.chosen == "L1" and all(row["cases"] == 1 for row in found.rows)
    made = ulna.predict(found.folder, balls, out=tmp_path / "masks", split="test")
    assert len(made.cases) == 1
