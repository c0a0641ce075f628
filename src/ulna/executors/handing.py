"""Jobs handed out by an executor: what is done stays done, what failed is told, a signal names the command that goes on."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from ulna.errors import Interrupted, counted
from ulna.executors.job import Ended, Job
from ulna.system.progress import Board, Standing, board
from ulna.system.progress_file import read_standing
from ulna.system.signals import Stopped, on_first_signal

log = logging.getLogger(__name__)

STEP_S = 0.1  # a signal is heard after so long


class Executor(Protocol):
    """Where processes run. One object serves one call of `hand_out`, which asks it from one thread."""

    @property
    def look_s(self) -> float:
        """How long to wait between two looks at what runs."""

    @property
    def stopping(self) -> str:
        """What happens to the jobs at a signal, for a line of the log: "every training leaves a checkpoint"."""

    @property
    def stopped(self) -> str:
        """And once it has: "a checkpoint is written"."""

    def open(self, jobs: Sequence[Job]) -> None:
        """See that it can run these jobs; called once, with those that are to be done.

        Raises:
            UsageError: if it cannot, before any of them is begun.
        """

    def ready(self, waiting: Sequence[Job], running: Sequence[Job]) -> list[Job]:
        """Those of the waiting jobs that may be handed out now beside others; asked again until there is none."""

    def begin(self, jobs: Sequence[Job]) -> None:
        """Hand out what `ready` gave; where one of them still runs since an earlier call, go on waiting for that."""

    def describe(self, jobs: Sequence[Job]) -> str:
        """What would be begun or submitted for these jobs, for a person to read; nothing is."""

    def look(self, job: Job) -> Ended | None:
        """How a job has ended; None as long as it waits or runs."""

    def standing(self, job: Job) -> Standing | None:
        """Where a job stands that has been handed out and says nothing itself, such as `waits: Resources`."""

    def close(self, running: Sequence[Job]) -> None:
        """Called once, also after a signal or an error: end what runs, or leave it where it outlives the command."""


def hand_out(
    jobs: Sequence[Job],
    executor: Executor,
    *,
    resume_command: str,
    what: str = "training",
    on_begin: Callable[[], None] = lambda: None,
    on_done: Callable[[Job], None] = lambda job: None,
    on_look: Callable[[], None] = lambda: None,
    stopping: str = "",
    told_duration: Callable[[float], str] = lambda seconds: f"{seconds:.0f} s",
) -> dict[str, str]:
    """Do what is not done yet; returns the reasons of the jobs that failed, by their names.

    Args:
        jobs: in the order to hand them out.
        executor: where they run.
        resume_command: what a person types to go on.
        what: the noun for one of them.
        on_begin: called once, before the first job is handed out.
        on_done: called with every job that is done in this call.
        on_look: called every time that the jobs are looked at.
        stopping: what happens to the jobs at a signal, where it is another thing than the executor says.
        told_duration: seconds in words.

    Raises:
        UsageError: if the executor cannot run them; none is begun then.
        Interrupted: after a signal.
    """
    queue = [job for job in jobs if not job.done()]
    if not queue:
        return {}
    log.info("%d of %s to be done", len(queue), counted(len(jobs), what))
    for job in queue:
        job.prepare()
    executor.open(queue)
    queue = [job for job in queue if not job.done()]  # one that went on without us may have ended meanwhile
    failed: dict[str, str] = {}
    running: list[Job] = []
    start, finished, begun = time.perf_counter(), 0, False
    with (
        _signals(stopping or executor.stopping) as signals,
        board(counted(2, what).partition(" ")[2], len(jobs)) as shown,
    ):
        shown.advance(len(jobs) - len(queue))
        try:
            while queue or running:
                while not signals and (ready := executor.ready(queue, running)):
                    if not begun:
                        on_begin()
                    begun = True
                    executor.begin(ready)
                    for job in ready:
                        queue.remove(job)
                        running.append(job)
                        shown.show(job.name, Standing("starting"))  # until it tells more, seconds later
                if signals:
                    raise Interrupted(signals[0], resume_command, executor.stopped)
                _wait(executor.look_s, signals)
                on_look()
                for job in list(running):
                    ended = executor.look(job)
                    if ended is None:
                        _show(job, executor, shown)
                        continue
                    running.remove(job)
                    shown.drop(job.name)
                    _forget(job)
                    done = job.done()
                    if ended.again and not done:
                        log.warning("%s: %s", job.name, ended.again)
                        queue.append(job)
                        continue
                    finished += 1
                    shown.advance()
                    each, waits = (time.perf_counter() - start) / finished, len(queue) + len(running)
                    left = f"; about {told_duration(each * waits)} to go" if waits else ""
                    if done:  # its files are there, whatever came after them
                        log.info("%s: %s%s", job.name, job.result() or "done", left)
                        on_done(job)
                    else:
                        failed[job.name] = ended.why
                        log.warning("%s: failed (%s)%s", job.name, ended.why, left)
        finally:
            executor.close(running)
            for job in running:
                _forget(job)
    return failed


class Late:
    """Patience with files that another machine has written: a network file system shows them later than the job ends."""

    patience_s = 60.0

    def __init__(self) -> None:
        self._since: dict[str, float] = {}

    def may_come(self, job: Job) -> bool:
        """Whether it is too soon to say that a job which has ended is not done."""
        since = self._since.setdefault(job.name, time.monotonic())
        return time.monotonic() - since < self.patience_s

    def forget(self, job: Job) -> None:
        """Of a job that is handed out again, or is done."""
        self._since.pop(job.name, None)


def reason(job: Job, ending: str, *, with_last_line: bool = True) -> str:
    """Why a job failed: the last error that it wrote, else how it ended, with its last line."""
    try:
        said = job.output.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        said = ""
    errors = said.rsplit("error: ", 1)
    if len(errors) == 2:
        return " ".join(errors[1].split())
    return ending + (f": {said.splitlines()[-1] if said else 'it said nothing'}" if with_last_line else "")


def _wait(seconds: float, signals: Sequence[int]) -> None:
    """Wait until the next look, or a signal."""
    for _ in range(max(1, round(seconds / STEP_S))):
        if signals:
            return
        time.sleep(min(seconds, STEP_S))


def _show(job: Job, executor: Executor, shown: Board) -> None:
    """How far a job has come, as it says itself; nothing is read where nobody is looking."""
    if not shown.seen:
        return
    standing = (job.standing and read_standing(job.standing)) or executor.standing(job)
    if standing:
        shown.show(job.name, standing)


def _forget(job: Job) -> None:
    if job.standing is not None:
        job.standing.unlink(missing_ok=True)


@contextlib.contextmanager
def stoppable(resume_command: str) -> Iterator[None]:
    """SIGTERM and Ctrl-C end what stands in the block at once, and name the command that goes on.

    For what is quickly done again and leaves no half-written file.

    Raises:
        Interrupted: after a signal.
    """

    def stop(number: int) -> None:
        raise Stopped(number)

    try:
        with on_first_signal(stop):
            yield
    except Stopped as stopped:
        raise Interrupted(stopped.number, resume_command) from None


@contextlib.contextmanager
def _signals(stopping: str) -> Iterator[list[int]]:
    """The signals that have come: SIGTERM and Ctrl-C; a second one acts as if nobody listened."""
    seen: list[int] = []

    def note(number: int) -> None:
        seen.append(number)
        log.info("stopping: %s; once more to stop at once", stopping)

    with on_first_signal(note):
        yield seen
