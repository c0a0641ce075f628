"""Cases side by side: the next one is read while one is computed, and the last one is written meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Generic, TypeVar

import torch

from ulna.system.signals import Interruption

T = TypeVar("T")
R = TypeVar("R")


def overlaps(device: torch.device) -> bool:
    """Whether cases go side by side: where a GPU computes. A CPU has its processors in use already: on 2 busy cores, with 2
    threads and small made images in the page cache, it gained nothing that the noise would show (docs/predicting.md, Many
    cases; `benchmarks/many_cases.py --overlap`). There processes overlap, by `--jobs`."""
    return device.type == "cuda"


class Pipeline(Generic[T, R]):
    """One thread that reads and one that writes, each with one case at most.

    No thread is ever interrupted: what is being written when a person stops the work is written to its end.

    Args:
        read: what is to be computed with, from an item; its errors come out of `take`.
        interruption: signals wait while work is handed over.

    Example:
        with Pipeline(read, interruption) as pipeline:
            for item, following in pairs:
                given = pipeline.take(item)
                pipeline.begin(following)
                result = compute(given)
                pipeline.put(lambda: write(result))
    """

    side_by_side = True

    def __init__(self, read: Callable[[T], R], interruption: Interruption) -> None:
        self._read, self._interruption = read, interruption
        self._reader, self._writer = (ThreadPoolExecutor(1, f"ulna-{what}") for what in ("read", "write"))
        self._begun: tuple[T, Future[R]] | None = None
        self._writing: Future[None] | None = None

    def __enter__(self) -> Pipeline[T, R]:
        return self

    def __exit__(self, *raised: object) -> None:
        with self._interruption.held():
            self._writer.shutdown(wait=True)
            self._reader.shutdown(wait=raised[0] is None, cancel_futures=True)  # what it reads is wanted no more

    def held(self) -> AbstractContextManager[None]:
        """For what must be written to its end: no signal reaches a thread."""
        return nullcontext()

    def begin(self, item: T) -> None:
        """Begin to read what will be taken next."""
        with self._interruption.held():
            self._begun = (item, self._reader.submit(self._read, item))

    def take(self, item: T) -> R:
        """What was read of an item; it is read now where that was not begun."""
        begun, self._begun = self._begun, None
        if begun is not None and begun[0] is item:
            return begun[1].result()
        return self._read(item)

    def put(self, write: Callable[[], None]) -> None:
        """Begin to write, once what was put before is written; `write` sees to its own errors."""
        self.wait()
        with self._interruption.held():
            self._writing = self._writer.submit(write)

    def wait(self) -> None:
        """Until nothing is being written."""
        if self._writing is not None:
            self._writing.result()
            self._writing = None


class OneByOne(Pipeline[T, R]):
    """The same without threads: every case is read, computed and written before the next one."""

    side_by_side = False

    def held(self) -> AbstractContextManager[None]:
        """A signal waits."""
        return self._interruption.held()

    def begin(self, item: T) -> None:
        """It is read when it is taken."""

    def put(self, write: Callable[[], None]) -> None:
        """Write it now."""
        write()
