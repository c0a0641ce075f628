"""The server's one worker: begun, fed a job at a time, stopped at its limits, and replaced when it has died."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from ulna.errors import UsageError
from ulna.serving.jobs import ENDED, Job, Jobs, read_answer
from ulna.serving.limits import MB, TOKEN
from ulna.serving.metrics import Metrics

log = logging.getLogger(__name__)

MOST_ATTEMPTS = 2
LOOK_S = 0.2  # how often time and memory of a worker are looked at
MOST_LINE = 1 << 20
PAUSES_S = (0.0, 1.0, 5.0, 30.0)  # before a worker is begun again that was never ready


class Worker:
    """A process that predicts.

    Args:
        process: that was begun; its input and output are pipes.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.about: dict[str, Any] = {}

    @classmethod
    async def begin(cls, setup: dict[str, Any], temporary: Path) -> Worker:
        """Begin one; it is ready when it says so."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "ulna.serving.worker",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=MOST_LINE,
            env={name: value for name, value in os.environ.items() if name != TOKEN} | {"TMPDIR": str(temporary)},
            start_new_session=True,  # Ctrl-C is for the server, which ends it
        )
        worker = cls(process)
        await worker.send(setup)
        return worker

    async def send(self, what: dict[str, Any]) -> None:
        """Hand it a line."""
        assert self.process.stdin is not None
        with suppress(ConnectionError):  # it has died, which is seen where it is read
            self.process.stdin.write(json.dumps(what).encode() + b"\n")
            await self.process.stdin.drain()

    async def read(self) -> dict[str, Any] | None:
        """Its next line; None when it has died."""
        assert self.process.stdout is not None
        with suppress(ValueError, ConnectionError):  # a line cut short by its end, or one that is too long
            line = await self.process.stdout.readline()
            if line.endswith(b"\n"):
                found = json.loads(line)
                return found if isinstance(found, dict) else None
        return None

    async def kill(self) -> None:
        """End it at once, and wait until it has."""
        with suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()

    @property
    def memory(self) -> int:
        """Bytes that it takes now; 0 where the system does not tell."""
        try:
            pages = int(Path(f"/proc/{self.process.pid}/statm").read_text(encoding="ascii").split()[1])
            return pages * os.sysconf("SC_PAGE_SIZE")
        except (OSError, ValueError, IndexError, AttributeError):
            return 0


class Supervisor:
    """Lets the jobs be done one after the other.

    Args:
        run: what predicts: a run folder, an exported file or zoo:NAME.
        threads: that compute.
        jobs: of the server.
        metrics: count the workers.
        temporary: folder for what libraries write beside the masks.

    Attributes:
        about: what the worker says of the network; empty before the first is ready.
        state: starting, ready or busy.
    """

    def __init__(self, run: str, threads: int | None, jobs: Jobs, metrics: Metrics, temporary: Path) -> None:
        self.jobs, self.limits, self.metrics, self.temporary = jobs, jobs.limits, metrics, temporary
        self.setup = {"run": run, "threads": threads, **jobs.limits._asdict()}
        self.about: dict[str, Any] = {}
        self.state = "starting"
        self.refusal: str | None = None  # why no worker can be
        self._worker: Worker | None = None
        self._failures = 0

    @property
    def memory(self) -> int:
        """Bytes that the worker takes."""
        return 0 if self._worker is None else self._worker.memory

    async def first(self) -> None:
        """Begin the first worker.

        Raises:
            UsageError: if what it is to predict with cannot be read.
        """
        while self._worker is None:
            await self._begin()
            if self.refusal is not None:
                raise UsageError(self.refusal)
            if self._failures > 1:
                raise UsageError("the worker ended before it was ready; the lines above say why")

    async def work(self) -> None:
        """Do jobs for ever."""
        while True:
            await self._ensure()
            job = await self.jobs.take()
            try:
                await self._until_ended(job)
            except Exception:  # of the server itself: the next job is done all the same
                log.exception("a defect of ulna serve")
                self.jobs.end(job, "failed", error="a defect of ulna serve, whose log has more; please report it")
                await self.stop()

    async def _ensure(self) -> Worker:
        """The worker, begun where there is none; images do not wait for one that cannot be."""
        while self._worker is None:
            await self._begin()
            if self._failures >= len(PAUSES_S):
                self.jobs.give_up(
                    "the worker cannot be begun again, and the log of ulna serve says why; send it again later"
                )
        return self._worker

    async def _until_ended(self, job: Job) -> None:
        while job.state not in ENDED:
            worker = await self._ensure()
            if job.state in ENDED:  # removed meanwhile
                return
            if job.attempts >= MOST_ATTEMPTS:
                self.jobs.end(job, "failed", error="the worker died twice over this image, so it is not tried again")
                return
            job.attempts += 1
            await self._do(worker, job)

    async def stop(self) -> None:
        """End the worker."""
        if self._worker is not None:
            await self._worker.kill()
            self._worker = None

    async def _begin(self) -> None:
        """Begin a worker; `_worker` stays None where it is not ready in time."""
        self.state = "starting"
        await asyncio.sleep(PAUSES_S[min(self._failures, len(PAUSES_S) - 1)])
        self.metrics.workers += 1
        worker = await Worker.begin(self.setup, self.temporary)
        try:
            told = await asyncio.wait_for(worker.read(), self.limits.start_s)
        except TimeoutError:
            told = None
        except asyncio.CancelledError:
            await worker.kill()
            raise
        if told is not None and "ready" in told:
            self._worker, self.about, self._failures, self.state = worker, told["ready"], 0, "ready"
            return
        await worker.kill()
        self._failures += 1
        self.refusal = (told or {}).get("refused")
        if self.refusal is None:
            log.warning("the worker ended before it was ready (%s)", worker.process.returncode)

    async def _do(self, worker: Worker, job: Job) -> None:
        """Let the worker do a job; the worker is gone afterwards where it died or had to be stopped."""
        self.state = "busy"
        job.begun = time.monotonic()
        job.set(state="running", stage="reading", progress=None)
        what = {"id": job.id, "folder": str(job.folder), "upload": job.upload.name, "format": job.format}
        await worker.send(what)
        over = asyncio.create_task(self._watch(worker, job))
        try:
            while True:
                told = await worker.read()
                if told is None:
                    break
                if told.get("job") != job.id:
                    continue
                if "stage" in told:
                    job.set(stage=told["stage"], progress=told["progress"])
                elif "failed" in told:
                    self.jobs.end(job, "failed", error=told["failed"])
                    break
                else:
                    self._finish(job)
                    break
        finally:
            over.cancel()
            self.jobs.clear(job)
            if self.state == "busy":
                self.state = "ready"
        if told is not None and not over.done():
            return
        await self._replace(worker)  # it died, or `_watch` ended it behind its last line
        self.jobs.clear(job)
        if job.state not in ENDED and read_answer(job) is not None:
            self._finish(job)  # it died behind its last step
        if job.state not in ENDED:
            log.warning("the worker died (%s); its job is taken up again", worker.process.returncode)
            job.set(state="queued", stage="", progress=None)

    async def _replace(self, worker: Worker) -> None:
        await worker.kill()
        self._worker, self.state = None, "starting"

    def _finish(self, job: Job) -> None:
        answer = read_answer(job)
        if answer is None:
            self.jobs.end(job, "failed", error="a defect of ulna serve: the worker left no answer; please report it")
        else:
            self.jobs.end(job, "done", answer=dict(answer))

    async def _watch(self, worker: Worker, job: Job) -> None:
        """End a worker that takes too long or too much, or whose job nobody wants any more."""
        while True:
            await asyncio.sleep(LOOK_S)
            if job.state in ENDED:
                break
            if time.monotonic() - job.begun > self.limits.seconds:
                text = f"the image took longer than {self.limits.seconds:g} seconds; cut it, or raise --max-seconds"
                self.jobs.end(job, "failed", error=text)
                break
            if worker.memory > self.limits.ram:
                text = f"the image took more than {self.limits.ram / MB:g} MB of memory; cut it, or raise --max-ram"
                self.jobs.end(job, "failed", error=text)
                break
        with suppress(ProcessLookupError):
            worker.process.kill()
