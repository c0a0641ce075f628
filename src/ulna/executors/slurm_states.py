"""What SLURM says of jobs: asked by the names of their arrays, of squeue what waits and runs, of sacct what has ended."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ulna.errors import UsageError, printable

log = logging.getLogger(__name__)

# Before which jobs of a study are looked for in the accounts
SINCE = "now-60days"
ANSWERS_S = 120.0  # a command of SLURM has to answer


class Place(NamedTuple):
    """A job as SLURM knows it: the name of its array, and its number in that."""

    array: str
    number: int


class Known(NamedTuple):
    """What SLURM says of a job.

    Args:
        id: such as 1234_5.
        state: such as RUNNING or TIMEOUT.
        why: it waits, or its exit code.
    """

    id: str
    state: str
    why: str = ""


def check_installed() -> None:
    """Refuse a machine without SLURM's commands.

    Raises:
        UsageError: with what to do.
    """
    absent = [name for name in ("sbatch", "squeue") if shutil.which(name) is None]
    if absent:
        raise UsageError(
            f"--on slurm: there is no {' and no '.join(absent)} here; run this on a machine that submits to SLURM, or see "
            "what would be submitted with --dry-run"
        )


def submit(script: Path) -> str:
    """Submit a script; returns the number of its array.

    Raises:
        UsageError: if SLURM refuses it, with its words.
    """
    done = _called(["sbatch", "--parsable", str(script)])
    number = done.stdout.strip().partition(";")[0]
    if done.returncode or not number:
        told = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise UsageError(f"{printable(script)}: sbatch refused it ({told}); see what it takes with --slurm KEY=VALUE")
    return number


def waiting_or_running(arrays: Sequence[str]) -> dict[Place, Known] | None:
    """The jobs of these arrays that have not ended; None where SLURM does not answer."""
    done = _called(["squeue", "-h", "-r", "-n", ",".join(arrays), "-o", "%j|%K|%i|%T|%r"])
    if done.returncode:
        log.debug("squeue: %s", done.stderr)
        return None
    found = {}
    for line in done.stdout.splitlines():
        array, number, name, state, why = (*line.split("|", 4), "", "", "", "")[:5]
        if number.isdecimal():
            found[Place(array, int(number))] = Known(name, state, why)
    return found


def ended(arrays: Sequence[str]) -> dict[Place, Known]:
    """The jobs of these arrays in the accounts; none where SLURM keeps none."""
    if shutil.which("sacct") is None:
        return {}
    words = ["-n", "-X", "-P", "-S", SINCE, f"--name={','.join(arrays)}", "-o", "JobName,JobID,State,ExitCode"]
    done = _called(["sacct", *words])
    found = {}
    for line in done.stdout.splitlines() if not done.returncode else ():
        array, name, state, code = (*line.split("|", 3), "", "", "")[:4]
        number = name.rpartition("_")[2]
        if number.isdecimal() and state:
            found[Place(array, int(number))] = Known(name, state.split()[0], code)
    return found


def _called(words: list[str]) -> subprocess.CompletedProcess[str]:
    # inside a job of SLURM's its variables would bind what is submitted to that job's sizes
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_") or k == "SLURM_CONF"}
    try:
        return subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", env=environment,
            timeout=ANSWERS_S, start_new_session=True, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(words, 1, "", str(error))
