"""How many threads a run takes: those wanted, else no more than there are idle processors."""

import os

import pytest
import torch

from ulna.errors import UsageError
from ulna.system import cores, threads
from ulna.system.cores import free_cores, granted_cores
from ulna.system.threads import check_threads, choose_threads, computing_with


@pytest.fixture
def processors(tmp_path, monkeypatch):
    """A machine whose processors are busy for a share of the time that they are watched."""
    monkeypatch.setattr(cores, "QUOTA", tmp_path / "cpu.max")

    def made(busy, others=()):
        file = tmp_path / "stat"
        monkeypatch.setattr(cores, "STAT", file)
        monkeypatch.setattr(cores, "usable_cores", lambda: set(range(len(busy))))
        every = [*busy, *others]

        def write(ticks):
            lines = [
                f"cpu{n} {int(share * ticks)} 0 0 {ticks - int(share * ticks)} 0 0 0 0 0 0"
                for n, share in enumerate(every)
            ]
            file.write_text("\n".join(["cpu 1 2 3 4 5 6 7 8 9 10", *lines, "intr 5 5"]))

        write(1000)
        return free_cores(wait=lambda seconds: write(2000))

    return made


@pytest.mark.parametrize(
    ("busy", "free"),
    [
        ((0, 0), 2),
        ((1, 0), 1),
        ((1, 1), 1),
        ((0.3, 0.1), 2),
        ((0.5, 0.6, 0.0, 0.2), 3),
        ((1,), 1),
        ((0.9, 0.9, 0.9), 1),
    ],
)
def test_busy_processors_are_left_to_what_runs_there(processors, busy, free):
    assert processors(busy) == free


def test_only_processors_count_that_this_process_may_use(processors):
    assert processors((1, 0), others=(0, 0, 0)) == 1


def test_a_container_has_no_more_than_its_share(processors, tmp_path):
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert processors((0, 0, 0, 0)) == 2
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert processors((0, 0, 0, 0)) == 4


def test_where_the_system_does_not_tell_the_load_does(monkeypatch, tmp_path):
    monkeypatch.setattr(cores, "STAT", tmp_path / "absent")
    monkeypatch.setattr(cores, "QUOTA", tmp_path / "absent")
    monkeypatch.setattr(cores, "usable_cores", lambda: set(range(8)))
    monkeypatch.setattr(os, "getloadavg", lambda: (2.9, 0.0, 0.0))
    assert free_cores(wait=lambda s: None) == 5
    monkeypatch.setattr(cores, "QUOTA", tmp_path / "cpu.max")
    cores.QUOTA.write_text("200000 100000\n")
    assert free_cores(wait=lambda s: None) == 2
    monkeypatch.delattr(os, "getloadavg")  # as on Windows
    cores.QUOTA.write_text("max 100000\n")
    assert free_cores(wait=lambda s: None) == 8


def test_no_more_is_granted_than_a_container_and_the_environment_allow(monkeypatch, tmp_path):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(cores, "QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(cores, "usable_cores", lambda: set(range(8)))
    assert granted_cores() == 8
    cores.QUOTA.write_text("350000 100000\n")
    assert granted_cores() == 4
    for said, granted in (("2", 2), ("64", 4), ("0", 1), ("many", 4)):
        monkeypatch.setenv("OMP_NUM_THREADS", said)
        assert granted_cores() == granted


def test_threads_are_those_wanted_else_those_named_else_what_is_free(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(threads, "free_cores", lambda: 3)
    assert choose_threads(7) == 7
    assert choose_threads() == 3
    monkeypatch.setattr(threads, "free_cores", lambda: 16)
    assert choose_threads() == 4, "torch was told to take no more"
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    monkeypatch.setattr(threads, "free_cores", lambda: 1)
    assert choose_threads() == 4


def test_a_number_that_cannot_be_is_refused():
    for wrong in (0, -2, 5000):
        with pytest.raises(UsageError, match=f"--threads {wrong}: a number of threads, from 1 to 4096"):
            check_threads(wrong)


def test_afterwards_as_many_threads_compute_as_before():
    before = torch.get_num_threads()
    with pytest.raises(KeyError), computing_with(before + 1):
        assert torch.get_num_threads() == before + 1
        raise KeyError
    assert torch.get_num_threads() == before
