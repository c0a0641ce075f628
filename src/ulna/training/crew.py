"""The other processes of a training on several devices: begun here, told what comes next, and ended with this one.

This process is the first rank. It alone decides, reads clocks, hears signals and writes; the others wait for its orders, one
line each, and share its steps and validations. They end when their input does, however this one ends.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

import torch

from ulna.data.layout.case import Case
from ulna.errors import UsageError, brief, printable_text
from ulna.recipe import Plan, Recipe
from ulna.system.ranks import ALONE, Lost, Ranks, abandon, joined

LOOK_S = 0.2  # how often it is looked whether a signal has come while others are waited for
END_S = 10.0  # that a process may take to end
# After another process has gone: until this one has to have noticed; a sum on a GPU may wait for it for ever
NOTICE_S = 40.0
MOST_SAID = 4000  # signs of what a process says as it fails


@dataclass(frozen=True)
class Task:
    """What the other processes need to compute as this one.

    Args:
        plan: of the data set.
        recipe: resolved.
        train, val: the cases.
        folder: of the run, which they only read.
        taken: names of the weights that were taken over from another training.
        threads: of each.
        device_bytes: that cases may take on each GPU.
        allow_code: whether a person let the code of the network run.
    """

    plan: Plan
    recipe: Recipe
    train: Sequence[Case]
    val: Sequence[Case]
    folder: Path
    taken: Sequence[str]
    threads: int
    device_bytes: int
    allow_code: bool

    def to_text(self) -> str:
        """One word, for a process that this one begins."""
        return base64.b64encode(pickle.dumps(self)).decode()

    @staticmethod
    def from_text(text: str) -> Task:
        """What the process wrote that began this one."""
        task = pickle.loads(base64.b64decode(text))  # noqa: S301 - from the pipe of the process that began this one
        assert isinstance(task, Task)
        return task


class Crew:
    """The other processes of a training: there are none."""

    ranks: Ranks = ALONE
    threads: int | None = None  # of all together, where there are others and they share the processors of one CPU

    def tell(self, order: str, **values: Any) -> None:
        """Give all of them an order."""

    def answers(self, check: Callable[[], object] = lambda: None) -> list[Any]:
        """What each answers to the last order, by rank; `check` is called now and then meanwhile."""
        return []

    def check_whole(self) -> None:
        """Raise `Lost` where a sum may lack the part of another process; asked before what came of it is written."""


NOBODY = Crew()


class Processes(Crew):
    """As many as there are devices beside the first.

    Args:
        task: what is computed.
        place: of the file by which they meet.
        count: of devices.
        resume: the command that goes on.

    Raises:
        Lost: by every method, where one has gone.
    """

    def __init__(self, task: Task, place: Path, count: int, resume: str) -> None:
        self._resume, self._lost = resume, ""
        self._others = [_Other(rank, place, count, task.threads) for rank in range(1, count)]
        self._closing = False
        for other in self._others:
            other.ears = threading.Thread(target=self._listen, args=(other,), daemon=True)
            other.ears.start()
        with suppress(Lost):  # whoever has ended already says why where its answer is waited for
            self.tell("compute", task=task.to_text())

    def tell(self, order: str, **values: Any) -> None:
        for other in self._others:
            other.say({"order": order, **values})

    def answers(self, check: Callable[[], object] = lambda: None) -> list[Any]:
        return [other.answer(check) for other in self._others]

    def check_whole(self) -> None:
        if self._lost:
            raise Lost(self._lost)

    def close(self) -> None:
        """The training is over: each may end from here on."""
        self._closing = True
        self.tell("end")

    def end(self, *, well: bool) -> None:
        """No process is left after this; `well`: each is given time to end by itself."""
        self._closing = True
        for other in self._others:
            other.end(END_S if well else 0.0)

    def why(self, resume: str, seen: str) -> Exception:
        """What to tell a person of the process that has gone.

        Args:
            resume: the command that goes on.
            seen: what was seen of it here.
        """
        until = time.monotonic() + END_S
        while time.monotonic() < until:
            gone = [other for other in self._others if other.process.poll() is not None]
            # one that says why it ended is why the others ended
            gone.sort(key=lambda other: (not other.error, other.process.returncode >= 0))
            if gone:
                time.sleep(LOOK_S)  # for its last words
                return gone[0].why(len(self._others) + 1, resume)
            time.sleep(LOOK_S)
        return RuntimeError(
            f"the processes of this training cannot reach each other ({brief(seen)}); go on with: {resume}"
        )

    def _listen(self, other: _Other) -> None:
        other.listen()
        if self._closing or not torch.cuda.is_available():
            return  # on a CPU, whoever waits for it learns so at once
        # first: a sum that is given up returns as if it were whole
        self._lost = f"process {other.rank + 1} of the training has ended"
        with suppress(Exception):
            abandon()
        time.sleep(NOTICE_S)
        if not self._closing:
            told = f"error: {self._lost}, and the GPU waits for it; go on with: {self._resume}\n"
            os.write(2, told.encode())
            os._exit(1)


class _Other:
    """One of the other processes."""

    def __init__(self, rank: int, place: Path, count: int, threads: int) -> None:
        self.rank, self.error, self.defect = rank, "", False
        self.ears: threading.Thread  # that listen to it
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._told: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "ulna.training.following", str(place), str(rank), str(count)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._told,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), **_own_gpu(rank)},
            start_new_session=True,  # a Ctrl-C reaches the first process alone, which decides what comes of it
        )

    def say(self, values: Mapping[str, Any]) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(values).encode() + b"\n")
            self.process.stdin.flush()
        except OSError as error:
            raise Lost(str(error)) from error

    def listen(self) -> None:
        """Take what it says until it ends; in a thread of its own."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            said = json.loads(line)
            if "error" in said:
                self.error, self.defect = said["error"], said["defect"]
            else:
                self._answers.put(said)
        self._answers.put(None)

    def answer(self, check: Callable[[], object]) -> Any:
        while True:
            with suppress(queue.Empty):
                said = self._answers.get(timeout=LOOK_S)
                if said is None:
                    raise Lost(f"process {self.rank + 1} has ended")
                return said["answer"]
            check()

    def end(self, patience_s: float) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        with suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.ears.join(END_S)
        if not self.ears.is_alive():
            self.process.stdout.close()
        self._told.close()

    def why(self, count: int, resume: str) -> Exception:
        code, name = self.process.returncode, f"process {self.rank + 1} of {count} (number {self.process.pid})"
        if self.error and not self.defect:
            return UsageError(self.error)
        if code < 0:
            memory = ", most likely because the memory was full" if code == -9 else ""
            return UsageError(
                f"{name} of this training was ended from outside, by signal {-code}{memory}; the training goes on from its "
                f"last checkpoint with: {resume}"
            )
        self._told.seek(0)
        told = self.error or self._told.read()[-MOST_SAID:].decode(errors="replace")
        return RuntimeError(f"{name} of this training failed with exit code {code}; it said:\n{printable_text(told)}")


