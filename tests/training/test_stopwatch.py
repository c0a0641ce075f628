"""Where the time of a training goes, by clocks that are given."""

import json

import pytest

from tests.training.tiny import TINY, rows_of
from ulna.system.files import read_tensors, write_tensors
from ulna.training import loop as room
from ulna.training.stopwatch import PHASES, Stopwatch, advice, parts
from ulna.training.train import train


def test_a_phase_within_another_counts_for_itself_alone():
    now = 0.0
    watch = Stopwatch(lambda: now)
    now = 100.0  # before anything was counted
    with watch.of("steps"):
        now += 2
        with watch.of("data"):
            now += 3
        now += 4
        with watch.of("writing"):
            now += 5
    now += 100  # between phases
    with pytest.raises(KeyError), watch.of("validation"):
        now += 7
        raise KeyError
    assert watch.spent == {"data": 3, "steps": 6, "validation": 7, "writing": 5}


def test_parts_are_told_where_they_take_a_second():
    assert parts({"data": 0.4, "steps": 1.0, "validation": 0.2, "writing": 0.2}) == ""
    assert parts({"data": 0.4, "steps": 9.0, "validation": 2.0, "writing": 0.2}) == " (steps 9, validation 2)"


def seconds(data, steps):
    return {"data": data, "steps": steps, "validation": 500.0, "writing": 500.0}


@pytest.mark.parametrize(
    ("data", "steps", "workers", "said"),
    [
        (200.0, 100.0, 0, True),
        (90.0, 100.0, 0, False),  # made between the steps, in less time than these
        (90.0, 100.0, 4, True),  # waited for, though they were made beside the steps
        (9.0, 91.0, 4, False),
        (20.0, 1.0, 0, False),  # not worth a word
    ],
)
def test_advice_is_given_where_samples_were_slower(data, steps, workers, said):
    assert bool(advice(seconds(data, steps), threads=workers, spare=2)) == said


def test_advice_names_workers_only_where_processors_are_idle():
    busy, idle = (advice(seconds(200, 100), threads=4, spare=spare) for spare in (0, 3))
    assert "training.workers=7 " in idle and "augmentation" in idle
    assert "training.workers" not in busy and "augmentation" in busy
    assert "200 s" in busy and "100 s" in busy


class Ticks(Stopwatch):
    """A watch on which every turn takes a second."""

    def __init__(self):
        self.now = 0.0
        super().__init__(self.tick)

    def tick(self):
        self.now += 1
        return self.now


def test_the_summary_tells_what_all_epochs_went_to_and_a_resumed_run_adds_up(discs, tmp_path, monkeypatch):
    monkeypatch.setattr(room, "Stopwatch", Ticks)
    monkeypatch.setattr(room, "advice", lambda seconds, **_: f"data {seconds['data']:.0f}")
    options = {"model": "unet", "set": (*TINY, "schedule.kind=constant", "training.checkpoint_minutes=60")}
    run = train(discs, out=tmp_path / "run", epochs=1, **options)
    once = run.summary["seconds"]
    assert once == json.loads((run.folder / "summary.json").read_text())["seconds"]
    # four batches and their end are waited for; beside steps lie five turns, beside validation none
    assert (tuple(once), once["data"], once["steps"], once["validation"]) == (PHASES, 5, 6, 1)
    assert "note: data 5" in (run.folder / "log.txt").read_text()
    twice = train(discs, out=run.folder, epochs=2, resume=True).summary["seconds"]
    assert (twice["data"], twice["steps"], twice["validation"]) == (10, 12, 2)
    assert "seconds" not in rows_of(run.folder)[0]  # the same file whatever the clock says


class Killed(Exception):
    pass


@pytest.mark.slow
def test_an_epoch_that_was_stopped_in_its_middle_adds_up(discs, tmp_path, monkeypatch):
    monkeypatch.setattr(room, "Stopwatch", Ticks)
    options = {"model": "unet", "epochs": 2, "set": (*TINY, "schedule.kind=constant")}
    whole, step, calls = train(discs, out=tmp_path / "whole", **options), room.Loop._step, []

    def killed(*arguments):
        calls.append(None)
        if len(calls) == 7:  # the third step of the second epoch; two are saved
            raise Killed
        return step(*arguments)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(room.Loop, "_step", killed)
        train(discs, out=tmp_path / "part", **options)
    part = train(discs, out=tmp_path / "part", resume=True)
    assert part.summary["seconds"]["data"] == whole.summary["seconds"]["data"] == 10
    assert part.summary["seconds"]["validation"] == whole.summary["seconds"]["validation"]


def test_a_checkpoint_without_seconds_goes_on(discs, tmp_path):
    """As those of earlier versions."""
    train(discs, model="unet", out=tmp_path / "run", epochs=1, set=TINY)
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        saved = read_tensors(path)
        loop = {k: v for k, v in saved.state["loop"].items() if k not in ("seconds", "epoch_seconds")}
        write_tensors(path, saved._replace(state={**saved.state, "loop": loop}))
    assert set(train(discs, out=tmp_path / "run", epochs=2, resume=True).summary["seconds"]) == set(PHASES)
