"""Work on a GPU, recorded once and repeated as one CUDA graph.

A step of a small network is a thousand launches that take longer than the work; repeated as a graph it is one. A graph
repeats kernels with the addresses and numbers that they had: what changes from time to time must lie in tensors that stay.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

import torch

SWITCH = "ULNA_GRAPH"  # environment variable: 0 switches CUDA graphs off
Work = Callable[[], None]


class Recorder(Protocol):
    """What can record the work of a device."""

    def run(self, work: Work) -> None:
        """Work that will be recorded later, as it is."""

    def record(self, work: Work) -> Work:
        """Note the work without doing it; gives what does it, again and again.

        Raises:
            Exception: whatever the device says where it cannot; nothing has been done then.
        """


class CudaGraphs:
    """Graphs of the current GPU, all in one pool of memory: only one of them runs at a time.

    Random numbers go on as they would without a graph: torch moves its generator on by what a graph draws whenever that is
    repeated. So the state of the generator in a checkpoint is that of the same steps without graphs.

    Args:
        draws: whether what is recorded may draw random numbers. What does not is kept off the generator: a recording that
            fails would leave it to be replaced, and graphs recorded before would move on the one that nobody reads.
    """

    def __init__(self, *, draws: bool) -> None:
        self.stream: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self.pool = torch.cuda.graph_pool_handle()
        self.draws = draws

    def run(self, work: Work) -> None:
        # on the stream of the recording: gradients are added up on the stream on which they were first made
        here = torch.cuda.current_stream()
        self.stream.wait_stream(here)
        with torch.cuda.stream(self.stream):
            work()
        here.wait_stream(self.stream)

    def record(self, work: Work) -> Work:
        graph, here = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        own, fresh = generator.graphsafe_get_state(), generator.clone_state()
        if not self.draws:
            generator.graphsafe_set_state(fresh)
        try:
            # threads that bring the next batches go on meanwhile
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
                work()
        except Exception:
            torch.cuda.set_stream(here)  # torch leaves it only where the recording ends well
            self._end_allocation()
            if self.draws:
                generator.graphsafe_set_state(fresh)  # the other one takes itself for recorded still
            raise
        finally:
            if not self.draws:
                generator.graphsafe_set_state(own)
        return graph.replay

    def _end_allocation(self) -> None:
        """Where the driver refuses a recording, torch does not get to ending it in its allocator, which would keep all
        blocks of the batches from then on, and the pool for ever."""
        calls: Any = torch._C
        device = torch.cuda.current_device()
        with suppress(RuntimeError):  # it was ended
            calls._cuda_endAllocateToPool(device, self.pool)
            calls._cuda_releasePool(device, self.pool)


def graphs_allowed() -> bool:
    """Whether they are not switched off."""
    return os.environ.get(SWITCH, "1") != "0"


def graphs_for(device: torch.device, *, draws: bool) -> CudaGraphs | None:
    """What records the work of a device; None where nothing does, or where graphs are switched off. `draws` as above."""
    return CudaGraphs(draws=draws) if device.type == "cuda" and graphs_allowed() else None
