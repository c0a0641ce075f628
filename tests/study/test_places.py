"""Trainings side by side: placed by what they need, and tried again alone where others took their memory."""

import itertools
import logging
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from ulna.errors import UsageError
from ulna.planning.memory import GPU_SHARE, MemoryEstimate
from ulna.study import jobs, places
from ulna.study.jobs import run_jobs
from ulna.study.places import Need, Places, read_jobs
from ulna.system.device import Device
from ulna.system.progress import Standing
from ulna.system.telling import Teller

NEEDS = {"small": Need(1, 2), "large": Need(3, 5), "wide": Need(6, 1)}
ROOM = Need(7, 10)


def test_jobs_are_a_number_or_auto():
    assert (read_jobs("auto"), read_jobs("3"), read_jobs(2)) == (None, 3, 2)
    for wrong in ("0", "-1", "many", "1.5", 0, ""):
        with pytest.raises(UsageError, match=f"--jobs {wrong}: a number of trainings at once, at least one, or auto"):
            read_jobs(wrong)


@pytest.mark.parametrize("most", [1, 2, 3, 5])
def test_what_fits_is_what_a_sum_says(most):
    """Against sums over every set of trainings of up to four."""
    made = Places(most, NEEDS, ROOM)
    for count in range(5):
        for running in itertools.combinations_with_replacement(NEEDS, count):
            for network in NEEDS:
                machine = sum(NEEDS[name].machine for name in (*running, network))
                gpu = sum(NEEDS[name].gpu for name in (*running, network))
                fits = not running or (count < most and machine <= ROOM.machine and gpu <= ROOM.gpu)
                assert made.fits(network, running) == fits


@pytest.mark.parametrize("most", [1, 2, 4, 9])
def test_threads_are_shared_among_as_many_as_can_ever_run(most):
    made = Places(most, NEEDS, ROOM)
    for networks in (["small"] * 6, ["small", "large", "wide"], ["wide"] * 3, ["large"], ["small"]):
        sets = [
            one
            for count in range(1, len(networks) + 1)
            for one in itertools.combinations(networks, count)
            if sum(NEEDS[name].machine for name in one) <= ROOM.machine
            and sum(NEEDS[name].gpu for name in one) <= ROOM.gpu
        ]
        at_once = made.at_once(networks)
        assert at_once >= min(
            most, max((len(one) for one in sets), default=1)
        )  # never fewer: cores would be oversubscribed
        assert at_once <= min(most, len(networks))


def test_places_of_a_machine_and_of_a_gpu(monkeypatch):
    monkeypatch.setattr(places, "machine_memory", lambda: 100)
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    cpu, gpu = Device("cpu"), Device("cuda", 80.0)
    assert Places.of(cpu, {}, None) == Places(16, {}, Need(100, 0))
    assert Places.of(gpu, {}, None) == Places(8, {}, Need(100, GPU_SHARE * 80))
    assert Places.of(cpu, {}, 3).most == 3 and Places.of(cpu, {}, 99).most == 16
    taken = MemoryEstimate({"maps of a step": 5.0, "CUDA": 1.0, "cases kept": 2.0, "program": 4.0})
    assert Need.of(taken, cpu) == Need(12.0)
    assert Need.of(taken, gpu) == Need(6.0, 8.0), "cases may lie on both"


@dataclass(eq=False)
class Training:
    """A job that takes some looks, and then is done or fails."""

    network: str
    looks: int
    fails: list[tuple[int, str]] = field(default_factory=list)  # code and words of one attempt after the other
    number: int = 0
    run: Path = Path("run")
    done: bool = False
    begun: bool = False

    @property
    def name(self):
        return f"{self.network} {self.number}"

    def summary(self):
        return {"evaluated_on": "val", "val": {"mean": {"dice": {"mean": 0.5}}}}


@pytest.fixture
def machine(monkeypatch):
    """Runs jobs by looks at them; notes which ran beside each other."""
    beside, running = [], []

    class Process:
        def __init__(self, job):
            self.job, self.left, self.returncode = job, job.looks, 0
            running.append(job)

        def poll(self):
            self.left -= 1
            if self.left > 0:
                return None
            running.remove(self.job)
            self.job.begun = True
            self.returncode, self.said = self.job.fails.pop(0) if self.job.fails else (0, "")
            self.job.done = self.returncode == 0
            self.job.said = self.said
            return self.returncode

    def begin(job, data, at_once):
        process = Process(job)
        beside.append(sorted(one.name for one in running))
        return process

    monkeypatch.setattr(jobs, "_begin", begin)
    monkeypatch.setattr(jobs, "_why", lambda job, code: job.said)
    monkeypatch.setattr(
        jobs, "time", SimpleNamespace(sleep=lambda s: None, perf_counter=lambda: 0.0, monotonic=lambda: 0.0)
    )
    return beside


