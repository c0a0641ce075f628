"""A whole training on tiny data: what it writes, that it learns, that it can be stopped and go on, that it refuses."""

import json
import shutil
import threading
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

import ulna
import ulna.training.single as room
from tests.training.tiny import TINY, rows_of
from ulna.cli import main as cli
from ulna.demonstration import make_phantom
from ulna.errors import DataError, UsageError
from ulna.planning.choosing import choose
from ulna.recipe import Plan, Recipe, from_yaml
from ulna.study.prune import prune
from ulna.system.files import read_tensors, write_tensors
from ulna.system.locking import locked
from ulna.system.progress import report_to
from ulna.training.checkpoint import load_checkpoint
from ulna.training.loop import State, learning_rate
from ulna.training.train import train


@pytest.fixture(scope="module")
def run(discs, tmp_path_factory):
    return train(discs, model="unetpp", out=tmp_path_factory.mktemp("runs") / "a", epochs=12, set=TINY)


def test_bars_tell_what_a_training_does(discs, tmp_path):
    heard = []
    report_to(heard.append)
    try:
        train(discs, model="unet", out=tmp_path / "run", epochs=2, set=TINY)
        train(discs, model="unet", out=tmp_path / "limited", epochs=2, max_hours=100, set=TINY)
    finally:
        report_to(None)
    first, second = heard[: len(heard) // 2], heard[len(heard) // 2 :]
    done = dict.fromkeys(standing.what for standing in first)
    wanted = ["reading cases", "epoch 1/2", "validating epoch 1", "epoch 2/2", "validating epoch 2", "evaluating"]
    assert [what for what in done if what in wanted] == wanted
    last = next(standing for standing in reversed(first) if standing.what == "epoch 2/2")
    assert last.done == last.total == 4 and "s left, loss " in last.note
    assert any(standing.what == "epoch 1" for standing in second), "the hours may end it first, as far as is known"


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
    record = room.record_epoch

    def killed_after_two(folder, state, *rest):
        record(folder, state, *rest)
        if state.epoch == 2:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(room, "record_epoch", killed_after_two)
        train(discs, out=part, **options)
    torch.manual_seed(123)  # a new process has another random state
    train(discs, out=part, resume=True)
    a, b = load_checkpoint(whole.folder / "checkpoints"), load_checkpoint(part / "checkpoints")
    assert all(torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors)

    def measured(folder):
        return [{k: v for k, v in row.items() if k != "seconds"} for row in rows_of(folder)]

    assert measured(whole.folder) == measured(part)


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_training_multiplies_in_the_precision_of_the_recipe(discs, tmp_path, monkeypatch, precision, dtype):
    """Maps of training steps and of validations, whichever way the step calls the network."""
    from ulna.networks.network import Network

    seen = {}
    features = Network.features

    def spy(network, image):
        maps = features(network, image)
        if image.device.type == "cpu":  # planning counts on the meta device
            seen.setdefault(network.training, set()).update(m.dtype for m in maps.values())
        return maps

    monkeypatch.setattr(Network, "features", spy)
    train(discs, model="unet", out=tmp_path / "run", epochs=1, set=[*TINY, f"training.precision={precision}"])
    assert seen == {True: {dtype}, False: {dtype}}
    assert all(t.dtype != torch.bfloat16 for t in read_tensors(tmp_path / "run/weights.safetensors").tensors.values())


@pytest.mark.slow
def test_more_epochs_extend_a_finished_run(discs, tmp_path):
    first = train(discs, model="unet", out=tmp_path / "r", epochs=2, set=TINY)
    longer = train(discs, out=first.folder, resume=True, epochs=3)
    assert longer.summary["epochs"] == 3
    assert len((first.folder / "metrics.csv").read_text().splitlines()) == 4


def test_a_time_limit_stops_at_the_end_of_an_epoch(discs, tmp_path):
    run = train(discs, model="unet", out=tmp_path / "r", epochs=1000, max_hours=1.5 / 3600, set=TINY)
    assert 1 <= run.summary["epochs"] < 1000


@pytest.mark.slow
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
    assert set(np.unique(mask)) == {0, 255}  # as the training labels
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


@pytest.mark.slow
def test_paths_may_be_text_as_in_the_contract(run, discs, tmp_path):
    made = ulna.train(str(discs), model="unet", out=str(tmp_path / "a"), epochs=1, set=TINY)
    assert ulna.load(str(made.folder))(str(discs / "images" / "disc0.png")).mask.shape == (32, 40)
    masks = ulna.predict(str(run.folder), str(discs), out=str(tmp_path / "masks"), split="val")
    assert len(ulna.evaluate(str(masks.folder), str(discs)).rows) == 2
    assert ulna.plan(str(discs), model="unet", out=str(tmp_path / "plan.yaml")).spatial_dims == 2


@pytest.mark.parametrize("folder", ["images", "labels"])
def test_predictions_never_replace_images_or_references(run, discs, tmp_path, folder):
    data = tmp_path / "data"
    shutil.copytree(discs, data)
    before = {path: path.read_bytes() for path in data.rglob("*.png")}
    with pytest.raises(UsageError, match="choose another --out"):
        ulna.predict(run.folder, data, out=data / folder)
    assert {path: path.read_bytes() for path in data.rglob("*.png")} == before


def test_an_image_with_nan_fails_and_is_not_called_empty(run):
    broken = np.zeros((1, 32, 40), np.float32)
    broken[0, 3, 3] = np.nan
    with pytest.raises(UsageError, match="1 values are NaN"):
        ulna.load(run.folder)(broken)


def test_overlapping_classes_from_training_to_scores(tmp_path):
    rng = np.random.default_rng(0)
    masks = np.zeros((8, 24, 24, 2), np.uint8)
    masks[:, 4:14, 4:14, 0] = 1
    masks[:, 9:20, 9:20, 1] = 1  # they overlap
    images = (60 + 60 * masks.sum(-1) + rng.normal(0, 8, (8, 24, 24))).clip(0, 255).astype(np.uint8)
    data = tmp_path / "data"
    data.mkdir()
    (data / "classes.json").write_text('{"mode": "multilabel", "classes": ["a", "b"]}')
    np.savez(data / "train.npz", images=images[:6], masks=masks[:6])
    np.savez(data / "val.npz", images=images[6:], masks=masks[6:])
    run = train(data, model="unet", out=tmp_path / "run", epochs=8, set=TINY)
    assert set(run.summary["val"]["classes"]) == {"a", "b"}
    assert run.summary["val"]["mean"]["dice"]["mean"] > 0.5
    ulna.predict(run.folder, data / "val.npz", out=tmp_path / "masks")
    scores = ulna.evaluate(tmp_path / "masks", data)
    assert scores.summary["mean"]["dice"]["mean"] == pytest.approx(run.summary["val"]["mean"]["dice"]["mean"])


@pytest.mark.slow
def test_the_recipe_of_a_volume_run_repeats_it(tmp_path):
    data = make_phantom(tmp_path / "data", count=4, size=(16, 20, 12))
    small = ("architecture.base_channels=4", "planning.batch=1", "training.min_steps=2")
    first = train(data, model="nnunet", out=tmp_path / "a", epochs=1, set=small)
    again = train(data, recipe=first.folder / "recipe.yaml", out=tmp_path / "b")
    assert again.summary["val_dice"] == first.summary["val_dice"]


def test_a_recipe_file_changes_what_it_states_and_nothing_else(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("model: nnunet\noptimizer: {lr: 1e-4}\n")
    recipe = choose(model=None, recipe=path)
    assert (recipe.model, recipe.optimizer.lr, recipe.optimizer.kind) == ("nnunet", 1e-4, "adam")
    assert recipe.loss.heads == "halving"
    assert recipe.architecture.deep_supervision
    assert choose(model="unet", recipe=path).architecture == choose(model="unet", recipe=None).architecture
    with pytest.raises(UsageError, match="with --model"):
        choose(model=None, recipe=None, set=("model=unet",))


@pytest.mark.slow
def test_the_command_line_composes_whitens_and_scales(tmp_path):
    """A recommended network with another skip, to a budget, on whitened channels: trained, stored, and used again."""
    rng = np.random.default_rng(0)
    masks = np.zeros((8, 20, 20), np.uint8)
    masks[:, 5:15, 6:16] = 1
    grey = 80 + 80 * masks + rng.normal(0, 10, masks.shape)
    images = np.stack([grey, 0.5 * grey + rng.normal(0, 5, masks.shape)], axis=-1).clip(0, 255).astype(np.float32)
    (tmp_path / "data").mkdir()
    np.savez(tmp_path / "data" / "train.npz", images=images[:6], masks=masks[:6])
    np.savez(tmp_path / "data" / "val.npz", images=images[6:], masks=masks[6:])
    given = (
        "architecture.skip=attention_gate", "architecture.levels=3", "planning.parameters=60_000", "planning.batch=2",
        "planning.whitening=zca", "training.min_steps=4", "optimizer.lr=1e-2",
    )  # fmt: skip
    arguments = [
        "train",
        str(tmp_path / "data"),
        "--model",
        "efficient_unet",
        "--out",
        str(tmp_path / "run"),
        "--epochs",
        "2",
    ]
    assert cli.run([*arguments, "--quiet", *(word for change in given for word in ("--set", change))]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["parameters"] == pytest.approx(60_000, rel=0.05)
    segmenter = ulna.load(tmp_path / "run")
    assert segmenter.recipe.architecture.skip[0].kind == "attention_gate"
    assert segmenter.recipe.planning.parameters is None  # the widths are stated now
    whitening = from_yaml(Plan, tmp_path / "run" / "plan.yaml").whitening
    normal = (images[:6] - images[:6].mean((1, 2), keepdims=True)) / images[:6].std((1, 2), keepdims=True)
    covariance = np.cov(normal.reshape(-1, 2).T.astype(np.float64), bias=True)  # of the training images alone
    W = np.array(whitening.matrix)
    np.testing.assert_allclose(W @ covariance @ W.T, np.eye(2), atol=1e-4)
    assert segmenter(images[7]).mask.shape == (20, 20)


@pytest.mark.parametrize("change", ["loss.kind=dicee", "loss.heads={x9: 1}", "loss.options.smooth=abc"])
def test_a_wrong_loss_costs_no_reading_of_data(tmp_path, monkeypatch, change):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"loss|head"):
        train("no/such/data", model="unet", set=(change,))


def test_json_of_every_verb_is_json(run, discs, tmp_path, capsys):
    for arguments in (
        ["check", str(discs)],
        ["plan", str(discs), "--untimed"],
        ["predict", str(run.folder), str(discs), "--out", str(tmp_path / "m")],
        ["evaluate", str(tmp_path / "m"), str(discs)],
    ):
        assert cli.run([*arguments, "--json", "--quiet"]) == 0
        out, err = capsys.readouterr()
        assert "NaN" not in out
        json.loads(out)
        assert err == ""


def test_weights_that_are_not_finite_are_never_written(discs, tmp_path, monkeypatch):
    """A finite loss whose gradient is not: no later loss of the epoch shows it."""
    from ulna.training.loop import Loop

    step = Loop._step

    def poisoned(loop, images, labels, number):
        value = step(loop, images, labels, number)
        if loop.state.epoch == 1 and number == loop.batches.steps - 1:
            with torch.no_grad():
                next(loop.network.parameters()).view(-1)[0] = float("nan")
        return value

    monkeypatch.setattr(Loop, "_step", poisoned)
    with pytest.raises(UsageError, match=r"became NaN or infinite in epoch 2 .* lower optimizer\.lr"):
        train(discs, model="unet", out=tmp_path / "r", epochs=3, set=TINY)
    stored = [read_tensors(path).tensors for path in (tmp_path / "r").rglob("*.safetensors")]
    assert len(stored) == 3  # the best weights and two checkpoints
    assert all(bool(torch.isfinite(t.float()).all()) for tensors in stored for t in tensors.values())


def test_a_second_training_in_one_folder_is_refused_before_it_writes(discs, tmp_path, monkeypatch):
    """As if both had found the folder free: the second begins while the first reads its data."""
    read, refused = room.read_training_data, []

    def second_one_begins(data, training):
        if not refused:
            refused.append(None)
            thread = threading.Thread(target=second)
            thread.start()
            thread.join()
        return read(data, training)

    def second():
        try:
            train(discs, model="unet", out=tmp_path / "r", epochs=1, seed=2, set=TINY)
        except UsageError as error:
            refused.append(str(error))

    monkeypatch.setattr(room, "read_training_data", second_one_begins)
    made = train(discs, model="unet", out=tmp_path / "r", epochs=1, seed=1, set=TINY)
    assert "another command writes into it" in refused[1]
    assert from_yaml(Recipe, tmp_path / "r" / "recipe.yaml").training.seed == made.summary["seed"] == 1
    assert not (tmp_path / "r" / ".lock").exists()


def test_a_run_under_way_is_not_gone_on_with(discs, tmp_path, run):
    shutil.copytree(run.folder, tmp_path / "r")
    before = {path: path.read_bytes() for path in (tmp_path / "r").rglob("*") if path.is_file()}
    refused = []

    def second():
        try:
            train(discs, out=tmp_path / "r", resume=True, epochs=20)
        except UsageError as error:
            refused.append(str(error))

    with locked(tmp_path / "r"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert "another command writes into it" in refused[0]
    assert before == {path: path.read_bytes() for path in (tmp_path / "r").rglob("*") if path.is_file()}


def test_to_go_on_with_a_folder_that_is_not_there_says_how_to_start(discs, tmp_path):
    with pytest.raises(UsageError, match=r"no such folder.*start with: ulna train .* --out .*gone") as error:
        train(discs, out=tmp_path / "gone", resume=True)
    assert "\n" not in str(error.value)
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / ".lock").touch()  # of a training that was killed while it read its data
    with pytest.raises(UsageError, match="nothing was trained there yet; leave --resume out: ulna train"):
        train(discs, out=tmp_path / "begun", resume=True)
    train(discs, model="unet", out=tmp_path / "begun", epochs=1, set=TINY)


@pytest.fixture
def copied(discs, tmp_path):
    """The data in another place, to be changed, and a run that began with them."""
    shutil.copytree(discs, tmp_path / "data")
    (tmp_path / "data" / "splits.json").unlink()
    train(discs, model="unet", out=tmp_path / "run", epochs=1, set=TINY)
    return tmp_path / "data"


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_goes_on_with_its_data_wherever_they_lie(copied, tmp_path):
    assert train(copied, out=tmp_path / "run", resume=True, epochs=2).summary["epochs"] == 2


def test_other_data_are_named_and_nothing_is_changed(copied, tmp_path):
    Image.fromarray(np.zeros((32, 40), np.uint8)).save(copied / "labels" / "disc1.png")
    Image.fromarray(np.eye(32, 40, dtype=np.uint8)).save(copied / "images" / "disc3.png")
    for folder in ("images", "labels"):
        (copied / folder / "disc2.png").rename(copied / folder / "disc9.png")
    before = contents(tmp_path / "run")
    with pytest.raises(
        UsageError, match=r"2 changed \(disc1, disc3\), 1 missing \(disc2\), 1 new \(disc9\) of 8 cases"
    ):
        train(copied, out=tmp_path / "run", resume=True, epochs=2)
    assert contents(tmp_path / "run") == before


@pytest.mark.parametrize("changed", [True, False])
def test_a_run_without_its_record_of_the_data_does_not_go_on(copied, tmp_path, changed):
    """Once the record was made anew, of whatever data were given."""
    (tmp_path / "run" / "data.json").unlink()
    if changed:
        Image.fromarray(np.zeros((32, 40), np.uint8)).save(copied / "labels" / "disc1.png")
    before = contents(tmp_path / "run")
    with pytest.raises(UsageError, match=r"data\.json: is missing, so nobody can say .* restore it, or train again"):
        train(copied, out=tmp_path / "run", resume=True, epochs=2)
    assert contents(tmp_path / "run") == before


@pytest.mark.slow
def test_a_pruned_run_does_not_go_on_and_stays_as_it_is(copied, tmp_path):
    train(copied, model="unetpp", out=tmp_path / "deep", epochs=1, set=(*TINY, "architecture.deep_supervision=true"))
    prune(tmp_path / "deep", out=tmp_path / "small", level=1)
    before = contents(tmp_path / "small")
    with pytest.raises(UsageError, match="holds no checkpoint"):
        train(copied, out=tmp_path / "small", resume=True, epochs=2)
    assert contents(tmp_path / "small") == before


def test_other_classes_are_other_data(copied, tmp_path):
    (copied / "classes.json").write_text(json.dumps({"1": "liver"}))
    with pytest.raises(UsageError, match=r"declares the classes background, liver, but the run .* foreground"):
        train(copied, out=tmp_path / "run", resume=True, epochs=2)


@pytest.mark.parametrize("damage", ["bytes", "absent", "nan", "other"])
@pytest.mark.share(2)
def test_without_a_whole_checkpoint_a_finished_run_never_begins_anew(copied, tmp_path, damage):
    checkpoints = tmp_path / "run" / "checkpoints"
    for path in checkpoints.iterdir():
        saved = read_tensors(path)
        if damage == "bytes":
            path.write_bytes(path.read_bytes()[:-1])
        elif damage == "absent":
            path.unlink()
        elif damage == "nan":
            next(t for n, t in saved.tensors.items() if n.startswith("network.")).view(-1)[0] = float("nan")
            write_tensors(path, saved)
        else:
            tensors = {name: t for name, t in saved.tensors.items() if not name.startswith("network.head")}
            write_tensors(path, saved._replace(tensors=tensors))
    before = contents(tmp_path / "run")
    with pytest.raises(UsageError, match=r"train again into\s+another folder|or train again"):
        train(copied, out=tmp_path / "run", resume=True, epochs=2)
    kept = contents(tmp_path / "run")
    if damage == "absent":
        assert kept == before
    log_file = tmp_path / "run" / "log.txt"
    assert {path: data for path, data in kept.items() if path != log_file} == {
        path: data for path, data in before.items() if path != log_file
    }


@pytest.mark.slow
def test_a_run_goes_on_whose_moments_overflowed_while_its_weights_did_not(copied, tmp_path):
    """As squares of gradients beyond 5e20 do: what was saved was then called damaged, and nothing was left."""
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        saved = read_tensors(path)
        next(t for n, t in saved.tensors.items() if n.endswith("exp_avg_sq")).view(-1)[0] = float("inf")
        write_tensors(path, saved)
    assert train(copied, out=tmp_path / "run", resume=True, epochs=2).summary["epochs"] == 2


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("loop", None),
        ("loop", {"epoch": "x"}),
        ("optimizer", []),
        ("optimizer", {"values": {"a": 1}, "groups": []}),
        ("arithmetic", {"threads": 10**9}),
        ("arithmetic", {"threads": "two"}),
        ("arithmetic", 3),
    ],
)
@pytest.mark.share(3)
def test_a_checkpoint_with_a_state_of_other_types_is_a_clear_error(copied, tmp_path, field, value):
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        saved = read_tensors(path)
        write_tensors(path, saved._replace(state={**saved.state, field: value}))
    with pytest.raises(UsageError, match="checkpoint"):
        train(copied, out=tmp_path / "run", resume=True, epochs=2)


