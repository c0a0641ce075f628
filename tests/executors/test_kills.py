"""Commands, jobs, workers and nodes killed at random moments: the same outcome, whichever executor."""

import os
import random
import signal
import time
from contextlib import suppress

import pytest

from tests.executors.conftest import NODE
from tests.executors.handed import driver_of, outcome
from tests.share import ALL

KILLS = 20 if ALL else 5
STEPS = 12 * KILLS  # long enough for so many


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.filterwarnings("ignore")  # what Ray warns of is not ours
@pytest.mark.parametrize("on", ["local", "slurm", "ray"])
def test_random_kills_cost_time_and_nothing_else(slurm, tmp_path, monkeypatch, request, on):
    cluster = request.getfixturevalue("cluster") if on == "ray" else None
    monkeypatch.setenv("COUNTING_STEP_S", "0.1")
    kinds = ["command", "job", "what began it", *(["node"] if cluster else [])]
    chance, driver, killed, node = random.Random(on), None, dict.fromkeys(kinds, 0), None
    whole = {f"job{n}": f"{STEPS * (STEPS - 1) // 2} 1" for n in range(4)}
    place = f"ray:{cluster.address}" if cluster else on
    end = time.monotonic() + 60 * KILLS
    while sum(killed.values()) < KILLS and outcome(tmp_path) != whole and time.monotonic() < end:
        if driver is None or driver.poll() is not None:
            driver = driver_of(place, tmp_path, 4, STEPS)
            time.sleep(1.0)
        time.sleep(chance.uniform(0.2, 2.0))
        what = chance.choice(kinds)
        with suppress(ProcessLookupError, IndexError):
            if what == "command":
                driver.kill()
                driver.wait(30)
            elif what == "node":
                if node is not None:  # a third one, that comes and goes
                    cluster.remove_node(node, allow_graceful=False)
                node = None if node is not None else cluster.add_node(**NODE)
                if node is not None:
                    continue
            else:
                alive = [p for p in sorted(tmp_path.glob("job*/pid")) if not (p.parent / "done").exists()]
                own, began = map(int, chance.choice(alive).read_text().split())
                if began in (1, os.getpid()):
                    continue
                os.kill(own if what == "job" else began, signal.SIGKILL)
            killed[what] += 1
    assert sum(killed.values()) >= (KILLS if ALL else 3), killed
    for _ in range(4):
        if driver.poll() is None:
            driver.wait(300)
        if outcome(tmp_path) == whole:
            break
        driver = driver_of(place, tmp_path, 4, STEPS)
    assert outcome(tmp_path) == whole, (tmp_path / "driver.txt").read_text()
    driver.wait(120)
