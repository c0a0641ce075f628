"""A whole training on tiny data: what it writes, that it learns, that it can be stopped and go on, that it refuses."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import ulna
import ulna.training.train as room
from ulna.demonstration import make_phantom
from ulna.errors import DataError, UsageError
from ulna.files import read_tensors
from ulna.recipe import Recipe, from_yaml
from ulna.training.checkpoint import load_checkpoint
from ulna.training.loop import State, learning_rate
from ulna.training.train import choose, train

TINY = (
    "architecture.channels=[4, 8, 16]",
    "planning.batch=2",
    "training.min_steps=4",
    "training.checkpoint_minutes=0",
    "optimizer.lr=1e-2",
)


@pytest.fixture(scope="module")
def discs(tmp_path_factory):
    """Eight bright discs on noise, two of them to validate, one to test."""
    root = tmp_path_factory.mktemp("discs")
    rng = np.random.default_rng(0)
    for folder in ("images", "labels"):
        (root / folder).mkdir()
    rows, columns = np.mgrid[:32, :40]
    for number in range(8):
        y, x, r = rng.integers(9, 23), rng.integers(9, 31), rng.integers(5, 9)
        mask = (rows - y) ** 2 + (columns - x) ** 2 < r**2
        image = np.clip(80 + 90 * mask + rng.normal(0, 15, mask.shape), 0, 255).astype(np.uint8)
        Image.fromarray(image).save(root / "images" / f"disc{number}.png")
        Image.fromarray(mask.astype(np.uint8) * 255).save(root / "labels" / f"disc{number}.png")
    ids = [f"disc{number}" for number in range(8)]
    (root / "splits.json").write_text(json.dumps({"train": ids[:5], "val": ids[5:7], "test": ids[7:]}))
    return root


@pytest.fixture(scope="module")
def run(discs, tmp_path_factory):
    return train(discs, model="unetpp", out=tmp_path_factory.mktemp("runs") / "a", epochs=12, set=TINY)


def rows_of(folder):
    return list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))


def test_it_learns(run):
    assert run.summary["val_dice"] > 0.9
    assert run.summary["test"]["mean"]["dice"]["mean"] > 0.85


def test_the_run_folder_holds_what_the_contract_says(run):
    names = {path.relative_to(run.folder).as_posix() for path in run.folder.rglob("*") if path.is_file()}
    assert names >= {
        "recipe.yaml", "plan.yaml", "splits.json", "weights.safetensors", "checkpoints/last.safetensors",
        "metrics.csv", "summary.json", "figures/curves.png", "figures/test.png", "log.txt",
    }  # fmt: skip
    assert not any(name.endswith((".pt", ".pth", ".pkl", ".tmp")) for name in names)
    rows = rows_of(run.folder)
    assert [int(row["epoch"]) for row in rows] == list(range(1, 13))
    summary = json.loads((run.folder / "summary.json").read_text())
    assert summary["parameters"] == sum(p.numel() for p in ulna.load(run.folder).network.parameters())
    assert {"torch", "ulna", "python"} <= set(summary["versions"])


def test_the_stored_weights_are_those_of_the_best_epoch(run):
    rows = rows_of(run.folder)
    best = max(rows, key=lambda row: float(row["val_dice"]))
    state = read_tensors(run.folder / "weights.safetensors").state
    assert (state["epoch"], state["val_dice"]) == (int(best["epoch"]), float(best["val_dice"]))


def test_the_recipe_is_resolved_and_repeats_the_run(run, discs, tmp_path):
    recipe = from_yaml(Recipe, run.folder / "recipe.yaml")
    assert recipe.architecture.channels == (4, 8, 16)
    assert recipe.architecture.strides == ((2, 2), (2, 2))
    again = train(discs, recipe=run.folder / "recipe.yaml", out=tmp_path / "again")
    one, two = (read_tensors(folder / "weights.safetensors").tensors for folder in (run.folder, again.folder))
    assert all(torch.equal(one[name], two[name]) for name in one)


class Killed(Exception):
    pass


def test_a_stopped_training_goes_on_exactly(discs, tmp_path, monkeypatch):
    options = {"model": "unet", "epochs": 4, "set": (*TINY, "architecture.conv.double_conv.dropout=0.2")}
    whole, part = train(discs, out=tmp_path / "whole", **options), tmp_path / "part"
    record = room._record

    def killed_after_two(folder, state):
        record(folder, state)
        if state.epoch == 2:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(room, "_record", killed_after_two)
        train(discs, out=part, **options)
    torch.manual_seed(123)  # a new process has another random state
    train(discs, out=part, resume=True)
    a, b = load_checkpoint(whole.folder / "checkpoints"), load_checkpoint(part / "checkpoints")
    assert all(torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors)

    def measured(folder):
        return [{k: v for k, v in row.items() if k != "seconds"} for row in rows_of(folder)]

    assert measured(whole.folder) == measured(part)


def test_more_epochs_extend_a_finished_run(discs, tmp_path):
    first = train(discs, model="unet", out=tmp_path / "r", epochs=2, set=TINY)
    longer = train(discs, out=first.folder, resume=True, epochs=3)
    assert longer.summary["epochs"] == 3
    assert len((first.folder / "metrics.csv").read_text().splitlines()) == 4


def test_a_time_limit_stops_at_the_end_of_an_epoch(discs, tmp_path):
    run = train(discs, model="unet", out=tmp_path / "r", epochs=1000, max_hours=1.5 / 3600, set=TINY)
    assert 1 <= run.summary["epochs"] < 1000


def test_it_stops_when_nothing_gets_better(discs, tmp_path):
    run = train(
        discs, model="unet", out=tmp_path / "r", epochs=50, set=(*TINY, "optimizer.lr=1e-12", "training.patience=2")
    )
    assert run.summary["epochs"] < 10


def test_volumes_with_two_classes(tmp_path):
    data = make_phantom(tmp_path / "data", count=4, size=(20, 24, 18))
    small = ("architecture.channels=[4, 8]", "planning.batch=1", "planning.patch=[16, 16, 16]", "training.min_steps=3")
    run = train(data, model="nnunet", out=tmp_path / "run", epochs=2, set=small)
    assert set(run.summary[run.summary["evaluated_on"]]["classes"]) == {"head", "tail"}
    assert (run.folder / "figures").exists()


def test_predict_writes_masks_in_the_format_and_geometry_of_the_images(run, discs, tmp_path):
    made = ulna.predict(run.folder, discs, out=tmp_path / "masks", split="test")
    assert [row["case"] for row in made.cases] == ["disc7"]
    mask = np.asarray(Image.open(tmp_path / "masks" / "disc7.png"))
    assert mask.shape == (32, 40)
    assert set(np.unique(mask)) <= {0, 1}
    scores = ulna.evaluate(tmp_path / "masks", discs, out=tmp_path / "scores")
    assert scores.summary["mean"]["dice"]["mean"] == pytest.approx(run.summary["test"]["mean"]["dice"]["mean"])
    assert (tmp_path / "scores" / "metrics.csv").exists()


def test_a_segmenter_takes_paths_arrays_and_lists(run, discs):
    segment = ulna.load(run.folder)
    path = discs / "images" / "disc7.png"
    by_path = segment(path)
    by_array = segment(np.asarray(Image.open(path)))
    assert np.array_equal(by_path.mask, by_array.mask)
    assert by_path.probabilities.dtype == np.float32
    assert by_path.probabilities.shape == (1, 32, 40)
    assert [r.mask.shape for r in segment([path, path])] == [(32, 40)] * 2
    with pytest.raises(UsageError, match="reads"):
        segment(np.zeros((2, 3, 4, 5)))


def test_one_bad_image_does_not_stop_the_others(run, discs, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(discs / "images", images)
    (images / "disc3.png").write_bytes((images / "disc3.png").read_bytes()[:200])
    with pytest.raises(ulna.PartialFailure, match=r"disc3") as error:
        ulna.predict(run.folder, images, out=tmp_path / "masks")
    assert error.value.done == 7
    assert len(list((tmp_path / "masks").glob("*.png"))) == 7


def test_a_run_that_is_damaged_or_none_is_named(run, discs, tmp_path):
    with pytest.raises(UsageError, match="not a run folder"):
        ulna.load(tmp_path)
    broken = tmp_path / "broken"
    shutil.copytree(run.folder, broken)
    (broken / "weights.safetensors").write_bytes(b"abc")
    with pytest.raises(UsageError, match=r"weights\.safetensors: damaged"):
        ulna.load(broken)


def test_a_folder_with_a_run_is_refused(run, discs):
    with pytest.raises(UsageError, match="--resume"):
        train(discs, model="unet", out=run.folder)


def test_nothing_is_written_when_the_data_are_wrong(discs, tmp_path):
    bad = tmp_path / "bad"
    shutil.copytree(discs, bad)
    (bad / "labels" / "disc1.png").unlink()
    (bad / "labels" / "disc2.png").write_bytes(b"")
    with pytest.raises(DataError) as error:
        train(bad, model="unet", out=tmp_path / "run", set=TINY)
    assert "disc1" in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "unett"}, "did you mean 'unet'"),
        ({"set": ("optimizer.lrr=1",)}, "did you mean 'lr'"),
        ({"set": ("architecture.conv=doubl_conv",)}, "did you mean 'double_conv'"),
        ({"fold": 3}, "fold"),
        ({"epochs": 0}, "greater than or equal to 1"),
        ({"resume": True}, "--resume needs --out"),
    ],
)
def test_wrong_options_are_named_before_any_work(discs, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message):
        train(discs, **options)
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_folder_is_refused(discs, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(UsageError, match=r"cannot be written|is not"):
        train(discs, model="unet", out=blocked / "run", set=TINY)


def test_a_loss_that_is_not_finite_says_what_to_do(discs, tmp_path):
    with pytest.raises(UsageError, match=r"lower optimizer\.lr"):
        train(
            discs,
            model="zhou/unet",
            out=tmp_path / "r",
            set=("architecture.channels=[4, 8]", "optimizer.lr=1e30", "training.clip_gradients=null"),
        )


def test_the_rate_warms_up_and_falls_over_epochs_or_time():
    recipe = choose(model="unet", recipe=None, set=("training.epochs=10", "optimizer.lr=1.0"))
    state = State()
    assert learning_rate(recipe, state, 0.0) == pytest.approx(0.01)
    state.epoch = 5
    assert learning_rate(recipe, state, 0.0) == pytest.approx(0.5)
    limited = choose(
        model="unet", recipe=None, set=("training.epochs=1000", "optimizer.lr=1.0", "training.max_hours=1")
    )
    state.elapsed_s, state.rows = 1800, [{}] * 30
    assert learning_rate(limited, state, 0.0) == pytest.approx(0.5)
    assert learning_rate(limited, state, 1.0) < 0.5
