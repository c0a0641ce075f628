"""Jobs side by side on one machine: by what they need, and on which of its GPUs."""

import itertools

import pytest

from ulna.errors import UsageError
from ulna.executors import places
from ulna.executors.job import Need
from ulna.executors.places import Places, need_of, read_jobs
from ulna.planning.memory import GPU_SHARE, MemoryEstimate
from ulna.system.device import Device

NEEDS = {"small": Need(1, 2), "large": Need(3, 5), "wide": Need(6, 1)}
ROOM = Need(7, 10)


def test_jobs_are_a_number_or_auto():
    assert (read_jobs("auto"), read_jobs("3"), read_jobs(2)) == (None, 3, 2)
    for wrong in ("0", "-1", "many", "1.5", 0, ""):
        with pytest.raises(UsageError, match=f"--jobs {wrong}: a number of jobs at once, at least one, or auto"):
            read_jobs(wrong)


@pytest.mark.parametrize("most", [1, 2, 3, 5])
def test_what_fits_is_what_a_sum_says(most):
    """Against sums over every set of trainings of up to four."""
    made = Places(most, ROOM)
    for count in range(5):
        for running in itertools.combinations_with_replacement(NEEDS, count):
            for network in NEEDS:
                machine = sum(NEEDS[name].machine for name in (*running, network))
                gpu = sum(NEEDS[name].gpu for name in (*running, network))
                fits = not running or (count < most and machine <= ROOM.machine and gpu <= ROOM.gpu)
                beside = [(NEEDS[name], 0) for name in running]
                assert made.gpu_for(NEEDS[network], beside) == (0 if fits else None)


@pytest.mark.parametrize("most", [1, 2, 4, 9])
def test_threads_are_shared_among_as_many_as_can_ever_run(most):
    made = Places(most, ROOM)
    for networks in (["small"] * 6, ["small", "large", "wide"], ["wide"] * 3, ["large"], ["small"]):
        sets = [
            one
            for count in range(1, len(networks) + 1)
            for one in itertools.combinations(networks, count)
            if sum(NEEDS[name].machine for name in one) <= ROOM.machine
            and sum(NEEDS[name].gpu for name in one) <= ROOM.gpu
        ]
        at_once = made.at_once([NEEDS[name] for name in networks])
        assert at_once >= min(
            most, max((len(one) for one in sets), default=1)
        )  # never fewer: cores would be oversubscribed
        assert at_once <= min(most, len(networks))


def test_places_of_a_machine_and_of_a_gpu(monkeypatch):
    monkeypatch.setattr(places, "machine_memory", lambda: 100)
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    monkeypatch.setattr(places, "gpus_here", lambda: 4)
    cpu, gpu = Device("cpu"), Device("cuda", 80.0)
    assert Places.of(cpu, None) == Places(16, Need(100, 0))
    assert Places.of(cpu, None, threads=3).most == 5 and Places.of(cpu, None, threads=40).most == 1
    assert Places.of(gpu, None) == Places(8, Need(100, GPU_SHARE * 80), 4)
    assert Places.of(cpu, 3).most == 3 and Places.of(cpu, 99).most == 16
    taken = MemoryEstimate({"maps of a step": 5.0, "CUDA": 1.0, "cases kept": 2.0, "program": 4.0})
    assert need_of(taken, cpu) == Need(12.0)
    assert need_of(taken, gpu) == Need(6.0, 8.0), "cases may lie on both"


def test_every_gpu_has_its_own_room_and_gets_the_next_job_where_the_fewest_are():
    """Four GPUs of 10: jobs of 5 go to one after the other, then a second one to each, and no ninth."""
    made, running = Places(99, Need(1000, 10), gpus=4), []
    for gpu in (0, 1, 2, 3, 0, 1, 2, 3):
        assert made.gpu_for(Need(1, 5), running) == gpu
        running.append((Need(1, 5), gpu))
    assert made.gpu_for(Need(1, 5), running) is None
    assert made.gpu_for(Need(1, 5), [one for n, one in enumerate(running) if n != 6]) == 2
    assert made.at_once([Need(1, 5)] * 99) == 8
    # what no GPU holds gets an empty one, and the memory of the machine is shared by all
    assert made.gpu_for(Need(1, 11), running[:3]) == 3 and made.at_once([Need(1, 11)] * 9) == 4
    assert Places(99, Need(3, 10), gpus=4).gpu_for(Need(1, 1), running[:3]) is None
