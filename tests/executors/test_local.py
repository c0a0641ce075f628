"""Processes of this machine: placed by what they need, and tried again alone where others took their memory."""

import itertools
import logging
import os
import sys
from contextlib import nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from ulna.executors import handing, local
from ulna.executors.handing import hand_out
from ulna.executors.job import Job, Need
from ulna.executors.local import Local
from ulna.executors.places import Places
from ulna.executors.working import BESIDE
from ulna.system.progress import Standing
from ulna.system.progress_file import ProgressFile

NEEDS = {"small": Need(1, 2), "large": Need(3, 5), "wide": Need(6, 1)}
ROOM = Need(7, 10)
ONE = Places()


@dataclass(eq=False)
class Training:
    """What takes some looks, and then is done or fails."""

    network: str
    looks: int
    fails: list[tuple[int, str]] = field(default_factory=list)  # code and words of one attempt after the other
    number: int = 0
    done: bool = False
    cuts: int = 0  # after which it goes on at once

    @property
    def name(self):
        return f"{self.network} {self.number}"


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Runs trainings by looks at them; notes which ran beside each other."""
    beside, running = [], []
    noted = SimpleNamespace(beside=beside, began=lambda one: None, leaves=[])

    class Process:
        def __init__(self, one):
            self.one, self.left = one, one.looks
            running.append(one)

        def poll(self):
            self.left -= 1
            if self.left > 0:
                return None
            running.remove(self.one)
            code, self.one.said = self.one.fails.pop(0) if self.one.fails else (0, "")
            self.one.done = code == 0 and not self.one.said
            return code

    def run(trainings, places=ONE, **flags):
        of = {one.name: one for one in trainings}

        def begin(job, gpu, leaves):
            noted.leaves += [job.name] * leaves
            process = Process(of[job.name])
            beside.append(sorted(one.name for one in running))
            noted.began(job)
            return process

        monkeypatch.setattr(local, "_begin", begin)
        monkeypatch.setattr(local, "_why", lambda job, code: of[job.name].said)
        jobs = [
            Job(
                one.name, [], tmp_path, tmp_path / "said", done=lambda one=one: one.done, need=NEEDS[one.network],
                standing=tmp_path / f"{one.name}.now", result=lambda: "Dice 0.5000 on val",
                goes_on=lambda times, one=one: times <= one.cuts,
            )
            for one in trainings
        ]  # fmt: skip
        return hand_out(jobs, Local(places), resume_command="", **flags)

    clock = SimpleNamespace(sleep=lambda s: None, perf_counter=lambda: 0.0, monotonic=lambda: 0.0)
    monkeypatch.setattr(handing, "time", clock)
    noted.run = run
    return noted


def test_a_small_training_overtakes_a_large_one_that_does_not_fit(machine):
    some = [Training("large", 4), Training("wide", 2), Training("small", 2), Training("small", 2, number=1)]
    assert machine.run(some, Places(9, ROOM)) == {}
    assert machine.beside == [
        ["large 0"],
        ["large 0", "small 0"],
        ["large 0", "small 0", "small 1"],
        ["wide 0"],
    ]


def test_what_needs_more_than_there_is_room_runs_alone(machine):
    some = [Training("wide", 2, number=n) for n in range(2)]
    assert machine.run(some, Places(2, Need(1, 1))) == {}
    assert machine.beside == [["wide 0"], ["wide 1"]]


@pytest.mark.parametrize(
    "fault", [(-9, "killed from outside: most likely the memory was full"), (1, "OutOfMemoryError: CUDA out of memory")]
)
def test_a_training_that_others_cut_off_goes_on_alone_once(machine, fault):
    cut = Training("small", 1, [fault])
    some = [cut, Training("small", 3, number=1), Training("small", 9, number=2)]
    assert machine.run(some, Places(2, ROOM)) == {}
    assert cut.done and machine.beside[-1] == ["small 0"], "after all others"
    again = Training("small", 1, [fault, fault])
    some = [again, Training("small", 3, number=1)]
    assert machine.run(some, Places(2, ROOM)) == {"small 0": fault[1]}


def test_what_is_cut_off_and_has_more_to_do_goes_on_at_once_and_ends_what_it_was_at_alone(machine):
    killed, stopped = (-9, "killed"), (143, "stopped")
    cut = Training("small", 2, [killed, stopped, (0, "it left something")], cuts=2)
    assert machine.run([cut, Training("small", 9, number=1)], Places(2, ROOM)) == {}
    both = ["small 0", "small 1"]
    assert cut.done and machine.beside == [["small 0"], both, both, both, ["small 0"]]
    assert machine.leaves == ["small 0"] * 2
    often = Training("small", 2, [killed, killed], cuts=1)
    machine.beside.clear()
    assert machine.run([often, Training("small", 9, number=1)], Places(2, ROOM)) == {}
    assert machine.beside == [["small 0"], both, both, ["small 0"]], "memory may be short"
    together = [Training("small", 2, [killed], number=n, cuts=9) for n in range(2)]
    machine.beside.clear()
    assert machine.run(together, Places(2, ROOM)) == {}
    assert machine.beside == [["small 0"], both, ["small 0"], both]
    machine.beside.clear(), machine.leaves.clear()
    assert machine.run([Training("small", 2), Training("small", 4, [killed], number=1, cuts=9)], Places(2, ROOM)) == {}
    assert machine.beside == [["small 0"], both, ["small 1"]] and not machine.leaves, "it is alone"


@pytest.mark.parametrize("most", [1, 2])
def test_other_failures_are_told_and_not_tried_again(machine, most):
    wrong = Training("small", 1, [(2, "the loss became nan")])
    some = [wrong, Training("small", 1, number=1)]
    told = machine.run(some, Places(most, ROOM))
    assert told == {"small 0": "the loss became nan"} and some[1].done
    alone = Training("small", 1, [(-9, "killed")])
    assert machine.run([alone], Places(most, ROOM)) == {"small 0": "killed"}


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

    monkeypatch.setattr(handing, "board", lambda what, total: nullcontext(Seen()))
    epoch = Standing("epoch 3", 4, 20, "at most 5 min left")
    machine.began = lambda job: ProgressFile(job.standing)(epoch)
    assert machine.run([Training("small", looks=2)]) == {}
    assert shown == [0, ("small 0", Standing("starting")), ("small 0", epoch), "small 0", 1]
    assert not list(tmp_path.iterdir())


def test_what_is_to_go_is_told_while_there_is_something(machine, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("ulna"), "propagate", True)
    caplog.set_level(logging.INFO, logger="ulna")
    clock = itertools.count(0, 20.0)
    monkeypatch.setattr(handing.time, "perf_counter", lambda: next(clock))
    assert machine.run([Training("small", 2), Training("wide", 2)]) == {}
    first, last = (line for line in caplog.messages if "Dice" in line)
    assert first.endswith("0.5000 on val; about 20 s to go") and last.endswith("0.5000 on val")


def test_each_process_gets_a_gpu_of_its_own_by_the_name_that_this_one_has_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "gpu_names", lambda: ["3", "GPU-5"])
    script = "import sys; from os import environ as e; out = open(sys.argv[1], 'w')\n"
    script += "print(e['CUDA_VISIBLE_DEVICES'], e['OMP_NUM_THREADS'], file=out)"
    files = [tmp_path / name for name in "abc"]
    jobs = [
        Job(one.name, [sys.executable, "-c", script, str(one)], tmp_path, tmp_path / f"{one.name}.txt",
            done=one.exists, need=Need(1, 6), threads=3)
        for one in files
    ]  # fmt: skip
    assert hand_out(jobs, Local(Places(9, ROOM, gpus=2)), resume_command="") == {}
    assert [one.read_text().split() for one in files[:2]] == [["3", "3"], ["GPU-5", "3"]]
    assert files[2].read_text().split()[0] in ("3", "GPU-5")


def test_the_reason_of_a_failure_is_what_the_process_said_last(tmp_path):
    """Its error, whatever came behind; else its code and its last line; a process that was killed said nothing of it."""

    def ends(name, script):
        job = Job(name, [sys.executable, "-c", script], tmp_path, tmp_path / f"{name}.txt", done=lambda: False)
        return hand_out([job], Local(Places()), resume_command="")[name]

    assert ends("a", "import sys; print('error: no  image\\nin it'); sys.exit(2)") == "no image in it"
    assert ends("b", "print('first'); print('last'); raise SystemExit(7)") == "exit code 7: last"
    assert ends("c", "raise SystemExit(1)") == "exit code 1: it said nothing"
    assert ends("d", "import os; print('at work', flush=True); os.kill(os.getpid(), 9)").startswith(
        "killed from outside"
    )
    assert ends("e", "pass") == "exit code 0: it said nothing"


def test_a_process_knows_which_one_began_it_and_leaves_nothing_unasked(tmp_path, monkeypatch):
    monkeypatch.setenv(BESIDE, "1")  # of the process that begins it
    script = "import sys; from os import environ as e, getppid; file = open(sys.argv[1], 'w')\n"
    script += "print(e['ULNA_PARENT'], getppid(), e.get('ULNA_BESIDE'), file=file)"
    made = tmp_path / "made"
    job = Job("a", [sys.executable, "-c", script, str(made)], tmp_path, tmp_path / "a.txt", done=made.exists)
    assert hand_out([job], Local(Places()), resume_command="") == {}
    assert made.read_text().split() == [str(os.getpid())] * 2 + ["None"]
