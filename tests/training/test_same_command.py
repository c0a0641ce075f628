"""A run goes on with the command that began it, with more epochs, and refuses what differs."""

import shutil

import pytest

from tests.training.tiny import TINY, rows_of
from ulna.errors import UsageError
from ulna.planning.choosing import choose
from ulna.recipe import Recipe, from_yaml, to_yaml
from ulna.system.files import read_state
from ulna.training.checkpoint import LAST, keep_last
from ulna.training.extending import extend
from ulna.training.same_command import check_same_command
from ulna.training.state import State, learning_rate
from ulna.training.summary import with_limits
from ulna.training.train import train

COMMAND = {
    "model": "unetpp",
    "epochs": 2,
    "seed": 3,
    "set": (*TINY, "training.min_steps=2", "planning.parameters=3000"),
}


@pytest.fixture(scope="module")
def begun(discs, tmp_path_factory):
    return train(discs, out=tmp_path_factory.mktemp("runs") / "a", **COMMAND).folder


@pytest.fixture
def run(begun, tmp_path):
    return shutil.copytree(begun, tmp_path / "run")


def test_the_same_command_again_goes_on(discs, run):
    again = train(discs, out=run, resume=True, **COMMAND)
    assert again.summary["epochs"] == 2 and len(rows_of(run)) == 2
    longer = train(discs, out=run, resume=True, **{**COMMAND, "epochs": 3})
    assert longer.summary["epochs"] == 3 and len(rows_of(run)) == 3


def test_what_a_limit_made_of_the_memory_is_not_compared(run):
    lowered = from_yaml(Recipe, run / "recipe.yaml")
    lowered = lowered.replaced(planning=lowered.planning.replaced(memory_gb=0.4))
    (run / "recipe.yaml").write_text(to_yaml(lowered))
    flags = {"set": ["planning.memory_gb=4"]}
    check_same_command(run, flags, limited=True)
    with pytest.raises(UsageError, match=r"planning\.memory_gb is 0\.4 there, 4\.0 now"):
        check_same_command(run, flags)


@pytest.mark.parametrize("flags", [{"model": "unetpp"}, {"seed": 3}, {"set": "optimizer.lr=1e-2"}, {}])
@pytest.mark.share(2)
def test_a_part_of_the_command_is_enough(discs, run, flags):
    assert train(discs, out=run, resume=True, **flags).summary["epochs"] == 2


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"model": "unet"}, "model is 'unetpp' there, 'unet' now"),
        ({"budget": "quick"}, "training.epochs is 2 there, 25 now, training.steps_per_epoch is None there, 100 now"),
        ({"set": ("optimizer.lr=1e-2", "training.patience=7")}, "training.patience is 30 there, 7 now"),
        ({"set": ("architecture.skip=attention_gate",)}, "architecture.skip is "),
        ({"split": "80/20"}, "training.split is None there, '80/20' now"),
        ({"fold": 1}, "training.fold is None there, 1 now"),
        ({"set": ("planning.parameters=9000",)}, "architecture.channels is "),
        ({"set": ("architecture.levels=2",)}, "the number of levels is not clear"),
        ({"recipe": "laird"}, "architecture"),
    ],
)
def test_what_differs_is_named_in_one_sentence_and_nothing_changes(discs, run, tmp_path, flags, told):
    if "recipe" in flags:
        flags = {"recipe": tmp_path / "own.yaml"}
        flags["recipe"].write_text("optimizer: {lr: 0.5}\narchitecture: {topology: unet}\n")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match="was begun with other settings") as error:
        train(discs, out=run, resume=True, **flags)
    assert told in str(error.value) and "\n" not in str(error.value)
    assert "leave them out to go on with it, or train again into another folder" in str(error.value)
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_the_threads_of_a_run_are_kept(discs, run):
    with pytest.raises(
        UsageError, match=r"--threads 2: .* computes with 1 thread, and goes on exactly only with as many"
    ):
        train(discs, out=run, resume=True, threads=2)
    assert train(discs, out=run, resume=True, threads=1).summary["threads"] == 1