def discs_with(root, source, empty):
    """The discs, of which some show none."""
    shutil.copytree(source, root)
    for name in empty:
        Image.fromarray(np.zeros((32, 40), np.uint8)).save(root / "labels" / f"{name}.png")
    return root


class Marked(NamedTuple):
    """A prediction that has one class everywhere."""

    size: tuple[int, ...]
    value: int

    def label_map(self, *_):
        return np.full(self.size, self.value, np.uint8)


def test_the_epoch_is_chosen_without_the_cases_that_hold_nothing(discs, tmp_path, monkeypatch):
    """Once an empty validation case lifted the Dice of an epoch that finds nothing to a half."""
    from ulna.training import validation

    data = discs_with(tmp_path / "data", discs, ["disc5"])
    monkeypatch.setattr(validation, "predict_slabs", lambda net, plan, prepared, **_: Marked(prepared.size, 0))
    run = train(data, model="unet", out=tmp_path / "run", epochs=1, set=TINY)
    assert run.summary["val_dice"] == 0
    papers = train(data, model="unet", out=tmp_path / "p", epochs=1, set=[*TINY, "evaluation.empty_score=1"])
    assert papers.summary["val_dice"] == 0.5


def test_where_nothing_is_to_be_found_an_epoch_that_invents_nothing_is_best(discs, tmp_path, monkeypatch):
    from ulna.training import validation

    data = discs_with(tmp_path / "data", discs, ["disc5", "disc6", "disc7"])
    marked = iter([1, 0, 0, 0, 0, 0])  # the first epoch marks something in the first case
    monkeypatch.setattr(
        validation, "predict_slabs", lambda net, plan, prepared, **_: Marked(prepared.size, next(marked))
    )
    run = train(data, model="unet", out=tmp_path / "run", epochs=3, set=TINY)
    assert [float(row["val_dice"]) for row in rows_of(run.folder)] == [0.0, 1.0, 1.0]
    assert run.summary["best_epoch"] == 2
    test = run.summary["test"]["mean"]
    assert test["n"] + test["both_empty"] == 1
    assert (run.folder / "log.txt").read_text().count("no validation case holds a structure") == 1
