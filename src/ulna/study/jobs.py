"""The trainings of a study, each in a process of its own: what is done stays done, what failed is told."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ulna.errors import Interrupted, counted
from ulna.networks.foreign import is_permitted
from ulna.recipe import Recipe, to_yaml
from ulna.study.places import Places
from ulna.study.variants import Variant
from ulna.study.worker import ALLOW, standing_file
from ulna.system.files import write_text
from ulna.system.outputs import RUN_FILE, make_folder
from ulna.system.progress import Board, Standing, board
from ulna.system.progress_file import read_standing
from ulna.system.reading import read_json_object
from ulna.system.signals import Stopped, on_first_signal
from ulna.training.limit import told_duration

log = logging.getLogger(__name__)

# What a training writes last but for its pictures: then its figures are there to be read.
DONE = "summary.json"
# A worker leaves a checkpoint at its next step; after so many seconds it is ended.
PATIENCE_S = 120.0
ONE_BY_ONE = Places()


@dataclass(frozen=True)
class Job:
    """One training of a study.

    Args:
        variant: what is trained.
        seed: of weights and random changes.
        fold: of the data set's folds; None for its one split.
        run: its run folder.
    """

    variant: Variant
    seed: int
    fold: int | None
    run: Path

    @property
    def name(self) -> str:
        """In words."""
        return f"{self.variant.name} seed {self.seed}" + ("" if self.fold is None else f" fold {self.fold}")

    @property
    def recipe(self) -> Recipe:
        """Of the training, whole."""
        recipe = self.variant.recipe
        return recipe.replaced(training=recipe.training.replaced(seed=self.seed, fold=self.fold))

    @property
    def network(self) -> str:
        """The name of what is trained."""
        return self.variant.name

    @property
    def begun(self) -> bool:
        """Whether it goes on where it was stopped."""
        return (self.run / RUN_FILE).exists()

    @property
    def done(self) -> bool:
        """Whether it has its figures."""
        return (self.run / DONE).exists() and (self.run / "cases.csv").exists()

    @property
    def has_weights(self) -> bool:
        """Whether its network can still predict: figures may be kept without it."""
        return (self.run / "weights.safetensors").exists()

    def summary(self) -> dict[str, Any]:
        """What the run says about itself."""
        return read_json_object(self.run / DONE)


def make_jobs(variants: Sequence[Variant], seeds: int, folds: int | None, runs: Path) -> list[Job]:
    """All trainings, so that every seed of all variants is complete before the next one begins."""
    parts: list[int | None] = [None] if folds is None else list(range(folds))
    return [
        Job(variant, seed, fold, runs / variant.folder / (f"seed{seed}" + ("" if fold is None else f"-fold{fold}")))
        for seed in range(seeds)
        for fold in parts
        for variant in variants
    ]


def run_jobs(
    jobs: Sequence[Job],
    data: Path,
    *,
    resume_command: str,
    places: Places = ONE_BY_ONE,
    threads: int | None = None,
    pseudonyms: Path | None = None,
) -> dict[str, str]:
    """Train what is not done yet; returns the reasons of those that failed.

    A training that was killed, or found no memory, while others ran beside it is tried once more, alone, and goes on from its
    checkpoint.

    Args:
        jobs: in the order to begin them; one that fits beside those that run may overtake one that does not.
        data: the data set.
        resume_command: what a person types to go on.
        places: which of them run beside each other.
        threads: of each; None: those of this process, shared among as many as run beside each other.
        pseudonyms: the file that gives the ids of cases other names.

    Raises:
        Interrupted: after a signal, when every training has left a checkpoint.
    """
    waiting = [job for job in jobs if not job.done]
    if not waiting:
        return {}
    log.info("%d of %s to be done", len(waiting), counted(len(jobs), "training"))
    failed: dict[str, str] = {}
    running: dict[str, tuple[Job, subprocess.Popen[bytes]]] = {}
    start, finished = time.perf_counter(), 0
    at_once = places.at_once([job.network for job in waiting])
    if at_once > 1:
        log.info("up to %s at once", counted(at_once, "training"))
    crowded: set[str] = set()  # trainings that had others beside them
    alone: set[str] = set()  # and failed for it, so that they are tried alone
    threads = max(1, torch.get_num_threads() // at_once) if threads is None else threads
    with _signals() as signals, board("trainings", len(jobs)) as shown:
        shown.advance(len(jobs) - len(waiting))
        queue = list(waiting)
        try:
            while queue or running:
                while not signals and (job := _next(queue, [one for one, _ in running.values()], places, alone)):
                    queue.remove(job)
                    log.info("%s: %s (%s)", job.name, "goes on" if job.begun else "begins", job.run)
                    running[job.name] = (job, _begin(job, data, threads, pseudonyms))
                    shown.show(job.name, Standing("starting"))  # until it tells more, seconds later
                    if len(running) > 1:
                        crowded |= running.keys()
                if signals:
                    raise Interrupted(signals[0], resume_command)
                time.sleep(0.1)
                for job, process in list(running.values()):
                    if process.poll() is None:
                        _show(job, shown)
                        continue
                    del running[job.name]
                    shown.drop(job.name)
                    standing_file(job.run).unlink(missing_ok=True)
                    why = "" if job.done else _why(job, process.returncode)
                    if why and job.name in crowded - alone and _wants_memory(process.returncode, why):
                        log.warning("%s: cut off (%s); it is tried once more, alone", job.name, why)
                        alone.add(job.name)
                        queue.append(job)
                        continue
                    finished += 1
                    shown.advance()
                    each = (time.perf_counter() - start) / finished
                    waits = len(queue) + len(running)
                    left = f"; about {told_duration(each * waits)} to go" if waits else ""
                    if job.done:  # its figures are there, whatever came after them
                        summary = job.summary()
                        part = summary["evaluated_on"]
                        log.info("%s: %s on %s%s", job.name, _score(summary[part]), part, left)
                    else:
                        failed[job.name] = why
                        log.warning("%s: failed (%s)%s", job.name, failed[job.name], left)
        finally:
            _end([process for _, process in running.values()])
            for job, _ in running.values():
                standing_file(job.run).unlink(missing_ok=True)
    return failed


def _show(job: Job, shown: Board) -> None:
    """How far a training has come, as it says itself; nothing is read where nobody is looking."""
    if shown.seen and (standing := read_standing(standing_file(job.run))):
        shown.show(job.name, standing)


def _next(queue: Sequence[Job], running: Sequence[Job], places: Places, alone: Collection[str]) -> Job | None:
    """The first training that may begin now."""
    if any(job.name in alone for job in running):
        return None
    networks = [job.network for job in running]
    for job in queue:
        if not running if job.name in alone else places.fits(job.network, networks):
            return job
    return None


def _wants_memory(code: int, why: str) -> bool:
    """Whether a training ended for want of memory, which others beside it may have taken."""
    return code == -9 or "out of memory" in why.lower() or "more memory" in why


def _score(evaluated: Mapping[str, Any]) -> str:
    dice = evaluated["mean"]["dice"]["mean"]
    return "no structure" if dice is None else f"Dice {dice:.4f}"


def _begin(job: Job, data: Path, threads: int, pseudonyms: Path | None) -> subprocess.Popen[bytes]:
    make_folder(job.run.parent)
    recipe = job.run.with_name(job.run.name + ".yaml")
    write_text(recipe, to_yaml(job.recipe))
    standing_file(job.run).unlink(missing_ok=True)  # of an earlier study that was killed
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
    }  # a training that goes on keeps the number it began with
    told = job.run.with_name(job.run.name + ".txt")
    words = [str(os.getpid()), str(data), str(recipe), str(job.run), *([str(pseudonyms)] if pseudonyms else [])]
    words += [ALLOW] if is_permitted(job.recipe.architecture.foreign) else []
    with told.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "ulna.study.worker", *words],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=environment,
            start_new_session=True,  # a Ctrl-C reaches the study alone, which then stops its trainings one by one
        )


def _why(job: Job, code: int) -> str:
    """The last thing that a training said."""
    try:
        said = job.run.with_name(job.run.name + ".txt").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        said = ""
    errors = said.rsplit("error: ", 1)
    if len(errors) == 2:
        return " ".join(errors[1].split())
    if code == -9:  # SIGKILL
        return "killed from outside: most likely the memory was full"
    return f"exit code {code}: " + (said.splitlines()[-1] if said else "it said nothing")


def _end(running: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask every training to stop at its next step, and wait for its checkpoint."""
    for process in running:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
    until = time.monotonic() + PATIENCE_S
    for process in running:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


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
def _signals() -> Iterator[list[int]]:
    """The signals that have come: SIGTERM and Ctrl-C; a second one acts as if nobody listened."""
    seen: list[int] = []

    def note(number: int) -> None:
        seen.append(number)
        log.info("stopping: every training leaves a checkpoint; once more to stop at once")

    with on_first_signal(note):
        yield seen
