"""Runs commands of ulna in forked processes and hurts them at chosen moments: kill, signal, or a failing operation.

`hurt([Job, ...])` starts this file once; what it imports is paid for once, and every job runs in a fork of it.
"""

from __future__ import annotations

import builtins
import errno
import io
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from tests.places import ROOT


class Job(NamedTuple):
    """One command, and what happens to it.

    Args:
        arguments: of `ulna`.
        folder: operations on files below it count.
        operation: "write", "fsync", "rename", "validation", "step", "delay" (number is seconds), "file size" (number is
            bytes), or "" for none.
        number: which one, from 1.
        act: "kill", "term", "fail" (this one alone) or "full" (writes fail from this one on, as on a full disk).
    """

    arguments: list[str]
    folder: str
    operation: str = ""
    number: float = 0
    act: str = "kill"


class Outcome(NamedTuple):
    """Exit code (negative: the signal), what it printed, how often each operation happened, and seconds."""

    code: int
    err: str
    counts: dict[str, int]
    seconds: float


def hurt(jobs: list[Job], tmp: Path) -> list[Outcome]:
    """Run all jobs, one after the other."""
    (tmp / "jobs.json").write_text(json.dumps(jobs))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.training.victims", str(tmp)]
    subprocess.run(command, check=True, cwd=ROOT, env=environment, timeout=1500)
    return [Outcome(*values) for values in json.loads((tmp / "outcomes.json").read_text())]


class Operations:
    """Counts operations and acts at one of them; installed in the forked process only."""

    def __init__(self, job: Job) -> None:
        self.job, self.counts = job, Counter()

    def happens(self, operation: str) -> None:
        self.counts[operation] += 1
        if operation != self.job.operation:
            return
        at, wanted = self.counts[operation], int(self.job.number)
        if at == wanted and self.job.act in ("kill", "term"):
            os.kill(os.getpid(), signal.SIGKILL if self.job.act == "kill" else signal.SIGTERM)
        if (at == wanted and self.job.act == "fail") or (at >= wanted and self.job.act == "full"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def below(self, path: Any) -> bool:
        return isinstance(path, str | os.PathLike) and os.fspath(path).startswith(self.job.folder)

    def near(self, descriptor: int) -> bool:
        """Whether an open file is one of the folder, or holds its name: a kernel may be compiled meanwhile, and be kept."""
        try:
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
        except OSError:  # another system, which does not say
            return True
        return self.below(path) or path == Path(self.job.folder).parent

    def install(self) -> None:
        from ulna.training import loop, validation

        operations, fsync, replace, rename = self, os.fsync, os.replace, os.rename
        opened, scored, step = io.open, validation.score_labels, loop.Loop._step

        class Raw(io.FileIO):
            def write(self, data: Any) -> int:
                operations.happens("write")
                return super().write(data)

        def open_counted(file: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
            if not operations.below(file) or not set(mode) & set("wax+"):
                return opened(file, mode, *rest, **options)
            raw = Raw(file, mode.replace("b", "").replace("t", ""))
            buffer = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            return buffer if "b" in mode else io.TextIOWrapper(buffer, encoding="utf-8")

        def counted(operation: str, function: Any) -> Any:
            def wrapper(*arguments: Any, **options: Any) -> Any:
                operations.happens(operation)
                return function(*arguments, **options)

            return wrapper

        def synced(file: Any) -> None:
            if operations.near(file if isinstance(file, int) else file.fileno()):
                operations.happens("fsync")
            fsync(file)

        def moved(function: Any) -> Any:
            def wrapper(source: Any, target: Any, **options: Any) -> Any:
                if operations.below(target):
                    operations.happens("rename")
                return function(source, target, **options)

            return wrapper

        io.open = builtins.open = open_counted
        os.fsync, os.replace, os.rename = synced, moved(replace), moved(rename)
        validation.score_labels = counted("validation", scored)
        loop.Loop._step = counted("step", step)


def _child(job: Job, tmp: Path, output: int) -> None:
    """What the fork does: never returns."""
    from ulna.cli import main as cli

    code = 99
    try:
        os.dup2(output, 1)
        os.dup2(output, 2)
        operations = Operations(job)
        operations.install()
        if job.operation == "file size":
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(job.number), resource.RLIM_INFINITY))
        code = cli.run(job.arguments)
        sys.stdout.flush()
        if job.operation == "file size":
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        Path(tmp / "counts").write_text(json.dumps(operations.counts))
    finally:
        os._exit(code)


def _run(job: Job, tmp: Path) -> Outcome:
    (tmp / "counts").unlink(missing_ok=True)
    start = time.monotonic()
    reader, writer = os.pipe()  # not a file: its size would count
    child = os.fork()
    if not child:
        _child(job, tmp, writer)
    os.close(writer)
    if job.operation == "delay":
        time.sleep(job.number)
        os.kill(child, signal.SIGKILL if job.act == "kill" else signal.SIGTERM)
    with os.fdopen(reader, encoding="utf-8") as file:
        err = file.read()
    _, status = os.waitpid(child, 0)
    seconds = time.monotonic() - start
    counts = json.loads((tmp / "counts").read_text()) if (tmp / "counts").exists() else {}
    return Outcome(os.waitstatus_to_exitcode(status), err, counts, seconds)


def main(tmp: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import torch
    import tyro  # noqa: F401

    import ulna.cli.tables
    import ulna.evaluation.evaluate
    import ulna.training.train  # noqa: F401

    torch.set_num_threads(1)
    jobs = [Job(*values) for values in json.loads((tmp / "jobs.json").read_text())]
    (tmp / "outcomes.json").write_text(json.dumps([_run(job, tmp) for job in jobs]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
