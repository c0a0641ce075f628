"""The samples of a training: prepared cases, kept where they fit, and random samples of them."""

from __future__ import annotations

import logging
import math
import os
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ulna.data.formats.label_maps import encode_labels
from ulna.data.formats.limits import within_memory
from ulna.data.layout.case import Case
from ulna.data.pipeline.augment import Augment, Draw, Piece
from ulna.data.pipeline.patches import Structures, epoch_order, patch_about, place_patch, sample_stream
from ulna.data.pipeline.preprocess import Prepared, prepare, prepare_labels
from ulna.data.prepared.key import Form
from ulna.data.prepared.store import CaseStore
from ulna.errors import UsageError, printable
from ulna.recipe import Plan, Training
from ulna.system.ahead import ahead
from ulna.system.device import to_device
from ulna.system.mapped import let_go
from ulna.training.by_slabs import prepare_by_slabs
from ulna.training.sampling import Balance, Chosen, Pieces, Sampling
from ulna.training.spool import Spool

log = logging.getLogger(__name__)

LABELS, REFERENCE = "labels", "reference"  # on the grid of the plan, on that of the file
Key = tuple[int, int, int]  # epoch, number of the sample in it, case (or slice)


class PreparedCases:
    """Cases as the network sees them; read once, and kept while they fit: on a GPU, in memory, then on disk.

    On disk they lie in the cache, for other trainings too, or where that does not take them, in a spool that ends with this
    process. What came from the cache takes no memory of its own: it is a map of a file.

    Args:
        cases: labelled cases.
        plan: how to prepare them.
        on_grid: references on the plan's grid, as training wants them; else on that of the file, as validation does.
        keep_bytes: how much may be kept in memory; None is a quarter of what is free now.
        device: where `fill` keeps cases first.
        device_bytes: how much may be kept there.
        sampling: what patches on structures are drawn from; "case": from each case by itself.
        store: the cache; None for none.
        folder: on the disk that keeps what neither memory nor cache do; None for none.
        sharing: processes that keep as much, beside each other.
        lean: ids of cases that memory does not hold whole: they are prepared by slabs, and lie in the spool.
        bounded: what lies on disk is no memory of this process but while it is looked at.
        structures_bytes: of where structures lie, that may be kept; None for all. Those of other cases are found again.
    """

    form: Form = ()  # in which a case is kept
    again = "sample"  # for which a case is read again that nothing keeps

    def __init__(
        self,
        cases: Sequence[Case],
        plan: Plan,
        *,
        on_grid: bool = True,
        keep_bytes: int | None = None,
        device: torch.device | None = None,
        device_bytes: int = 0,
        sampling: Sampling = "case",
        store: CaseStore | None = None,
        folder: Path | None = None,
        sharing: int = 1,
        lean: Collection[str] = (),
        bounded: bool = False,
        structures_bytes: int | None = None,
    ) -> None:
        self.cases, self.plan, self.on_grid = list(cases), plan, on_grid
        self.sampling, self.store = sampling, store
        self.lean, self.bounded = frozenset(lean), bounded
        self._in_files: set[int] = set()  # of those that are kept
        self._pieces: dict[int, Pieces] = {}
        self._kept: dict[int, tuple[Prepared, Tensor]] = {}
        self._structures: dict[int, Structures] = {}
        self._structures_room = math.inf if structures_bytes is None else structures_bytes
        self._mapped: set[int] = set()  # cases that came from the cache
        self._room = _free_memory() // 4 // sharing if keep_bytes is None else keep_bytes
        self._device, self._device_room = device, device_bytes
        # within a limit, validation has one, too
        self._spool = None if folder is None else Spool(folder, sharing=2 * sharing if bounded else sharing)
        self._said_full = False
        self._lock = threading.Lock()
        self._by_slabs = threading.Lock()  # one at a time

    def __len__(self) -> int:
        return len(self.cases)

    def fill(self, threads: int = 0) -> Iterator[int]:
        """Read the cases that fit, one a step; their numbers. All are read where samples are drawn from all together.

        Ahead of the first training step: read between steps, each would break up a gap that a map needs again.
        """
        numbers = range(len(self))
        for index, case in zip(numbers, ahead(self._read, numbers, threads), strict=True):
            self._keep(index, case, on_device=True)
            if not self.keeps(index) and self.sampling == "case":
                return
            yield index

    def keeps(self, index: int) -> bool:
        """Whether a case lies ready."""
        return index in self._kept

    def lies_in_a_file(self, index: int) -> bool:
        """Whether a case is mapped from a disk, and this process keeps to a limit."""
        return self.bounded and index in self._in_files

    def held(self, index: int, piece: Piece) -> Piece:
        """A piece of a case as it may be held until its batch is made."""
        if self.keeps(index) and not self.lies_in_a_file(index):
            return piece
        piece = piece.map(torch.clone)  # a view would hold a case that nobody keeps
        if self.lies_in_a_file(index):
            self._let_go(*self._kept[index])
        return piece

    def structures(self, index: int) -> Structures:
        """Where the structures of a case lie, which was asked for before."""
        if index in self._structures:
            return self._structures[index]
        labels = self._kept[index][1]
        found = Structures(labels, self.plan.spatial_dims, self.plan.labels.ignored)
        if self.lies_in_a_file(index):
            let_go(labels)
        return found

    @cached_property
    def balance(self) -> Balance | None:
        """The structures of all cases, which must be filled; None where samples are drawn from each case by itself."""
        return None if self.sampling == "case" else Balance([self._pieces[index] for index in range(len(self))])

    def __getitem__(self, index: int) -> tuple[Prepared, Tensor]:
        """The image on the plan's grid and its reference: (C, *S'), and (*S') or (K, *S') (without `on_grid`: S)."""
        case = self._read(index)
        self._keep(index, case)
        return self._kept.get(index, case)

    def _read(self, index: int) -> tuple[Prepared, Tensor]:
        if index in self._kept:
            return self._kept[index]
        case = self.cases[index]
        if case.id in self.lean:
            return self._read_by_slabs(index, case)
        with within_memory(case.images[0]):
            found = None if self.store is None else self.store.get(case, self.form)
            if found is None:
                prepared, maps = self._prepared(case)
                if self._is_for_the_store(prepared, maps):
                    assert self.store is not None
                    found = self.store.put(case, self.form, prepared, maps)
            if found is not None:
                prepared, maps = found
                self._mapped.add(index)
            labels = maps[LABELS if self.on_grid else REFERENCE]
            if self.on_grid:
                self._note(index, prepared.image, labels)
            if self.bounded and index in self._mapped:
                self._let_go(prepared, labels)
            return prepared, labels

    def _read_by_slabs(self, index: int, case: Case) -> tuple[Prepared, Tensor]:
        assert self._spool is not None
        with self._by_slabs, within_memory(case.images[0]):
            if index not in self._kept:
                prepared, labels = prepare_by_slabs(case, self.plan, self._spool, on_grid=self.on_grid)
                if self.on_grid:
                    self._note(index, prepared.image, labels)
                self._let_go(prepared, labels)
                with self._lock:
                    self._kept[index] = prepared, labels
                    self._in_files.add(index)
            return self._kept[index]

    def _let_go(self, prepared: Prepared, labels: Tensor) -> None:
        let_go(prepared.image)
        let_go(labels)

    def _prepared(self, case: Case) -> tuple[Prepared, dict[str, Tensor]]:
        """A case from its files, with the labels that are wanted of it; for the cache, of training and validation."""
        volume = case.read_image()
        prepared = prepare(volume, self.plan)
        reference = encode_labels(case.read_labels(), self.plan.labels)
        maps: dict[str, Tensor] = {}
        if self.on_grid or self.store is not None:
            maps[LABELS] = prepare_labels(reference, volume, self.plan)
        if not self.on_grid or self.store is not None:
            maps[REFERENCE] = torch.from_numpy(np.ascontiguousarray(reference))
        return prepared, maps

    def _is_for_the_store(self, prepared: Prepared, maps: Mapping[str, Tensor]) -> bool:
        if self.store is None:
            return False
        size = prepared.image.nbytes + maps[LABELS if self.on_grid else REFERENCE].nbytes
        return self.store.every or size > max(self._room, self._device_room)

    def _note(self, index: int, image: Tensor, labels: Tensor) -> None:
        """Note where the structures of a case lie."""
        if index in self._structures:
            return
        found = Structures(labels, self.plan.spatial_dims, self.plan.labels.ignored)
        if self.sampling != "case":
            self._keep_pieces(index, Pieces.of(found, labels, self.sampling))
        if self._may_be_noted(found.nbytes):
            self._structures[index] = found

    def _may_be_noted(self, size: int) -> bool:
        """Whether there is room for so many bytes of where structures lie, which is taken then."""
        with self._lock:
            fits = size <= self._structures_room
            self._structures_room -= size if fits else 0
            return fits

    def _keep_pieces(self, index: int, pieces: Pieces) -> None:
        """Keep what samples of all cases are chosen from."""
        if index not in self._pieces and not self._may_be_noted(pieces.nbytes):
            raise UsageError(
                f"case {self.cases[index].id}: where the structures of all cases lie takes more memory than --max-ram leaves "
                f"for it, and training.sampling={self.sampling} chooses from them; raise it, or set training.sampling=case"
            )
        self._pieces[index] = pieces

    def _keep(self, index: int, case: tuple[Prepared, Tensor], *, on_device: bool = False) -> None:
        """Keep a case where it fits; several threads may read, and offer the same one."""
        prepared, labels = case
        size = prepared.image.nbytes + labels.nbytes
        with self._lock:
            if self.keeps(index):
                return
            if on_device and self._device is not None and size <= self._device_room:
                self._device_room -= size
                image = prepared.image.to(self._device)
                self._kept[index] = prepared._replace(image=image), labels.to(self._device)
            elif index in self._mapped:
                self._kept[index] = case
                self._in_files.add(index)
            elif size <= self._room:
                self._room -= size
                self._kept[index] = case
            elif self._spool is not None:
                self._to_the_spool(index, prepared, labels, self._spool)

    def _to_the_spool(self, index: int, prepared: Prepared, labels: Tensor, spool: Spool) -> None:
        image = spool.put(prepared.image)
        kept = None if image is None else spool.put(labels)
        if image is not None and kept is not None:
            self._kept[index] = prepared._replace(image=image), kept
            self._in_files.add(index)
        elif self.bounded:
            raise UsageError(
                f"{printable(spool.folder)}: the disk does not hold the prepared cases that --max-ram keeps out of memory; "
                "free some of it, or raise --max-ram"
            )
        elif not self._said_full:
            self._said_full = True
            log.warning(
                "note: neither memory nor disk hold all training cases; the rest is read again for every %s, which is slow: "
                "free some of either, or set planning.spacing larger",
                self.again,
            )


