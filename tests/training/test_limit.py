"""A limit of hours is kept, by clocks that are given: epochs and validations that do not fit are cut."""

import itertools

import pytest

from tests.training.tiny import TINY, rows_of
from ulna.inference.segmenter import Segmenter
from ulna.planning.choosing import choose
from ulna.system.progress import report_to
from ulna.training import loop as room
from ulna.training.limit import PAGE_S, FirstSteps, must_validate, share_out, time_left, told_end
from ulna.training.state import State, learning_rate
from ulna.training.train import train
from ulna.training.validating import Validation


def training(*changes):
    return choose(model="unet", recipe=None, set=changes).training


def test_what_fits_is_left_alone():
    shares = share_out(100, step_s=1, steps=50, case_s=1, val_cases=10, final_cases=10)
    assert shares == (None, None, 15 + PAGE_S, [])


def test_an_epoch_that_does_not_fit_is_cut_so_that_everything_after_it_ends_in_time():
    shares = share_out(60, step_s=2, steps=100, case_s=1, val_cases=10, final_cases=10)
    assert shares.steps * 2 + 10 + shares.final_s <= 60 < (shares.steps + 1) * 2 + 10 + shares.final_s
    assert "the limit ends before the first epoch" in shares.said[-1] and "17 more steps" in shares.said[-1]


def test_a_validation_that_does_not_fit_predicts_fewer_cases():
    shares = share_out(54, step_s=1, steps=100, case_s=5, val_cases=100, final_cases=2)
    assert shares.val_cases == 2 and shares.steps == 28
    assert "100 validation cases would take about 8 min: the weights are chosen by 2 cases of them" in shares.said[0]


def test_a_final_evaluation_that_does_not_fit_is_told_and_leaves_half_to_the_rest():
    shares = share_out(60, step_s=1, steps=1000, case_s=2, val_cases=1, final_cases=100)
    assert shares.final_s == 30 and shares.steps == 28
    assert "takes about 5 min, and will end after the limit" in shares.said[0]


def test_the_calibration_gets_a_tenth_at_most():
    facts = {"step_s": 2, "steps": 100, "case_s": 1, "val_cases": 10, "final_cases": 10}
    shares = [share_out(60, **facts, calibrating_cases=cases) for cases in (0, 4, 100)]
    assert [one.final_s - PAGE_S for one in shares] == [15, 19, 21]
    assert [one.steps for one in shares] == [17, 15, 14]


@pytest.mark.parametrize("left", [0, -5])
def test_where_nothing_is_left_one_case_is_validated_at_once(left):
    shares = share_out(left, step_s=1, steps=10, case_s=1, val_cases=3, final_cases=3)
    assert (shares.steps, shares.val_cases, shares.final_s) == (0, 1, 0)


@pytest.mark.parametrize(
    ("times", "found"),
    [
        ([0, 60, 120], [None, 60]),  # the second step is a share of the limit that is worth knowing
        ([0, 300, 301, 302, 303], [None, None, None, 1]),  # the first one sets up what the others use
        ([0, 501], [501]),  # no time for another
    ],
)
def test_as_few_first_steps_are_timed_as_tell_enough(times, found):
    now = iter(times)
    first = FirstSteps(1000, 4, lambda: next(now))
    assert [first.timed(5 + number, settled=True) for number in range(len(found))] == found


def test_steps_end_before_the_time_that_validation_and_the_end_take():
    state, limited = State(), training("training.max_hours=1")
    state.elapsed_s, state.reading_s, state.final_s, state.case_s = 3000, 100, 200, 5
    state.step_s = 249
    assert not must_validate(state, limited, 10)
    state.step_s = 250  # 3000 + 250 + 50 + 100 + 200
    assert must_validate(state, limited, 10)
    assert not must_validate(state, training(), 10)


def test_the_rate_warms_up_and_falls_within_an_epoch_that_is_cut():
    recipe, state = choose(model="unet", recipe=None, set=("optimizer.lr=1.0", "training.max_hours=1")), State()
    state.last_step, rates = 20, []
    for state.step in range(21):
        rates.append(learning_rate(recipe, state, state.step / 1000))
    assert rates[0] == pytest.approx(0.01) and rates[2] > 0.9
    assert rates[2:] == sorted(rates[2:], reverse=True) and rates[-1] == pytest.approx(0)