def test_a_finished_run_keeps_its_last_checkpoint_alone(discs, run):
    assert [path.name for path in (run / "checkpoints").iterdir()] == [LAST]
    assert read_state(run / "checkpoints" / LAST)["loop"]["epoch"] == 2
    shutil.copy(run / "checkpoints" / LAST, run / "checkpoints" / "previous.safetensors")
    (run / "checkpoints" / LAST).unlink()
    keep_last(run / "checkpoints")
    assert list((run / "checkpoints").iterdir()), "what is alone stays"


@pytest.mark.slow
def test_an_extension_anneals_from_a_third_of_the_first_rate(discs, run):
    train(discs, out=run, resume=True, epochs=8)
    rates = [float(row["lr"]) for row in rows_of(run)]
    first = from_yaml(Recipe, run / "recipe.yaml").optimizer.lr
    assert 0.9 * first / 3 < rates[2] <= first / 3
    assert rates[2:] == sorted(rates[2:], reverse=True) and rates[-1] < 0.1 * first / 3


def test_the_rate_of_an_extension_by_epochs_and_by_hours():
    recipe = choose(model="unet", recipe=None, set=("training.epochs=30", "optimizer.lr=0.3"))
    state = State()
    state.epoch = 10
    state.extend(10, 100.0)
    assert learning_rate(recipe, state, 0.0) == pytest.approx(0.1)
    state.epoch = 20
    assert learning_rate(recipe, state, 0.0) == pytest.approx(0.05)
    timed = choose(model="unet", recipe=None, set=("training.epochs=1000", "training.max_hours=1", "optimizer.lr=0.3"))
    state.elapsed_s, state.rows = 100 + 1750, [{}] * 20
    assert learning_rate(timed, state, 0.0) == pytest.approx(0.05)
    flat = recipe.replaced(schedule=recipe.schedule.replaced(kind="constant"))
    assert learning_rate(flat, state, 0.0) == 0.3


class Killed(BaseException):
    pass


@pytest.mark.slow
def test_an_extension_that_was_stopped_goes_on_as_one(discs, run, tmp_path, monkeypatch):
    import ulna.training.single as room

    whole = shutil.copytree(run, tmp_path / "whole")
    train(discs, out=whole, resume=True, epochs=6)
    record = room.record_epoch

    def killed(folder, state, *rest):
        record(folder, state, *rest)
        if state.epoch == 4:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(room, "record_epoch", killed)
        train(discs, out=run, resume=True, epochs=6)
    train(discs, out=run, resume=True)
    assert (run / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()


def test_a_run_that_is_not_over_is_no_extension(tmp_path):
    before = choose(model="unet", recipe=None, set=("training.epochs=10",))
    longer = before.replaced(training=before.training.replaced(epochs=20))
    state = State()
    state.epoch, state.rows = 4, [{"val_dice": 0.5}] * 4
    extend(state, tmp_path, before, longer)
    assert (state.extended_epoch, state.patience_from) == (0, 4)
    extend(state, tmp_path, longer, longer)
    assert state.patience_from == 4
    state.epoch, state.rows = 10, [{"val_dice": 0.5}] * 10
    extend(state, tmp_path, before, longer)
    assert state.extended_epoch == 10, "it was stopped in its final evaluation"


def test_a_summary_of_an_earlier_version_that_names_no_limits_begins_no_extension(tmp_path):
    """A training that its patience had ended would train on, with nothing changed."""
    (tmp_path / "summary.json").write_text('{"epochs": 4, "training_seconds": 9.0}')
    recipe, state = choose(model="unet", recipe=None), State()
    state.epoch, state.rows = 4, [{"val_dice": 0.5}] * 4
    extend(state, tmp_path, recipe, recipe)
    assert (state.extended_epoch, state.patience_from) == (0, 0)


def test_epochs_take_the_place_of_steps_only_where_they_change():
    training = choose(model="unet", recipe=None, set=("training.epochs=10", "training.steps=99")).training
    assert with_limits(training, epochs=10, max_hours=2.0) == training.replaced(max_hours=2.0)
    assert with_limits(training, epochs=20, max_hours=None) == training.replaced(epochs=20, steps=None)
    assert with_limits(training, epochs=None, max_hours=None) == training