class Sample(NamedTuple):
    """One sample that is yet to be made: what it is taken from, and what happens to it."""

    piece: Piece
    draw: Draw


class Samples:
    """Random samples of cases, each drawn from its own stream: by seed, epoch and number."""

    def __init__(
        self, cases: PreparedCases, *, augment: Augment, foreground: float, seed: int, centred: bool = False
    ) -> None:
        self.cases, self.augment, self.seed = cases, augment, seed
        self.foreground, self.centred = foreground, centred

    def draw(self, key: Key) -> Sample:
        """Where a sample is taken from and what happens to it; reads its case where that is not kept."""
        epoch, number, case = key
        stream = sample_stream(self.seed, epoch, number)
        chosen = self.chosen(stream)
        case = case if chosen is None else chosen.case
        prepared, labels = self.cases[case]
        start = self.placed(self.cases.structures(case), chosen, stream)
        draw = self.augment.draw(stream)
        piece = self.augment.cut(prepared.image, labels, start, draw)
        return Sample(self.cases.held(case, piece), draw)

    def chosen(self, stream: np.random.Generator) -> Chosen | None:
        """What the sample is to show, of all cases; None where its own case says it, or it is placed on no structure."""
        balance = self.cases.balance
        return balance.choose(stream) if balance is not None and stream.random() < self.foreground else None

    def placed(self, own: Structures, chosen: Chosen | None, stream: np.random.Generator) -> tuple[int, ...]:
        """The first voxel of the patch: about what was chosen, or among the structures of its own case or slice."""
        patch = self.cases.plan.patch
        if chosen is not None:
            voxel, size = chosen.voxel[-len(patch) :], chosen.size[-len(patch) :]
            return patch_about(voxel, size, patch, stream, centred=self.centred)
        share = self.foreground if self.cases.balance is None else 0.0
        return place_patch(own, patch, foreground=share, generator=stream, centred=self.centred)

    def batches(self, training: Training, batch: int) -> Batches:
        """As many as the recipe says, of these cases."""
        count = training.samples_of_epoch(len(self.cases), batch)
        return Batches(len(self.cases), count, batch, training.seed)

    def make(self, drawn: Sequence[Sample], device: torch.device) -> tuple[Tensor, Tensor]:
        """A batch on a device: (N, C, *patch), and (N, *patch) or (N, K, *patch)."""
        pieces = [sample.piece.map(lambda tensor: to_device(tensor, device)) for sample in drawn]
        return self.augment.apply(pieces, [sample.draw for sample in drawn])


