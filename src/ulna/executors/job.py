"""A job: a process that does one thing of many, what it needs, and how to see that it is done."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ulna.errors import counted

# Variables of the command that its jobs on other machines get by name; no other one, for one may be a secret
PASSED = (
    "PYTHONPATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "ULNA_GRAPH", "ULNA_NATIVE", "ULNA_NATIVE_ARCH", "ULNA_NNUNET",
    "ULNA_CACHE", "ULNA_CACHE_DIR", "ULNA_CACHE_GB", "ULNA_TRITON", "MLFLOW_TRACKING_URI",
)  # fmt: skip


class Need(NamedTuple):
    """Bytes that a job takes at its peak: of the machine's memory, and of the GPU's."""

    machine: float
    gpu: float = 0.0


NOTHING = Need(0.0)


def _never() -> bool:
    return False


def _nothing() -> None:
    return None


def _silent() -> str:
    return ""


def _waits(times: int) -> bool:
    return False


@dataclass(frozen=True, eq=False)
class Job:
    """One of many independent things to do.

    The contract of whoever makes one: its process may be begun anywhere that sees `folder` and whatever else `argv` names, in
    the working folder of the command that hands it out; it may be killed at any moment and begun again, then it goes on from
    its own checkpoint; it is done when its files say so, whatever its exit code; it holds the lock of what it writes
    (`working`, or `locked(..., wait=True)`), so that of two processes of one job the second one waits for the first; and it
    ends, after a checkpoint, at SIGTERM and when the process that began it is gone (`follow_parent`).

    Args:
        name: in words; no two jobs that are handed out together share one.
        argv: of its process, such as `python_module("ulna.study.worker", data, recipe, run)`.
        folder: where it writes.
        output: the file that takes its standard output and error; a last line `error: WHY` says why it failed.
        done: whether its files say that it is finished; asked again and again.
        begun: whether it goes on where it was stopped.
        prepare: writes what its process reads; called once in every call, before it is handed out.
        result: what is told of it when it is done, such as its Dice.
        goes_on: whether its process, cut off so many times in this call while others ran beside it, has more to do than what
            it was at. Then it is begun again at once, with `BESIDE` in its environment: it leaves what it was at, and ends
            without being done, so that this is tried when it is alone.
        environment: variables of its process beside those of the command.
        need: memory at its peak; `unknown_need` where nobody knows: it runs alone.
        threads: that it computes with: OMP_NUM_THREADS of its process.
        seconds: that it takes, as far as anybody knows.
        standing: the file in which its process notes how far it is.
    """

    name: str
    argv: Sequence[str]
    folder: Path
    output: Path
    done: Callable[[], bool]
    begun: Callable[[], bool] = _never
    prepare: Callable[[], None] = _nothing
    result: Callable[[], str] = _silent
    goes_on: Callable[[int], bool] = _waits
    environment: Mapping[str, str] = field(default_factory=dict)
    need: Need = NOTHING
    threads: int = 1
    seconds: float | None = None
    standing: Path | None = None

    @property
    def variables(self) -> dict[str, str]:
        """What its process finds in its environment beside what the command has there."""
        return {"OMP_NUM_THREADS": str(self.threads), **self.environment}


def passed_variables(*, written: bool = False) -> dict[str, str]:
    """What a job on another machine finds in its environment as the command has it.

    Args:
        written: into a file: without an address that has a user or a password in it.
    """
    found = {name: os.environ[name] for name in PASSED if name in os.environ}
    return {name: value for name, value in found.items() if not (written and _names_user(value))}


def _names_user(value: str) -> bool:
    _, scheme, rest = value.partition("://")
    return bool(scheme) and "@" in rest.partition("/")[0]


class Ended(NamedTuple):
    """That a job runs no more.

    Args:
        why: it failed, where its files do not say that it is done.
        again: why it is handed out once more, in the words of a log; empty where it is not.
    """

    why: str = ""
    again: str = ""


def told_need(job: Job) -> str:
    """What a job needs, in words.

    Example:
        >>> told_need(Job("a", [], Path(), Path(), bool, need=Need(2e9, 5e9), threads=2, seconds=7200))
        '2 threads, 2.0 GB of memory, 5.0 GB of GPU memory, 2.0 h at most'
    """
    parts = [counted(job.threads, "thread")]
    parts += [f"{job.need.machine / 1e9:.1f} GB of memory" if math.isfinite(job.need.machine) else "memory unknown"]
    parts += [f"{job.need.gpu / 1e9:.1f} GB of GPU memory"] if 0 < job.need.gpu < math.inf else []
    parts += [f"{job.seconds / 3600:.1f} h at most"] if job.seconds is not None else []
    return ", ".join(parts)