def test_a_small_training_overtakes_a_large_one_that_does_not_fit(machine, tmp_path):
    some = [Training("large", 4), Training("wide", 2), Training("small", 2), Training("small", 2, number=1)]
    assert run_jobs(some, tmp_path, resume_command="", places=Places(9, NEEDS, ROOM)) == {}
    assert machine == [
        ["large 0"],
        ["large 0", "small 0"],
        ["large 0", "small 0", "small 1"],
        ["wide 0"],
    ]


def test_what_needs_more_than_there_is_room_runs_alone(machine, tmp_path):
    some = [Training("wide", 2, number=n) for n in range(2)]
    assert run_jobs(some, tmp_path, resume_command="", places=Places(2, NEEDS, Need(1, 1))) == {}
    assert machine == [["wide 0"], ["wide 1"]]


@pytest.mark.parametrize(
    "fault", [(-9, "killed from outside: most likely the memory was full"), (1, "OutOfMemoryError: CUDA out of memory")]
)
def test_a_training_that_others_cut_off_goes_on_alone_once(machine, tmp_path, fault):
    cut = Training("small", 1, [fault])
    some = [cut, Training("small", 3, number=1), Training("small", 9, number=2)]
    assert run_jobs(some, tmp_path, resume_command="", places=Places(2, NEEDS, ROOM)) == {}
    assert cut.done and machine[-1] == ["small 0"], "after all others"
    again = Training("small", 1, [fault, fault])
    some = [again, Training("small", 3, number=1)]
    assert run_jobs(some, tmp_path, resume_command="", places=Places(2, NEEDS, ROOM)) == {"small 0": fault[1]}


@pytest.mark.parametrize("most", [1, 2])
def test_other_failures_are_told_and_not_tried_again(machine, tmp_path, most):
    wrong = Training("small", 1, [(2, "the loss became nan")])
    some = [wrong, Training("small", 1, number=1)]
    told = run_jobs(some, tmp_path, resume_command="", places=Places(most, NEEDS, ROOM))
    assert told == {"small 0": "the loss became nan"} and some[1].done
    alone = Training("small", 1, [(-9, "killed")])
    assert run_jobs([alone], tmp_path, resume_command="", places=Places(most, NEEDS, ROOM)) == {"small 0": "killed"}


def test_lines_show_how_far_trainings_have_come(machine, tmp_path, monkeypatch):
    """As their processes leave it beside their run folders; the lines go with them, and so do the files."""
    shown = []

    class Seen:
        seen = True

        def advance(self, steps=1):
            shown.append(steps)

        def show(self, name, standing):
            shown.append((name, standing))

        def drop(self, name):
            shown.append(name)

    monkeypatch.setattr(jobs, "board", lambda what, total: nullcontext(Seen()))
    job = Training("small", looks=2, run=tmp_path / "run")
    begin = jobs._begin

    def begins(job, data, threads):
        Teller(jobs.standing_file(job.run))(Standing("epoch 3", 4, 20, "at most 5 min left"))
        return begin(job, data, threads)

    monkeypatch.setattr(jobs, "_begin", begins)
    assert run_jobs([job], Path("data"), resume_command="") == {}
    epoch = Standing("epoch 3", 4, 20, "at most 5 min left")
    assert shown == [0, ("small 0", Standing("starting")), ("small 0", epoch), "small 0", 1]
    assert not list(tmp_path.iterdir())


def test_what_is_to_go_is_told_while_there_is_something(machine, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("ulna"), "propagate", True)
    caplog.set_level(logging.INFO, logger="ulna")
    clock = itertools.count(0, 20.0)
    monkeypatch.setattr(jobs.time, "perf_counter", lambda: next(clock))
    assert run_jobs([Training("small", 2), Training("wide", 2)], tmp_path, resume_command="") == {}
    first, last = (line for line in caplog.messages if "Dice" in line)
    assert first.endswith("0.5000 on val; about 20 s to go") and last.endswith("0.5000 on val")
