"""A function of tensors that is recorded once and then repeated: its inputs are copied to where the recorded ones lay."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from ulna.errors import brief
from ulna.system.graphs import Recorder

log = logging.getLogger(__name__)

WARM_UP = 3  # calls before one is recorded: memory is made, kernels are compiled and chosen
Inputs = Sequence[Tensor | None]


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

    def settled(self, *, way: bool) -> bool:
        """Whether calls of a way take as long from now on as they will: it is recorded, or nothing will be."""
        return self._recorder is None or way in self._replays

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
            # the end of a recording complains of its own where something failed in it
            said = error.__context__ or error
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
