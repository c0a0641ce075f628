"""A function of batches, replayed from a CUDA graph where batches of one shape repeat: launches then cost nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from ulna.errors import brief
from ulna.system.graphs import Recorder, Work

log = logging.getLogger(__name__)

MOST_GRAPHS = 4  # each keeps the memory of its maps
Shape = tuple[tuple[int, ...], torch.dtype]


class Graph(NamedTuple):
    """Recorded work between buffers that stay where they are.

    Args:
        source: what the work reads.
        result: what it writes.
        replay: does it again.
    """

    source: Tensor
    result: Tensor
    replay: Work

    def __call__(self, batch: Tensor) -> Tensor:
        """The answer for a batch of this shape, or a smaller one; good until the next call."""
        self.source[: len(batch)].copy_(batch)  # what is left of an earlier, larger batch is computed, and not read
        self.replay()
        return self.result[: len(batch)]


class Replayed:
    """Calls a function as it is the first time that a shape comes, and records it the second time.

    A smaller batch of the same images goes through the graph of a larger one where that is no more than twice its size. Where
    recording fails, everything is called as it is from then on, with one line in the log.

    Args:
        run: (N, C, *S) -> (N, K, *S), with everything that it reads beside its argument staying where it is.
        recorder: makes graphs of it; None: never.
    """

    def __init__(self, run: Callable[[Tensor], Tensor], recorder: Recorder | None) -> None:
        self._run, self._recorder = run, recorder
        self._graphs: dict[Shape, Graph] = {}
        self._seen: set[Shape] = set()

    def __call__(self, batch: Tensor) -> Tensor:
        """The answer; good until the next call."""
        if self._recorder is None:
            return self._run(batch)
        graph = self._graph(batch)
        if graph is not None:
            return graph(batch)
        shape = (tuple(batch.shape), batch.dtype)
        if shape not in self._seen:
            # one that comes once is not worth recording, and the first call may set things up
            self._seen.add(shape)
            return self._run(batch)
        if len(self._graphs) >= MOST_GRAPHS:
            return self._run(batch)
        try:
            graph = self._graphs[shape] = self._recorded(batch, self._recorder)
        except torch.OutOfMemoryError:
            self.forget()
            raise  # smaller batches may be recorded yet
        except Exception as error:  # whatever a kernel, a driver or a version of torch says
            log.info(
                "note: windows go without a CUDA graph, as none could be made (%s)",
                brief(str(error.__context__ or error)),
            )
            self.forget()
            self._recorder = None
            return self._run(batch)
        return graph(batch)

    def forget(self) -> None:
        """Let go of all graphs, and of the memory that they keep."""
        self._graphs.clear()
        self._seen.clear()

    def _graph(self, batch: Tensor) -> Graph | None:
        """The smallest graph that this batch goes through without much waste."""
        fits = [
            (size[0], graph)
            for (size, dtype), graph in self._graphs.items()
            if dtype == batch.dtype and size[1:] == batch.shape[1:] and len(batch) <= size[0] <= 2 * len(batch)
        ]
        return min(fits, key=lambda fit: fit[0])[1] if fits else None

    def _recorded(self, batch: Tensor, recorder: Recorder) -> Graph:
        source = batch.clone()
        made: list[Tensor] = []

        def work() -> None:
            made[:] = [self._run(source)]

        with fastest_convolutions():
            recorder.run(work)
            replay = recorder.record(work)
        return Graph(source, made[0], replay)


@contextmanager
def fastest_convolutions() -> Iterator[None]:
    """Within it cuDNN looks for the fastest form of every convolution: a shape that repeats is worth it."""
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
