"""A function of batches, replayed from a CUDA graph where batches of one shape repeat: launches then cost nothing."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

log = logging.getLogger(__name__)

SWITCH = "ULNA_GRAPH"  # environment variable: 0 switches CUDA graphs off
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
    replay: Callable[[], object]

    def __call__(self, batch: Tensor) -> Tensor:
        """The answer for a batch of this shape, or a smaller one; good until the next call."""
        self.source[: len(batch)].copy_(batch)  # what is left of an earlier, larger batch is computed, and not read
        self.replay()
        return self.result[: len(batch)]


Record = Callable[[Callable[[Tensor], Tensor], Tensor], Graph]


class Replayed:
    """Calls a function as it is the first time that a shape comes, and records it the second time.

    A smaller batch of the same images goes through the graph of a larger one where that is no more than twice its size. Where
    recording fails, everything is called as it is from then on, with one line in the log.

    Args:
        run: (N, C, *S) -> (N, K, *S), with everything that it reads beside its argument staying where it is.
        record: makes a graph of it; None for never.
    """

    def __init__(self, run: Callable[[Tensor], Tensor], record: Record | None) -> None:
        self._run, self._record = run, record
        self._graphs: dict[Shape, Graph] = {}
        self._seen: set[Shape] = set()

    def __call__(self, batch: Tensor) -> Tensor:
        """The answer; good until the next call."""
        if self._record is None:
            return self._run(batch)
        graph = self._graph(batch)
        if graph is not None:
            return graph(batch)
        shape = (tuple(batch.shape), batch.dtype)
        if (
            shape not in self._seen
        ):  # a shape that comes once is not worth recording, and the first call may set things up
            self._seen.add(shape)
            return self._run(batch)
        if len(self._graphs) >= MOST_GRAPHS:
            return self._run(batch)
        try:
            graph = self._graphs[shape] = self._record(self._run, batch)
        except RuntimeError as error:
            log.info("windows are computed without a CUDA graph (%s)", str(error).partition("\n")[0])
            self.forget()
            self._record = None
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


def recorder_for(device: torch.device) -> Record | None:
    """What records the work of a device; None where nothing does, or where graphs are switched off."""
    return cuda_graph if device.type == "cuda" and os.environ.get(SWITCH, "1") != "0" else None


def cuda_graph(run: Callable[[Tensor], Tensor], batch: Tensor) -> Graph:
    """A CUDA graph of a function for batches like this one.

    Raises:
        RuntimeError: if something in it cannot be recorded, or the memory does not hold it.
    """
    source = torch.empty_like(batch).copy_(batch)
    searches, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True  # a shape that repeats is worth it
    try:
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            run(source)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may go on copying
            result = run(source)
    finally:
        torch.backends.cudnn.benchmark = searches
    return Graph(source, result, graph.replay)
