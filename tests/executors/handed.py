"""Counting jobs, and a command that hands them out: `python -m tests.executors.handed ON FOLDER JOBS STEPS`."""

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.places import ROOT
from ulna.errors import Interrupted
from ulna.executors import handing
from ulna.executors.handing import hand_out
from ulna.executors.job import Job, Need
from ulna.executors.slurm import Slurm

COUNTING = Path(__file__).with_name("counting.py")


def counting_jobs(folder, jobs, steps=5, **fields):
    """So many of them, each with a folder of its own."""
    made, pace = [], {name: value for name, value in os.environ.items() if name == "COUNTING_STEP_S"}
    for n in range(jobs):
        own = folder / f"job{n}"
        argv = [sys.executable, "-ISE", str(COUNTING), str(own), str(steps)]
        made.append(
            Job(
                f"job {n}", argv, own, folder / f"job{n}.txt", done=(own / "done").exists, begun=(own / "steps").exists,
                **{"need": Need(1e8), "threads": 1, "environment": pace, **fields},
            )
        )  # fmt: skip
    return made


def outcome(folder):
    """What the jobs have written: the same whatever happened meanwhile."""
    return {path.parent.name: path.read_text() for path in sorted(folder.glob("job*/done"))}


def begun(folder):
    """How often each job was begun."""
    return {path.parent.name: len(path.read_text()) for path in sorted(folder.glob("job*/begun"))}


def waiting(folder, jobs):
    """Whether so many of the jobs have come to where they wait."""
    return [p.read_text().split()[0] for p in folder.glob("job*/steps")].count("3") >= jobs


def until(true, what, seconds=60):
    """Wait for something that has to come."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def driver_of(on, folder, jobs, steps):
    """The command, in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    words = [sys.executable, "-m", "tests.executors.handed", on, str(folder), str(jobs), str(steps)]
    with (folder / "driver.txt").open("ab") as told:
        return subprocess.Popen(words, env=environment, cwd=folder, stdout=told, stderr=told)


def quick():
    """Look often, and do not wait for the files of a machine far away."""
    Slurm.look_s, handing.Late.patience_s = 0.2, 1.0


def make(on, folder):
    """An executor by its name."""
    if on == "local":
        from ulna.executors.local import Local  # with torch
        from ulna.executors.places import Places

        return Local(Places(2))
    if on == "slurm":
        return Slurm(folder, {}, None)
    from ulna.executors.ray import OnRay

    return OnRay(on.partition(":")[2] or None, folder, None)


def main(on, folder, jobs, steps):
    quick()
    try:
        failed = hand_out(counting_jobs(folder, jobs, steps), make(on, folder), resume_command="again")
    except Interrupted as stopped:
        return 128 + stopped.signal
    return 3 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:])))
