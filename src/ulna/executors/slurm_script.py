"""What SLURM is given: a script that holds the jobs of one array, readable as it stands, and submitted as it stands."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ulna.errors import UsageError, printable
from ulna.executors.job import Job, Need, passed_variables

# Set by ulna: what it finds its jobs by
OWN = ("array", "job-name", "output", "error", "chdir", "wrap", "parsable", "open-mode", "test-only", "wait")
# Of the estimate, for what it does not see: the page cache, and the libraries of another machine
MEMORY_SHARE, MEMORY_MORE = 1.2, 0.5e9
MEMORY_STEP = 256  # MiB
# Of the time that is expected: other nodes are slower, and a file system may be
TIME_SHARE, TIME_MORE_S = 1.5, 600
# A job hears SIGTERM so long before its time ends, so that it leaves a checkpoint
WARNING_S = 120
Options = Mapping[str, str | None]


def read_options(words: Sequence[str]) -> dict[str, str | None]:
    """`--slurm KEY=VALUE`, or `KEY` alone, as options of sbatch.

    Raises:
        UsageError: for every word that is none, at once.

    Example:
        >>> read_options(["partition=gpu", "exclusive"])
        {'partition': 'gpu', 'exclusive': None}
    """
    options: dict[str, str | None] = {}
    wrong = []
    for word in words:
        key, equals, value = word.strip().removeprefix("--").partition("=")
        if not re.fullmatch(r"[a-z][a-z0-9-]+", key) or not value.isprintable() or (equals and not value):
            wrong.append(f"--slurm {printable(word)}: an option of sbatch as KEY=VALUE, such as partition=gpu")
        elif key in OWN:
            wrong.append(f"--slurm {printable(word)}: ulna sets {key} itself; leave it out")
        options[key] = value if equals else None
    if wrong:
        raise UsageError("\n".join(wrong))
    return options


class Ask(NamedTuple):
    """What a job asks of SLURM: jobs that ask alike share an array.

    Args:
        cpus: of the job.
        memory: MiB; None where nobody knows.
        seconds: at most; None: the partition's own limit.
        gpu: whether it needs one.
    """

    cpus: int
    memory: int | None
    seconds: int | None
    gpu: bool

    @classmethod
    def of(cls, job: Job, times_memory: float = 1.0, times_seconds: float = 1.0) -> Ask:
        """With head-room, and more of it for one that had too little."""
        need: Need = job.need
        memory = None
        if math.isfinite(need.machine) and need.machine > 0:
            mib = times_memory * (MEMORY_SHARE * need.machine + MEMORY_MORE) / 2**20
            memory = MEMORY_STEP * math.ceil(mib / MEMORY_STEP)
        seconds = None
        if job.seconds is not None:
            seconds = 60 * math.ceil(times_seconds * (TIME_SHARE * job.seconds + TIME_MORE_S) / 60)
        return cls(job.threads, memory, seconds, need.gpu > 0)


def script(name: str, jobs: Sequence[Job], ask: Ask, folder: Path, options: Options, most: int | None) -> str:
    """The text that sbatch is given.

    Args:
        name: of the array; SLURM is asked for its jobs by it.
        jobs: of the array, in the order of their numbers.
        ask: of each of them.
        folder: for SLURM's own log of each.
        options: of sbatch, in place of what is asked for otherwise.
        most: of them at once.
    """
    own: dict[str, str | None] = {"cpus-per-task": str(ask.cpus)}
    if ask.memory is not None:
        own["mem"] = f"{ask.memory}M"
    if ask.seconds is not None:
        own["time"] = told_time(ask.seconds)
    if ask.gpu and not {"gres", "gpus", "gpus-per-task", "gpus-per-node"} & options.keys():
        own["gres"] = "gpu:1"
    if {"mem-per-cpu", "mem-per-gpu"} & options.keys():
        own.pop("mem", None)
    own |= {"signal": f"B:TERM@{WARNING_S}", "requeue": None}
    if "no-requeue" in options:
        del own["requeue"]
    own |= options
    own |= {
        "job-name": name,
        "array": f"0-{len(jobs) - 1}" + (f"%{most}" if most is not None and most < len(jobs) else ""),
        "output": str(folder.absolute() / f"{name}-%a.log"),
        "open-mode": "append",
        "chdir": str(Path.cwd()),
    }
    lines = ["#!/bin/bash", *(_directive(key, value) for key, value in own.items()), ""]
    # a site may pass on nothing by itself
    lines += [f"export {key}={shlex.quote(value)}" for key, value in sorted(passed_variables(written=True).items())]
    lines += ['case "$SLURM_ARRAY_TASK_ID" in']
    for number, job in enumerate(jobs):
        lines += [f"{number})", f"  # {printable(job.name)}"]
        lines += [f"  export {key}={shlex.quote(value)}" for key, value in sorted(job.variables.items())]
        # the job takes the place of the shell, so that it hears what SLURM tells that
        lines += [f"  exec {shlex.join(job.argv)} < /dev/null > {shlex.quote(str(job.output))} 2>&1", "  ;;"]
    return "\n".join([*lines, "esac", ""])


def told_time(seconds: int) -> str:
    """Seconds as SLURM writes a length.

    Example:
        >>> told_time(5400), told_time(90000)
        ('01:30:00', '1-01:00:00')
    """
    days, rest = divmod(seconds, 86400)
    clock = f"{rest // 3600:02}:{rest % 3600 // 60:02}:{rest % 60:02}"
    return f"{days}-{clock}" if days else clock


def _directive(key: str, value: str | None) -> str:
    """A line of options; the shell never reads it, SLURM takes quotes."""
    if value is None:
        return f"#SBATCH --{key}"
    return f"#SBATCH --{key}={shlex.quote(value) if ' ' in value or value != value.strip() else value}"