class Batches:
    """The keys of one epoch after another, batch by batch; can start in the middle of an epoch."""

    def __init__(self, cases: int, count: int, batch: int, seed: int) -> None:
        self.cases, self.count, self.batch, self.seed = cases, count, batch, seed
        self.epoch, self.first_step = 0, 0
        self.end: int | None = None  # of the epoch under way, where it is cut short

    @cached_property
    def steps(self) -> int:
        """Of an epoch."""
        return max(1, -(-self.count // self.batch))

    @property
    def last(self) -> int:
        """The step at which the epoch under way ends."""
        return self.steps if self.end is None else self.end

    def order(self, count: int) -> list[int]:
        """Which case each sample of the epoch shows."""
        return epoch_order(self.cases, count, seed=self.seed, epoch=self.epoch)

    def __len__(self) -> int:
        return self.last - self.first_step

    def __iter__(self) -> Iterator[list[Key]]:
        keys = [(self.epoch, number, case) for number, case in enumerate(self.order(self.steps * self.batch))]
        for step in range(self.first_step, self.last):
            yield keys[step * self.batch : (step + 1) * self.batch]


def device_room(held: float) -> int:
    """Bytes of the GPU that may keep cases: half of what is free beside a step of the training; none without a GPU.

    Args:
        held: bytes of the GPU that a step will hold.
    """
    if not torch.cuda.is_available():
        return 0
    free, _ = torch.cuda.mem_get_info()
    return max(0, int(free - held)) // 2


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
