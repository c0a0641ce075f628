"""The batches of a training, made on its device: on a GPU the next one is copied and made while a step runs.

Samples are drawn, and cases that are not kept are read, ahead in threads where there are any: reading, unpacking and
resampling release the interpreter. All work of the device is queued by the thread of the training, so that none is queued
while that captures a graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from ulna.system.ahead import ahead
from ulna.system.ranks import ALONE, Ranks
from ulna.training.samples import Batches, Key, Sample, Samples

Batch = tuple[Tensor, Tensor]


class Feed:
    """Batches (N, C, *patch) and (N, *patch) or (N, K, *patch) in the order of the keys, wherever an epoch begins.

    Args:
        samples: of the training cases.
        batches: which samples, and in which order.
        device: where batches are made, and where steps run.
        threads: that draw and read ahead; 0: all is done in the thread of the training.
        ranks: that share every batch; each makes its own samples alone.
    """

    def __init__(
        self, samples: Samples, batches: Batches, device: torch.device, threads: int, ranks: Ranks = ALONE
    ) -> None:
        self.samples, self.batches, self.device, self.threads = samples, batches, device, threads
        self.ranks = ranks
        # one for all epochs: what torch keeps of freed memory belongs to a stream
        self._beside: torch.cuda.Stream | None = None

    def __iter__(self) -> Iterator[Batch]:
        """The batches of one epoch, from the first step that `batches` names."""
        return self._made(ahead(self._draw, self.batches, self.threads))

    def _draw(self, keys: list[Key]) -> list[Sample]:
        return [self.samples.draw(key) for key in keys[self.ranks.rows(len(keys))]]

    def _made(self, drawn: Iterable[list[Sample]]) -> Iterator[Batch]:
        if self.device.type != "cuda":
            for one in drawn:
                yield self.samples.make(one, self.device)
            return
        beside = self._beside = self._beside or torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        waiting: tuple[Batch, torch.cuda.Event] | None = None
        beside.wait_stream(torch.cuda.current_stream(self.device))  # that the cases came by
        for one in drawn:
            with torch.cuda.stream(beside):
                batch = self.samples.make(one, self.device)
                made = beside.record_event()
            if waiting is not None:
                yield _handed(*waiting)
            waiting = batch, made
        if waiting is not None:
            yield _handed(*waiting)


def _handed(batch: Batch, made: torch.cuda.Event) -> Batch:
    """A batch of another stream, for the one that steps run on."""
    stream = torch.cuda.current_stream()
    stream.wait_event(made)
    for tensor in batch:
        tensor.record_stream(stream)
    return batch


def thread_count(wanted: int | None, device: str) -> int:
    """Threads that draw samples: none beside a CPU, which computes anyway; four beside a GPU."""
    if wanted is not None:
        return wanted
    return 0 if device == "cpu" else 4
