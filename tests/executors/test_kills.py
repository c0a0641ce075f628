"""Commands, jobs and workers killed at random moments: the same outcome, whichever executor."""

import os
import random
import signal
import time
from contextlib import suppress

import pytest

from tests.executors.handed import driver_of, outcome
from tests.share import ALL

KILLS = 20 if ALL else 5
STEPS = 60


@pytest.mark.slow
@pytest.mark.parametrize("on", ["local", "slurm", "ray"])
def test_random_kills_cost_time_and_nothing_else(slurm, tmp_path, monkeypatch, on):
    if on == "ray":
        pytest.importorskip("ray", reason="the extra ray is not installed: too large for every run of the tests")
    monkeypatch.setenv("COUNTING_STEP_S", "0.1")
    chance, driver, killed = random.Random(on), None, {"command": 0, "job": 0, "what began it": 0}
    whole = {f"job{n}": f"{STEPS * (STEPS - 1) // 2} 1" for n in range(4)}
    end = time.monotonic() + 280
    while sum(killed.values()) < KILLS and outcome(tmp_path) != whole and time.monotonic() < end:
        if driver is None or driver.poll() is not None:
            driver = driver_of(on, tmp_path, 4, STEPS)
            time.sleep(1.0)
        time.sleep(chance.uniform(0.2, 2.0))
        what = chance.choice(list(killed))
        with suppress(ProcessLookupError, IndexError):
            if what == "command":
                driver.kill()
                driver.wait(30)
            else:
                alive = [p for p in sorted(tmp_path.glob("job*/pid")) if not (p.parent / "done").exists()]
                own, began = map(int, chance.choice(alive).read_text().split())
                if began in (1, os.getpid()):
                    continue
                os.kill(own if what == "job" else began, signal.SIGKILL)
            killed[what] += 1
    assert sum(killed.values()) >= 3, killed
    for _ in range(4):
        if driver.poll() is None:
            driver.wait(120)
        if outcome(tmp_path) == whole:
            break
        driver = driver_of(on, tmp_path, 4, STEPS)
    assert outcome(tmp_path) == whole, (tmp_path / "driver.txt").read_text()
    driver.wait(120)