@contextmanager
def crew_of(task: Task, count: int, device: torch.device, resume: str) -> Iterator[Crew]:
    """The other processes of a training on so many devices, within; none is left afterwards, whatever happens.

    Args:
        task: what is computed.
        count: of devices.
        device: kind of them.
        resume: the command that goes on with the training.

    Raises:
        UsageError: where one of them was ended from outside, or says what is wrong.
        RuntimeError: where one failed: a defect.
    """
    if count == 1:
        yield NOBODY
        return
    with tempfile.TemporaryDirectory(prefix="ulna-", ignore_cleanup_errors=True) as folder:
        place, well = Path(folder) / "ranks", False
        others = Processes(task, place, count, resume)
        try:
            others.answers()  # each is there: none is waited for that never began
            with joined(place, 0, count, device) as ranks:
                others.ranks = ranks
                yield others
                others.close()
                well = True
        except Lost as error:
            _raise(others.why(resume, str(error)))
        finally:
            others.end(well=well)


def _raise(error: Exception) -> NoReturn:
    raise error from None


def _own_gpu(rank: int) -> dict[str, str]:
    """The environment in which a process sees its GPU alone."""
    if not torch.cuda.is_available():
        return {}
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    seen = [one.strip() for one in named.split(",")] if named else [str(n) for n in range(torch.cuda.device_count())]
    return {"CUDA_VISIBLE_DEVICES": seen[rank]}
