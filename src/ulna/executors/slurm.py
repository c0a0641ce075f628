"""Jobs as arrays of SLURM: submitted, waited for, and found again by a later call; they outlive the command."""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ulna.errors import UsageError, printable
from ulna.executors.handing import Late, reason
from ulna.executors.job import Ended, Job
from ulna.executors.slurm_script import Ask, Options, script
from ulna.executors.slurm_states import Known, Place, check_installed, ended, submit, waiting_or_running
from ulna.system.files import write_text
from ulna.system.outputs import make_folder
from ulna.system.progress import Standing
from ulna.system.reading import read_json

log = logging.getLogger(__name__)

FOLDER, SUBMITTED = "slurm", "submitted.json"
RETRIES = 3  # of a job, in one call
# Ends that are not the job's own fault: it goes on from its checkpoint
CUT_OFF = ("TIMEOUT", "DEADLINE", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY", "BOOT_FAIL", "STOPPED", "REVOKED")
STOPPED_CODES = ("143:0", "130:0", "0:15")  # a checkpoint is written, as SLURM asked before the time ended
KILLED_CODES = ("0:9", "137:0")
# What accounts say of a job that squeue has no more, but is not over, or is done: its files come later
GOING = ("COMPLETED", "COMPLETING", "PENDING", "RUNNING", "REQUEUED", "SUSPENDED")
MORE = 2.0  # times the time, or the memory, of one that had too little


@dataclass(frozen=True)
class Submitted:
    """An array that was submitted: its name, and the names of its jobs in their order. Written before it is."""

    array: str
    jobs: tuple[str, ...]


class Slurm:
    """An executor: arrays of SLURM.

    Args:
        folder: of the study; `slurm/` in it keeps the scripts, what was submitted, and SLURM's logs.
        options: of sbatch.
        most: jobs of an array at once; None: as many as SLURM begins.
        what: the noun for a job.
    """

    look_s = 10.0  # a controller that serves thousands is asked no more often
    stopping = "the jobs of SLURM go on"

    def __init__(self, folder: Path, options: Options, most: int | None, what: str = "training") -> None:
        self.folder, self.options, self.most, self.what = folder / FOLDER, options, most, what
        self._submitted: list[Submitted] = []
        self._place: dict[str, Place] = {}  # of the jobs that this call waits for
        self._tries: Counter[str] = Counter()
        self._more: dict[str, tuple[float, float]] = {}  # job -> times memory and time
        self._known: dict[Place, Known] = {}
        self._over: dict[Place, Known] = {}
        self._looked, self._told_silence = -1e9, False
        self._late = Late()

    @property
    def stopped(self) -> str:
        """What holds after a signal, and how to end the jobs."""
        arrays = ",".join(sorted({place.array for place in self._place.values()}))
        return f"the jobs of SLURM go on; `scancel -n {arrays}` ends them" if arrays else "nothing was submitted"

    def open(self, jobs: Sequence[Job]) -> None:
        """Find those that an earlier call has submitted and SLURM still has."""
        check_installed()
        self._submitted = _read(self.folder / SUBMITTED)
        if not self._submitted:
            return
        still = waiting_or_running([one.array for one in self._submitted])
        if still is None:
            raise UsageError(
                "--on slurm: squeue does not answer, and jobs of this study may still run; try again later"
            )
        self._known, wanted = still, {job.name for job in jobs}
        for one in self._submitted:
            for number, name in enumerate(one.jobs):
                if name in wanted and Place(one.array, number) in still:
                    self._place[name] = Place(one.array, number)
        # arrays of which nothing is left are forgotten
        left = {place.array for place in still}
        self._submitted = [one for one in self._submitted if one.array in left]

    def ready(self, waiting: Sequence[Job], running: Sequence[Job]) -> list[Job]:
        """All: SLURM has them wait."""
        return list(waiting)

    def begin(self, jobs: Sequence[Job]) -> None:
        """Submit the jobs, an array for all that ask alike; those that SLURM still has are only waited for."""
        new: dict[Ask, list[Job]] = {}
        for job in jobs:
            if job.name in self._place:
                known = self._known[self._place[job.name]]
                log.info("%s: is with SLURM already, as %s (%s)", job.name, known.id, known.state)
            else:
                new.setdefault(Ask.of(job, *self._more.get(job.name, (1.0, 1.0))), []).append(job)
        for ask, alike in new.items():
            array, text = self._array(ask, alike)
            for job in alike:
                make_folder(job.output.parent)
            path = self.folder / f"{array}.sbatch"
            write_text(path, text)
            self._submitted.append(Submitted(array, tuple(job.name for job in alike)))
            # noted first: if this process is killed in between, the array is found by its name
            write_text(self.folder / SUBMITTED, json.dumps([asdict(one) for one in self._submitted], indent=1))
            number = submit(path)
            for index, job in enumerate(alike):
                self._place[job.name] = Place(array, index)
                log.info(
                    "%s: %s as job %s_%d (%s)",
                    job.name,
                    "goes on" if job.begun() else "begins",
                    number,
                    index,
                    job.folder,
                )
            self._looked = -1e9

    def describe(self, jobs: Sequence[Job]) -> str:
        """The scripts that `begin` would submit."""
        new: dict[Ask, list[Job]] = {}
        for job in jobs:
            new.setdefault(Ask.of(job), []).append(job)
        return "\n".join(self._array(ask, alike)[1] for ask, alike in new.items())

    def look(self, job: Job) -> Ended | None:
        """As `Executor`; SLURM is asked once for all jobs."""
        self._ask()
        place = self._place[job.name]
        if place in self._known:
            return None
        over = self._over.get(place)
        if not job.done() and (over is None or over.state in GOING) and self._late.may_come(job):
            return None  # files of another machine, and accounts, are seen later than the end
        del self._place[job.name]
        self._late.forget(job)
        return Ended() if job.done() else self._ended(job, over)

    def standing(self, job: Job) -> Standing | None:
        """What SLURM says of it."""
        known = self._known.get(self._place.get(job.name, Place("", 0)))
        return known and Standing(
            f"{known.id} {known.state.lower()}" + (f": {known.why}" if known.state == "PENDING" else "")
        )

    def close(self, running: Sequence[Job]) -> None:
        """Nothing is ended: the same command waits for the jobs again."""

    def _array(self, ask: Ask, jobs: Sequence[Job]) -> tuple[str, str]:
        """A name that no other array has, and its script."""
        array = f"ulna-{secrets.token_hex(4)}"
        return array, script(array, jobs, ask, self.folder, self.options, self.most)

    def _ask(self) -> None:
        if time.monotonic() - self._looked < self.look_s / 2:
            return
        self._looked = time.monotonic()
        arrays = sorted({place.array for place in self._place.values()})
        still = waiting_or_running(arrays)
        if still is None:
            if not self._told_silence:
                log.info("note: squeue does not answer; waiting for it")
            self._told_silence = True
            # what it said last holds
            self._known |= {place: Known("", "unknown") for place in self._place.values() if place not in self._known}
            return
        self._known, self._told_silence = still, False
        if any(place not in still for place in self._place.values()):
            self._over = ended(arrays)

    def _ended(self, job: Job, over: Known | None) -> Ended:
        """Why a job is not done, and whether it is worth another try."""
        state = over.state if over else ""
        stopped = over is not None and state == "FAILED" and over.why in STOPPED_CODES
        killed = over is not None and state == "FAILED" and over.why in KILLED_CODES
        how = f"SLURM says {state}{f', exit code {over.why}' if over.why else ''}" if over else "SLURM has it no more"
        why = reason(job, how)
        # without accounts nobody knows how it ended; what said why has ended by itself
        cut_off = state in CUT_OFF or stopped or killed or (over is None and why.startswith(how))
        if not cut_off or self._tries[job.name] >= (RETRIES if over else 1):
            return Ended(why)
        self._tries[job.name] += 1
        memory, seconds = self._more.get(job.name, (1.0, 1.0))
        if state == "OUT_OF_MEMORY":
            memory *= MORE
        elif state in ("TIMEOUT", "DEADLINE") or stopped:
            seconds *= MORE
        self._more[job.name] = (memory, seconds)
        return Ended(why, f"cut off ({how}); it goes on as a new job")


def _read(path: Path) -> list[Submitted]:
    """What earlier calls have submitted.

    Raises:
        UsageError: if that cannot be read: jobs might be begun twice.
    """
    if not path.exists():
        return []
    with suppress(KeyError, TypeError, AttributeError):
        found: Any = read_json(path)
        return [Submitted(str(one["array"]), tuple(map(str, one["jobs"]))) for one in found]
    raise UsageError(f"{printable(path)}: is damaged; remove it where `squeue --me` shows no job of this study")