def test_what_is_left_is_told_by_what_ends_the_training():
    state = State()
    assert time_left(state, training("training.epochs=10"), 20) == (None, False)
    state.step, state.step_s = 2, 4.0
    assert time_left(state, training("training.epochs=10"), 20) == (396, False)
    assert time_left(state, training("training.epochs=10", "training.max_hours=0.1"), 20) == (356, True)
    assert time_left(state, training("training.epochs=10", "training.max_hours=1"), 20) == (396, False)
    noon = 1_700_000_000.0
    said = told_end(600, True, noon)
    assert said == told_end(600, True, noon) and said.startswith("until ") and said.endswith(", 10 min left")
    assert told_end(90_000, True, noon).count(" ") > said.count(" "), "a day is told with its date"


class Clock:
    """Seconds that pass with steps and cases alone."""

    def __init__(self, monkeypatch, step_s, case_s):
        self.now, self.cases = 0.0, 0
        step, score = room.Loop._step, Validation._score

        def stepped(loop, *rest):
            self.now += step_s
            return step(loop, *rest)

        def scored(validation, index):
            self.now += case_s
            self.cases += 1
            return score(validation, index)

        monkeypatch.setattr(room.Loop, "_step", stepped)
        monkeypatch.setattr(Validation, "_score", scored)
        monkeypatch.setattr(room.time, "perf_counter", self)

    def __call__(self):
        return self.now


LIMITED = {"model": "unet", "epochs": 50, "set": (*TINY, "training.min_steps=200")}


@pytest.fixture
def loops(monkeypatch):
    """The loops of the trainings of a test, whose clock is that of `Clock`."""
    made, begin = [], room.Loop.__init__

    def noted(loop, *arguments, clock=None, **options):
        made.append(loop)
        begin(loop, *arguments, clock=lambda: room.time.perf_counter(), **options)

    monkeypatch.setattr(room.Loop, "__init__", noted)
    return made


def test_a_limit_shorter_than_an_epoch_is_kept_and_leaves_weights(discs, tmp_path, monkeypatch, loops):
    clock = Clock(monkeypatch, step_s=1.0, case_s=2.0)
    run = train(discs, out=tmp_path / "run", max_hours=54 / 3600, **LIMITED)
    [loop] = loops
    # two cases validate, one is scored at the end, in half as long again; calibration gets a tenth of what is left
    kept = loop.state.final_s
    assert 3 + 0.1 * 40 < kept < 3 + 0.1 * 54
    assert loop.state.elapsed_s + kept <= 54 < loop.state.elapsed_s + kept + 2
    assert clock.cases == 1 + 2, "one to know how long it takes, and the validation"
    assert run.summary["epochs"] == run.summary["best_epoch"] == 1 and "val_cases" not in run.summary
    log = (run.folder / "log.txt").read_text()
    assert "note: the limit ends before the first epoch" in log and "the 0.015 h allowed are over" in log
    assert log.index("the limit ends before") < log.index("epoch 1  loss")
    assert Segmenter.load(run.folder)(discs / "images" / "disc0.png").mask.shape == (32, 40)


@pytest.mark.slow
def test_a_machine_that_gets_slower_ends_its_epoch_in_time(discs, tmp_path, monkeypatch, loops):
    clock = Clock(monkeypatch, step_s=0.2, case_s=0.5)
    step, calls = room.Loop._step, itertools.count()

    def slower(loop, *rest):
        clock.now += 30 if next(calls) > 150 else 0
        return step(loop, *rest)

    monkeypatch.setattr(room.Loop, "_step", slower)
    train(discs, out=tmp_path / "run", max_hours=100 / 3600, **LIMITED)
    assert 100 - 30 < loops[0].state.elapsed_s < 100 + 30, "it ends with the step that takes it over the limit"
    assert len(rows_of(tmp_path / "run")) == 1


def test_a_validation_longer_than_the_limit_takes_one_case(discs, tmp_path, monkeypatch, loops):
    Clock(monkeypatch, step_s=1.0, case_s=200.0)
    run = train(discs, out=tmp_path / "run", max_hours=54 / 3600, **LIMITED)
    assert run.summary["val_cases"] == 1
    assert (
        "the final evaluation takes about 5 min, and will end after the limit" in (run.folder / "log.txt").read_text()
    )


