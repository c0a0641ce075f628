"""The samples of a training: prepared cases, kept in memory where they fit, cut and changed by their own random stream."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from ulna.data.formats.label_maps import encode_labels
from ulna.data.formats.limits import within_memory
from ulna.data.layout.case import Case
from ulna.data.pipeline.augment import Augment
from ulna.data.pipeline.patches import crop_patch, epoch_order, sample_stream
from ulna.data.pipeline.preprocess import Prepared, prepare, prepare_labels
from ulna.recipe import Plan


class PreparedCases:
    """Cases as the network sees them; read once, and kept while they fit into a share of the memory.

    Args:
        cases: labelled cases.
        plan: how to prepare them.
        on_grid: references on the plan's grid, as training wants them; else on that of the file, as validation does.
        keep_bytes: how much may be kept; None is a quarter of what is free now.
        copies: processes that keep cases of their own, and share that memory.
    """

    def __init__(
        self, cases: Sequence[Case], plan: Plan, *, on_grid: bool = True, keep_bytes: int | None = None, copies: int = 1
    ) -> None:
        self.cases, self.plan, self.on_grid = list(cases), plan, on_grid
        self._kept: dict[int, tuple[Prepared, Tensor]] = {}
        self._room = (_free_memory() // 4 if keep_bytes is None else keep_bytes) // max(1, copies)

    def __len__(self) -> int:
        return len(self.cases)

    def fill(self) -> Iterator[int]:
        """Read the cases that fit into memory, one a step; their numbers.

        Ahead of the first training step: read between steps, each would break up a gap that a map needs again.
        """
        for index in range(len(self.cases)):
            self[index]
            if index not in self._kept:
                return
            yield index

    def __getitem__(self, index: int) -> tuple[Prepared, Tensor]:
        """The image on the plan's grid and its reference: (C, *S'), and (*S') or (K, *S') (without `on_grid`: S)."""
        if index in self._kept:
            return self._kept[index]
        with within_memory(self.cases[index].images[0]):
            return self._prepared(index)

    def _prepared(self, index: int) -> tuple[Prepared, Tensor]:
        case = self.cases[index]
        volume = case.read_image()
        prepared = prepare(volume, self.plan)
        reference = encode_labels(case.read_labels(), self.plan.labels)
        if self.on_grid:
            labels = prepare_labels(reference, volume, self.plan)
        else:
            labels = torch.from_numpy(np.ascontiguousarray(reference))
        size = prepared.image.nbytes + labels.nbytes
        if size <= self._room:
            self._room -= size
            self._kept[index] = (prepared, labels)
        return prepared, labels


class Samples(TorchDataset):
    """Random patches; asked for by (epoch, number of the sample, case), so that each draws from its own stream."""

    def __init__(self, cases: PreparedCases, *, augment: Augment | None, foreground: float, seed: int) -> None:
        self.cases, self.augment, self.foreground, self.seed = cases, augment, foreground, seed

    def __getitem__(self, key: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        epoch, number, case = key
        generator = sample_stream(self.seed, epoch, number)
        prepared, labels = self.cases[case]
        image, labels = crop_patch(
            prepared.image, labels, self.cases.plan.patch, foreground=self.foreground, generator=generator
        )
        return (image, labels) if self.augment is None else self.augment(image, labels, generator)


class Batches:
    """The keys of one epoch after another, batch by batch; can start in the middle of an epoch."""

    def __init__(self, cases: int, count: int, batch: int, seed: int) -> None:
        self.cases, self.batch, self.seed = cases, batch, seed
        self.steps = max(1, -(-count // batch))
        self.epoch, self.first_step = 0, 0

    def __len__(self) -> int:
        return self.steps - self.first_step

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        order = epoch_order(self.cases, self.steps * self.batch, seed=self.seed, epoch=self.epoch)
        keys = [(self.epoch, number, case) for number, case in enumerate(order)]
        for step in range(self.first_step, self.steps):
            yield keys[step * self.batch : (step + 1) * self.batch]


def worker_count(wanted: int | None, device: str) -> int:
    """Processes that load samples: none beside a CPU, which computes anyway; four beside a GPU."""
    if wanted is not None:
        return wanted
    return 0 if device == "cpu" else 4


def _free_memory() -> int:
    """Bytes that this process may still take: of the machine, or of the container where that allows less."""
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # not every system tells
        free = 4 * 2**30
    folder = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError):  # "max" where there is no limit
        free = min(free, int((folder / "memory.max").read_text()) - int((folder / "memory.current").read_text()))
    return max(free, 0)
