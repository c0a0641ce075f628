"""Jobs as processes of this machine, side by side where cores, memory and GPUs carry them."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import subprocess
import time
from collections import Counter
from collections.abc import Sequence

from ulna.errors import counted, printable
from ulna.executors.handing import reason
from ulna.executors.job import Ended, Job, told_need
from ulna.executors.places import Places
from ulna.executors.working import BESIDE
from ulna.system.cores import PARENT
from ulna.system.device import gpu_names
from ulna.system.outputs import make_folder
from ulna.system.progress import Standing

log = logging.getLogger(__name__)

# A process leaves a checkpoint at its next step; after so many seconds it is ended.
PATIENCE_S = 120.0
KILLED = -9
LEFT = "done but for what it was at when it was cut off; it is begun once more, alone"
STOPPED = (130, 143)  # codes of a process that a signal told to stop


class Local:
    """An executor: processes of this machine.

    A job that was killed, or found no memory, while others ran beside it is tried once more, alone, and goes on from its
    checkpoint. One of many things (`Job.goes_on`) is begun again at once before that, and leaves for then what it was at.

    Args:
        places: which of them run beside each other; one that fits may overtake one that does not.
        what: the noun for one of them.
    """

    look_s = 0.1

    def __init__(self, places: Places, what: str = "training") -> None:
        self.places, self.what = places, what
        self.stopping, self.stopped = f"every {what} leaves a checkpoint", "a checkpoint is written"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._gpus: dict[str, int] = {}
        self._crowded: set[str] = set()  # jobs that had others beside them
        self._alone: set[str] = set()  # and failed for it, so that they are tried alone
        self._cuts: Counter[str] = Counter()  # how often each was cut off beside others
        self._again: set[str] = set()  # of these, those that are begun again at once

    def open(self, jobs: Sequence[Job]) -> None:
        """As `Executor`."""
        at_once = self.places.at_once([job.need for job in jobs])
        if at_once > 1:
            log.info("up to %s at once", counted(at_once, self.what))

    def ready(self, waiting: Sequence[Job], running: Sequence[Job]) -> list[Job]:
        """The first job that may begin now."""
        if any(job.name in self._alone for job in running):
            return []
        beside = [(job.need, self._gpus[job.name]) for job in running]
        for job in waiting:
            gpu = (None if running else 0) if job.name in self._alone else self.places.gpu_for(job.need, beside)
            if gpu is not None:
                self._gpus[job.name] = gpu
                return [job]
        return []

    def begin(self, jobs: Sequence[Job]) -> None:
        """As `Executor`."""
        for job in jobs:
            log.info("%s: %s (%s)", job.name, "goes on" if job.begun() else "begins", job.folder)
            beside = job.name in self._again
            self._again.discard(job.name)
            self._processes[job.name] = _begin(job, self._gpus[job.name] if self.places.gpus > 1 else None, beside)
            if len(self._processes) > 1:
                self._crowded |= self._processes.keys()

    def describe(self, jobs: Sequence[Job]) -> str:
        """The commands."""
        at_once = self.places.at_once([job.need for job in jobs])
        lines = [f"# {counted(len(jobs), self.what)} on this machine, {at_once} at once"]
        for job in jobs:
            variables = [f"{key}={shlex.quote(value)}" for key, value in sorted(job.variables.items())]
            command = f"{' '.join(variables)} {shlex.join(job.argv)} > {shlex.quote(str(job.output))} 2>&1"
            lines += [f"# {printable(job.name)}: {told_need(job)}", command]
        return "\n".join(lines)

    def look(self, job: Job) -> Ended | None:
        """As `Executor`."""
        code = self._processes[job.name].poll()
        if code is None:
            return None
        del self._processes[job.name]
        if job.done():
            return Ended()
        why = _why(job, code)
        if job.name not in self._crowded - self._alone:
            return Ended(why)
        if _cut_off(code):
            self._cuts[job.name] += 1
            if (self._processes or self._again) and job.goes_on(self._cuts[job.name]):
                self._again.add(job.name)
                return Ended(why, f"cut off ({why}); it is begun again, and leaves what it was at for the end")
        left = code == 0 and self._cuts[job.name] > 0  # what it was at
        if left or _wants_memory(code, why):
            self._alone.add(job.name)
            return Ended(why, LEFT if left else f"cut off ({why}); it is tried once more, alone")
        return Ended(why)

    def standing(self, job: Job) -> Standing | None:
        """As `Executor`; a process here speaks for itself."""
        return None

    def close(self, running: Sequence[Job]) -> None:
        """Ask every process to stop at its next step, and wait for its checkpoint."""
        processes = [self._processes[job.name] for job in running if job.name in self._processes]
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        until = time.monotonic() + PATIENCE_S
        for process in processes:
            try:
                process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _begin(job: Job, gpu: int | None, beside: bool) -> subprocess.Popen[bytes]:
    make_folder(job.output.parent)
    if job.standing is not None:
        job.standing.unlink(missing_ok=True)  # of an earlier call that was killed
    environment = {**os.environ, **job.variables, PARENT: str(os.getpid())}
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpu_names()[gpu]
    environment.pop(BESIDE, None)  # of this process, which may be such a job itself
    if beside:
        environment[BESIDE] = "1"
    with job.output.open("wb") as file:
        return subprocess.Popen(
            list(job.argv),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=environment,
            start_new_session=True,  # a Ctrl-C reaches the command alone, which then stops its jobs one by one
        )


def _why(job: Job, code: int) -> str:
    if code == KILLED:
        return reason(job, "killed from outside: most likely the memory was full", with_last_line=False)
    return reason(job, f"exit code {code}")


def _cut_off(code: int) -> bool:
    """Whether a process was ended by a signal, and not by what it found; Windows does not tell, and has no signals."""
    return code < 0 or code in STOPPED


def _wants_memory(code: int, why: str) -> bool:
    """Whether a job ended for want of memory, which others beside it may have taken."""
    return code == KILLED or "out of memory" in why.lower() or "more memory" in why
