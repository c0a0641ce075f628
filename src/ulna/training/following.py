"""A process of a training on several devices that is not the first: `python -m ulna.training.following PLACE RANK COUNT`.

It computes its share of every batch and scores its cases, as the first one orders on its input, and writes nothing. It
hears no signal: it ends with its input, that is, with the first one.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from ulna.errors import UsageError
from ulna.inference.segmenter import network_for
from ulna.kernels.allocator import tune_memory
from ulna.networks.foreign import permit_stored
from ulna.system.device import default_device
from ulna.system.ranks import Lost, joined
from ulna.training.crew import Crew, Task
from ulna.training.loop import Loop
from ulna.training.optimizers import set_lr
from ulna.training.samples import PreparedCases
from ulna.training.slices import training_samples
from ulna.training.stopping import Stop


class Orders:
    """What the first process says, one order after the other; where it says no more, this process ends.

    Args:
        source: what it writes to.
        place: of the file by which they meet.
    """

    def __init__(self, source: IO[bytes], place: Path) -> None:
        self._source, self._place = source, place
        self._lines: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def __next__(self) -> dict[str, Any]:
        return self._lines.get()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def _read(self) -> None:
        for line in self._source:
            order = json.loads(line)
            self._lines.put(order)
            if order.get("order") == "end":
                return
        # the first process has gone, wherever this one is, and cannot tidy up
        shutil.rmtree(self._place.parent, ignore_errors=True)
        os._exit(1)


class Follower:
    """Does what it is told.

    Args:
        loop: of the training, as the first process has it.
    """

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self._batches: Iterator[tuple[Tensor, Tensor]] = iter(())

    def begin(self, size: int, state: Mapping[str, Any]) -> None:
        """Begin with the weights, and all else that a checkpoint holds, of the first process."""
        self.loop.snapshot.receive(size, state)

    def read(self) -> int:
        """Read the training cases; how many."""
        return sum(1 for _ in self.loop.samples.cases.fill(self.loop.feed.threads))

    def epoch(self, epoch: int, first: int, end: int) -> None:
        """Steps of an epoch come next, from one to another."""
        self.loop.state.epoch, self.loop.state.losses = epoch, []
        self.loop.begin_steps(first, end)
        self._batches = iter(self.loop.feed)

    def step(self, step: int, lr: float) -> None:
        """Take a step together."""
        set_lr(self.loop.optimizer, lr)
        self.loop._step(*next(self._batches), step)

    def statistics(self) -> None:
        """Take over those of batch norm."""
        self.loop.share_statistics()

    def score(self, cases: list[int]) -> dict[str, float] | None:
        """Score the case of this process, where there is one."""
        rank = self.loop.crew.ranks.rank
        if rank >= len(cases):
            return None
        with self.loop.validation.evaluating():
            return self.loop.validation._score(cases[rank])


ANSWERED = ("read", "score")


def obey(loop: Loop, orders: Iterator[dict[str, Any]], answer: Callable[[Any], object]) -> None:
    """Do what the first process says, until it says that it is enough."""
    follower = Follower(loop)
    with loop.together():
        for told in orders:
            order = told.pop("order")
            if order == "end":
                return
            made = getattr(follower, order)(**told)
            if order in ANSWERED:
                answer(made)


def follow(orders: Orders, answers: IO[str], place: Path, rank: int, count: int) -> None:
    """Compute for the first process until it says that it is enough."""
    task = Task.from_text(next(orders)["task"])
    device = default_device()
    torch.set_num_threads(task.threads)
    plan, recipe = task.plan, task.recipe
    permit_stored(recipe.architecture.foreign, task.folder, allow_code=task.allow_code)
    torch.manual_seed(recipe.training.seed)
    network = network_for(recipe, plan, torch.Generator().manual_seed(recipe.training.seed))
    samples = training_samples(
        task.train, plan, recipe,
        folder=task.folder, device=device, device_bytes=task.device_bytes, sharing=count,
    )  # fmt: skip
    val = PreparedCases(task.val, plan, on_grid=False, sharing=count)
    _say(answers, answer="here")
    with joined(place, rank, count, device) as ranks:
        crew = Crew()
        crew.ranks = ranks
        loop = Loop(
            network,
            plan,
            recipe,
            val=val,
            samples=samples,
            folder=task.folder,
            stop=Stop(""),
            taken=task.taken,
            crew=crew,
        )
        obey(loop, orders, lambda made: _say(answers, answer=made))


def _say(answers: IO[str], **values: Any) -> None:
    answers.write(json.dumps(values) + "\n")
    answers.flush()


def main(words: list[str]) -> int:
    """Run one process; returns its exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # what libraries print goes elsewhere
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    tune_memory()
    try:
        place = Path(words[0])
        follow(Orders(sys.stdin.buffer, place), answers, place, int(words[1]), int(words[2]))
    except Lost:
        return 1  # whoever has gone, the first process sees it
    except UsageError as error:
        _say(answers, error=str(error), defect=False)
        return 2
    except Exception:
        _say(answers, error=traceback.format_exc(), defect=True)
        return 1
    return 0


if __name__ == "__main__":
    if code := main(sys.argv[1:]):
        os._exit(code)  # a thread still reads
