"""Several things timed in turn, by a clock that they alone move."""

from types import SimpleNamespace

import pytest

from ulna.study import timing
from ulna.study.timing import LEAST, time_in_turn


@pytest.fixture
def clock(monkeypatch):
    now = {"wall": 0.0, "cpu": 0.0}
    timed = SimpleNamespace(perf_counter=lambda: now["wall"], process_time=lambda: now["cpu"])
    monkeypatch.setattr(timing, "time", timed)
    return now


def contender(clock, seconds):
    def run(given):
        clock["wall"] += seconds
        clock["cpu"] += 2 * seconds
        return given

    return run


def test_neither_warm_up_nor_what_comes_before_a_run_counts(clock):
    def subject(number, name):
        clock["wall"] += 100
        return number, name

    found = time_in_turn({"a": contender(clock, 1), "b": contender(clock, 3)}, subject, rounds=4, warm_up=2)
    assert found["a"].wall_s == [1] * 4 and found["b"].wall_s == [3] * 4
    assert found["a"].cpu_s == [2] * 4
    assert found["b"].wall_ms == (3000, 3000) and found["b"].cpu_ms == (6000, 6000)


def test_every_one_is_called_with_its_own_subject_and_each_round_begins_with_another():
    seen = []
    names = "abc"
    time_in_turn(dict.fromkeys(names, seen.append), lambda number, name: (number, name), rounds=4)
    assert seen == [(n, name) for n, order in enumerate(("abc", "bca", "cab", "abc")) for name in order]


@pytest.mark.parametrize(("longest", "rounds"), [(0, LEAST), (9, 5), (1e9, 20)])
def test_no_round_begins_after_the_time_allowed_but_for_the_first_few(clock, longest, rounds):
    found = time_in_turn({"a": contender(clock, 2)}, lambda *_: None, rounds=20, longest_s=longest)
    assert len(found["a"].wall_s) == rounds
