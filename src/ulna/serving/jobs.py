"""The jobs of a server: a bounded queue, the space that they take, and what is remembered of those that ended."""

from __future__ import annotations

import asyncio
import json
import math
import secrets
import shutil
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from ulna.serving.limits import Limits, Refused
from ulna.serving.metrics import Metrics

State = Literal["uploading", "queued", "running", "done", "failed", "cancelled"]
ENDED: tuple[State, ...] = ("done", "failed", "cancelled")
ANSWER = "answer.json"


class Job:
    """One upload on its way to a mask.

    Args:
        folder: its own; holds the upload, then the mask.
        format: that the mask is asked for in; None: that of the image.

    Attributes:
        id: not to be guessed: it opens the result.
        attempts: how often a worker took it up.
        progress: from 0 to 1; None where nothing tells.
    """

    def __init__(self, folder: Path, format: str | None) -> None:
        self.id = folder.name
        self.folder, self.format = folder, format
        self.stem, self.suffix = "", ""
        self.state: State = "uploading"
        self.stage = ""
        self.progress: float | None = None
        self.error = ""
        self.answer: dict[str, Any] = {}
        self.attempts, self.bytes = 0, 0
        self.begun = self.ended = time.monotonic()
        self.seconds = 0.0
        self.changed = asyncio.Event()

    @property
    def upload(self) -> Path:
        """The file that was sent."""
        return self.folder / f"upload{self.suffix}"

    @property
    def result(self) -> Path:
        """What a worker writes; it is looked at when the worker says so, or has died."""
        return self.folder / "result"

    def set(self, **fields: Any) -> None:
        """Change what is told of it, and wake who waits for that."""
        for name, value in fields.items():
            setattr(self, name, value)
        self.changed.set()
        self.changed = asyncio.Event()

    def mask(self) -> tuple[Path, str] | None:
        """The mask and the name that it is handed out under; None where there is none."""
        name = self.answer.get("file")
        if self.state != "done" or not isinstance(name, str):
            return None
        path = self.result / Path(name).name
        return path, self.stem + name.removeprefix("mask")

    def to_json(self, place: int | None = None) -> dict[str, Any]:
        """What a client is told.

        Args:
            place: in the queue, from 1.
        """
        told: dict[str, Any] = {"id": self.id, "state": self.state}
        if place is not None:
            told["place"] = place
        if self.state == "running":
            told |= {"stage": self.stage, "progress": self.progress}
        if self.state == "failed":
            told["error"] = self.error
        if self.state == "done":
            mask = self.mask()
            hidden = {"file"}
            told |= {"file": None if mask is None else mask[1]}
            told |= {name: value for name, value in self.answer.items() if name not in hidden}
        return told


class Jobs:
    """All jobs of a server.

    Args:
        folder: private to the server; a folder a job is made in it.
        limits: of the server.
        metrics: count how jobs end.
    """

    def __init__(self, folder: Path, limits: Limits, metrics: Metrics) -> None:
        self.folder, self.limits, self.metrics = folder, limits, metrics
        self._jobs: dict[str, Job] = {}
        self._waiting: deque[Job] = deque()
        self.running: Job | None = None
        self.pace = 1.0  # seconds that a job took lately
        self.more = asyncio.Event()  # something waits

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def queued(self) -> int:
        """How many wait, uploads that still come included."""
        return len(self._waiting) + sum(job.state == "uploading" for job in self._jobs.values())

    @property
    def taken(self) -> int:
        """Bytes that all jobs take."""
        return sum(job.bytes for job in self._jobs.values())

    def new(self, format: str | None) -> Job:
        """A job whose upload comes now.

        Raises:
            Refused: if the queue or the disk is full.
        """
        busy = self.queued + (self.running is not None)
        if busy >= self.limits.queue:
            raise self._later(f"{busy} images are waiting already; send it again later")
        self._check_room(1)
        job = Job(self.folder / secrets.token_urlsafe(18), format)
        job.folder.mkdir(mode=0o700)
        self._jobs[job.id] = job
        return job

    def grow(self, job: Job, count: int) -> None:
        """Note bytes that a job is about to take.

        Raises:
            Refused: if there is no room.
        """
        self._check_room(count)
        job.bytes += count
        self.metrics.bytes += count

    def _check_room(self, count: int) -> None:
        free = shutil.disk_usage(self.folder).free - self.limits.left_free
        if self.taken + count > self.limits.disk or count > free:
            raise self._later("there is no room for more images now; send it again later")

    def _later(self, text: str) -> Refused:
        return Refused(503, text, retry_s=max(1, math.ceil(self.pace * self.limits.queue / 2)))

    def put(self, job: Job) -> None:
        """Let a job whose upload is whole wait for the worker."""
        job.set(state="queued")
        self._waiting.append(job)
        self.more.set()

    async def take(self) -> Job:
        """The next job, as soon as there is one."""
        while not self._waiting:
            self.more.clear()
            await self.more.wait()
        job = self._waiting.popleft()
        self.running = job
        job.begun = time.monotonic()
        return job

    def find(self, id: str) -> Job:
        """A job by its id.

        Raises:
            Refused: if there is none, any more.
        """
        job = self._jobs.get(id)
        if job is None:
            raise Refused(404, "there is no such job; results are removed after a time, or were taken away")
        return job

    def place(self, job: Job) -> int | None:
        """In the queue, from 1; None for one that does not wait."""
        return self._waiting.index(job) + 1 if job.state == "queued" and job in self._waiting else None

    def end(self, job: Job, state: State, **fields: Any) -> None:
        """Let a job end, once: what it needs no more is removed, and its result stays for a time."""
        if job.state in ENDED:
            return
        now = time.monotonic()
        seconds = now - job.begun if job.attempts else 0.0
        if state == "done":
            self.pace = 0.8 * self.pace + 0.2 * seconds
        if self.running is job:
            self.running = None
        job.set(state=state, ended=now, seconds=seconds, stage="", progress=None, **fields)
        self.metrics.job_ended(state, seconds)
        if state == "done":
            _keep_only(job.folder, job.result)
            job.bytes = sum(file.stat().st_size for file in job.result.iterdir())
        else:
            shutil.rmtree(job.folder, ignore_errors=True)
            job.bytes = 0

    def give_up(self, why: str) -> None:
        """Let everything fail that waits or is computed."""
        for job in [*self._waiting, *([self.running] if self.running else [])]:
            self.end(job, "failed", error=why)
        self._waiting.clear()

    def clear(self, job: Job) -> None:
        """Remove what a worker wrote of a job that was taken from it."""
        if job.state in ("failed", "cancelled"):
            shutil.rmtree(job.folder, ignore_errors=True)

    def forget(self, job: Job) -> None:
        """Remove a job and all that is left of it."""
        with suppress(ValueError):
            self._waiting.remove(job)
        if job.state not in (*ENDED, "uploading"):
            self.end(job, "cancelled")
        shutil.rmtree(job.folder, ignore_errors=True)
        self._jobs.pop(job.id, None)

    def expire(self, now: float) -> None:
        """Remove what was kept for long enough, and the oldest of too many."""
        ended = sorted((job for job in self._jobs.values() if job.state in ENDED), key=lambda job: job.ended)
        for number, job in enumerate(ended):
            if now - job.ended > self.limits.kept_s or len(ended) - number > self.limits.ended:
                self.forget(job)


def read_answer(job: Job) -> Mapping[str, Any] | None:
    """What the worker wrote of a job that it had ended; None where it had not."""
    try:
        found = json.loads((job.result / ANSWER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _keep_only(folder: Path, kept: Path) -> None:
    for path in folder.iterdir():
        if path != kept:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