@pytest.mark.slow
def test_a_machine_that_gets_slower_ends_the_validation_in_time(discs, tmp_path, monkeypatch, loops):
    clock = Clock(monkeypatch, step_s=1.0, case_s=2.0)
    score = Validation._score

    def slower(validation, index):
        clock.now += 40 if clock.cases else 0
        return score(validation, index)

    monkeypatch.setattr(Validation, "_score", slower)
    run = train(discs, out=tmp_path / "run", max_hours=54 / 3600, **LIMITED)
    assert clock.cases == 1 + 1 and run.summary["val_cases"] == 1
    assert "the weights are chosen by 1 of 2 validation cases" in (run.folder / "log.txt").read_text()


@pytest.mark.slow
def test_the_time_left_goes_on_while_it_validates(discs, tmp_path, monkeypatch, loops):
    Clock(monkeypatch, step_s=1.0, case_s=2.0)
    told = []
    report_to(told.append)
    try:
        train(discs, out=tmp_path / "run", max_hours=54 / 3600, **LIMITED)
    finally:
        report_to(None)
    left = [one.note.split(", ")[-1] for one in told if one.what == "validating epoch 1" and one.done]
    assert len(left) == 2 and int(left[0].split()[0]) == int(left[1].split()[0]) + 2


class Killed(BaseException):
    pass


def test_what_is_stopped_in_the_validation_of_a_cut_epoch_goes_on_there(discs, tmp_path, monkeypatch, loops):
    Clock(monkeypatch, step_s=1.0, case_s=2.0)

    def stopped(loop):
        loop._save()
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(room.Loop, "validate", stopped)
        train(discs, out=tmp_path / "run", max_hours=54 / 3600, **LIMITED)
    steps = loops[0].state.step
    run = train(discs, out=tmp_path / "run", resume=True)
    assert loops[1].state.rows[0]["train_loss"] == pytest.approx(sum(loops[0].state.losses) / steps)
    assert run.summary["epochs"] == 1 and run.summary["val_dice"] is not None


@pytest.mark.slow
def test_more_hours_validate_all_cases_and_forget_what_fewer_chose(discs, tmp_path, monkeypatch, loops):
    clock = Clock(monkeypatch, step_s=1.0, case_s=200.0)
    train(discs, out=tmp_path / "run", max_hours=54 / 3600, **LIMITED)
    clock.cases = 0
    run = train(discs, out=tmp_path / "run", resume=True, max_hours=2400 / 3600)
    assert "val_cases" not in run.summary and run.summary["epochs"] > 1
    assert run.summary["best_epoch"] > 1, "the first epoch was chosen by one case"
    assert clock.cases == 2 * (run.summary["epochs"] - 1)


@pytest.mark.slow
@pytest.mark.parametrize("before", [{"epochs": 2}, {"epochs": 1, "set": (*TINY, "training.min_steps=1")}])
def test_a_limit_that_comes_later_keeps_time_for_the_final_evaluation(discs, tmp_path, monkeypatch, loops, before):
    Clock(monkeypatch, step_s=1.0, case_s=10.0)
    train(discs, out=tmp_path / "run", **{"model": "unet", "set": TINY, **before})
    train(discs, out=tmp_path / "run", resume=True, epochs=50, max_hours=100 / 3600)
    assert len(loops[1].state.rows) > before["epochs"]
    assert loops[1].state.elapsed_s + 15 <= 100, "one case is scored at the end, in half as long again"


def test_epochs_too_short_to_be_timed_keep_time_for_the_final_evaluation(discs, tmp_path, monkeypatch, loops):
    Clock(monkeypatch, step_s=1.0, case_s=10.0)
    short = (*TINY, "training.steps_per_epoch=1", "training.min_steps=1")
    train(discs, model="unet", out=tmp_path / "run", epochs=50, max_hours=90 / 3600, set=short)
    assert len(loops[0].state.rows) > 1 and loops[0].state.elapsed_s + 15 <= 90


def test_an_epoch_count_is_told_where_epochs_end_the_training():
    from ulna.training.pace import Pace

    def told(*changes, rows=(), elapsed=0.0):
        state = State()
        state.rows, state.epoch, state.elapsed_s = list(rows), len(rows), elapsed
        return Pace(state, training(*changes), None, (), final_cases=0, watch=None, clock=None).told_epoch()

    assert told("training.epochs=100") == "epoch 1/100"
    assert told("training.max_hours=1") == "epoch 1"
    assert told("training.max_hours=1", "training.epochs=5", rows=[{}], elapsed=60) == "epoch 2/5"
    assert told("training.max_hours=1", rows=[{}], elapsed=600) == "epoch 2"
