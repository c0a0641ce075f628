"""A function of tensors, recorded once on a GPU and repeated as one CUDA graph.

A step of a small network is a thousand launches that take longer than the work; repeated as a graph it is one. A graph
repeats kernels with the addresses and numbers that they had: inputs are copied to where the recorded ones lay, and what
changes from step to step must lie in tensors.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from ulna.errors import brief

log = logging.getLogger(__name__)

SWITCH = "ULNA_GRAPH"  # environment variable: 0 switches CUDA graphs off
WARM_UP = 3  # calls before one is recorded: memory is made, kernels are compiled and chosen
Inputs = Sequence[Tensor | None]


class Recorder(Protocol):
    """What can record the work of a device."""

    def run(self, work: Callable[[], None]) -> None:
        """Work that will be recorded later, as it is."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Note the work without doing it; gives what does it, again and again.

        Raises:
            Exception: whatever the device says where it cannot; nothing has been done then.
        """


class CudaGraphs:
    """Graphs of the current GPU, all in one pool of memory: only one of them runs at a time.

    Random numbers go on as they would without a graph: torch moves its generator on by what a graph draws whenever that is
    repeated. So the state of the generator in a checkpoint is that of the same steps without graphs.
    """

    def __init__(self) -> None:
        self.stream: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self.pool = torch.cuda.graph_pool_handle()

    def run(self, work: Callable[[], None]) -> None:
        # on the stream of the recording: gradients are added up on the stream on which they were first made
        here = torch.cuda.current_stream()
        self.stream.wait_stream(here)
        with torch.cuda.stream(self.stream):
            work()
        here.wait_stream(self.stream)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        graph, here = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        before = generator.clone_state()
        try:
            # threads that bring the next batches go on meanwhile
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
                work()
        except Exception:
            torch.cuda.set_stream(here)  # torch leaves it only where the recording ends well
            generator.graphsafe_set_state(before)  # the other one takes itself for recorded still
            raise
        return graph.replay


class Replayed:
    """A function of tensors that is called again and again with others of the same shapes.

    The first calls are made as they are; then it is recorded and every further call repeats the recording. Where that
    fails, the function is called as ever, and the log says so once. So n calls do what n calls of the function do.

    Args:
        work: (*tensors, way) -> None; what it makes, it leaves in tensors of its own.
        recorder: None: nothing is recorded.
        warm_up: calls of every way before it is recorded.
    """

    def __init__(self, work: Callable[..., None], recorder: Recorder | None, *, warm_up: int = WARM_UP) -> None:
        self._work, self._recorder, self._warm_up = work, recorder, warm_up
        self._calls: dict[bool, int] = {}
        self._inputs: Inputs | None = None
        self._replays: dict[bool, Callable[[], None]] = {}

    @property
    def settled(self) -> bool:
        """Whether calls from now on take as long as they will: some way is recorded, or nothing will be."""
        return self._recorder is None or bool(self._replays)

    def __call__(self, *tensors: Tensor | None, way: bool = False) -> None:
        """Call the function; `way` tells apart what is recorded by itself."""
        if self._recorder is None:
            self._work(*tensors, way)
            return
        calls = self._calls.get(way, 0)
        if calls < self._warm_up or not self._fits(tensors):
            self._calls[way] = calls + 1
            self._recorder.run(partial(self._work, *tensors, way))
            return
        if self._inputs is None:
            self._inputs = [None if t is None else torch.empty_like(t) for t in tensors]
        for mine, given in zip(self._inputs, tensors, strict=True):
            if mine is not None and given is not None:
                mine.copy_(given, non_blocking=True)
        if way not in self._replays and not self._record(way):
            self._work(*tensors, way)
            return
        self._replays[way]()

    def _record(self, way: bool) -> bool:
        assert self._recorder is not None and self._inputs is not None
        try:
            self._replays[way] = self._recorder.record(partial(self._work, *self._inputs, way))
        except Exception as error:  # whatever a kernel, a driver or a version of torch says
            said = (
                error.__context__ or error
            )  # the end of a recording complains of its own where something failed in it
            log.info("note: steps go one by one, as no CUDA graph could be made of them (%s)", brief(str(said)))
            self._recorder, self._inputs = None, None
            self._replays.clear()
            return False
        return True

    def _fits(self, tensors: Inputs) -> bool:
        """Whether tensors lie as the recorded ones."""
        if self._inputs is None:
            return True
        return all(
            (mine is None and given is None)
            or (mine is not None and given is not None and (mine.shape, mine.dtype) == (given.shape, given.dtype))
            for mine, given in zip(self._inputs, tensors, strict=True)
        )


def graphs_for(device: torch.device) -> CudaGraphs | None:
    """What records the steps of a device; None where nothing does, or where graphs are switched off."""
    return CudaGraphs() if device.type == "cuda" and os.environ.get(SWITCH, "1") != "0" else None
