"""The samples of a 2D network that is trained on volumes: slices, of volumes that are read once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ulna.data.formats.label_maps import encode_labels
from ulna.data.layout.case import Case
from ulna.data.pipeline.augment import Augment
from ulna.data.pipeline.patches import Structures, sample_stream
from ulna.data.pipeline.preprocess import Prepared, prepare, prepare_labels
from ulna.data.pipeline.slices import seen_in_stack, stacked
from ulna.data.prepared.store import CaseStore
from ulna.planning.length import MOST_SLICE_STEPS
from ulna.recipe import Plan, Recipe, Slices, Training, count_drawn
from ulna.system.ahead import ahead
from ulna.training.samples import LABELS, Batches, Key, PreparedCases, Sample, Samples
from ulna.training.sampling import Pieces, Sampling
from ulna.training.within import Within


class SlicedVolume(NamedTuple):
    """What the slices of a volume hold.

    Args:
        full: the numbers of those with a structure.
        empty: of those without one, but with more than one value.
        structures: where the structures of each lie; empty where they are found again.
    """

    full: NDArray[np.int64]
    empty: NDArray[np.int64]
    structures: tuple[Structures, ...]


class SliceCases(PreparedCases):
    """Volumes slice by slice: read once, and kept on the GPU, in memory, and then on disk, while there is room.

    The image of a case is (D + 2n, C, H, W), its reference (D, H, W) or (D, K, H, W).

    Args:
        cases: labelled cases.
        plan: with slices.
        keep_bytes: how much may be kept in memory; None is a quarter of what is free now.
        device: where `fill` keeps cases first.
        device_bytes: how much may be kept there.
        sampling: what patches on structures are drawn from; a lesion is one through all slices.
        store: the cache; None for none.
        folder: on the disk that keeps what neither memory nor cache do; None for none.
        sharing: processes that keep as much, beside each other.
        bounded: what lies on disk is no memory of this process but while it is looked at.
        structures_bytes: of where structures lie, that may be kept; None for all. Those of other cases are found again.
    """

    again = "slice"

    def __init__(
        self,
        cases: Sequence[Case],
        plan: Plan,
        *,
        keep_bytes: int | None = None,
        device: torch.device | None = None,
        device_bytes: int = 0,
        sampling: Sampling = "case",
        store: CaseStore | None = None,
        folder: Path | None = None,
        sharing: int = 1,
        bounded: bool = False,
        structures_bytes: int | None = None,
    ) -> None:
        super().__init__(
            cases, plan, keep_bytes=keep_bytes, device=device, device_bytes=device_bytes, sampling=sampling,
            store=store, folder=folder, sharing=sharing, bounded=bounded, structures_bytes=structures_bytes,
        )  # fmt: skip
        self.slices = _slices_of(plan)
        self.form = (self.slices.axis, self.slices.neighbours)
        self._sliced: dict[int, SlicedVolume] = {}

    def fill(self, threads: int = 0) -> Iterator[int]:
        """Read all cases, one a step, and keep those that fit; their numbers."""
        numbers = range(len(self))
        for index, case in zip(numbers, ahead(self._read, numbers, threads), strict=True):
            self._keep(index, case, on_device=True)
            yield index

    @cached_property
    def places(self) -> NDArray[np.int64]:
        """(case, slice) of every slice that may be drawn, those with a structure first: (M, 2); all cases must be filled."""
        return np.concatenate([self._places("full"), self._places("empty")])

    @cached_property
    def full_count(self) -> int:
        """How many of `places` hold a structure."""
        return sum(len(one.full) for one in self._sliced.values())

    def structures_of(self, index: int, place: int) -> Structures:
        """Where the structures of one slice of a case lie."""
        kept = self._sliced[index].structures
        return kept[place] if kept else Structures(self._kept[index][1][place], 2, self.plan.labels.ignored)

    def _places(self, kind: str) -> NDArray[np.int64]:
        found = [(index, getattr(self._sliced[index], kind)) for index in range(len(self))]
        return np.concatenate([np.stack([np.full(len(some), index), some], axis=1) for index, some in found])

    def _prepared(self, case: Case) -> tuple[Prepared, dict[str, Tensor]]:
        axis, volume = self.slices.axis, case.read_image()
        prepared = prepare(volume, self.plan)
        labels = prepare_labels(encode_labels(case.read_labels(), self.plan.labels), volume, self.plan)
        image = stacked(prepared.image, axis, self.slices.neighbours)
        return prepared._replace(image=image), {LABELS: labels.movedim(axis - 3, 0).contiguous()}

    def _note(self, index: int, image: Tensor, labels: Tensor) -> None:
        if index in self._sliced:
            return
        axis, behind = self.slices.axis, self.slices.neighbours
        volume = image[behind : behind + len(labels)].movedim(0, axis + 1)
        found = sliced(volume, labels, axis, self.plan.labels.ignored)
        if not self._may_be_noted(sum(one.nbytes for one in found.structures)):
            found = found._replace(structures=())
        self._sliced[index] = found
        if self.sampling != "case":
            maps = labels if labels.ndim == 3 else labels.movedim(1, 0)  # (D, H, W) or (K, D, H, W)
            whole = Structures(maps, 3, self.plan.labels.ignored)
            self._keep_pieces(index, Pieces.of(whole, maps, self.sampling))


class SliceSamples(Samples):
    """Random samples of slices, each drawn from its own stream: by seed, epoch and number."""

    cases: SliceCases

    def draw(self, key: Key) -> Sample:
        """Where a sample is taken from and what happens to it; reads its volume where that is not kept."""
        epoch, number, item = key
        stream = sample_stream(self.seed, epoch, number)
        chosen = self.chosen(stream)
        case, place = map(int, self.cases.places[item]) if chosen is None else (chosen.case, chosen.voxel[0])
        prepared, labels = self.cases[case]
        start = self.placed(self.cases.structures_of(case, place), chosen, stream)
        draw = self.augment.draw(stream)
        image = seen_in_stack(prepared.image, place, self.cases.slices.neighbours)
        piece = self.augment.cut(image, labels[place], start, draw)
        return Sample(self.cases.held(case, piece), draw)

    def some_of(self, case: int, count: int) -> list[int]:
        """Places of slices of one case, evenly apart, those with a structure first; none where none is drawn."""
        own = np.flatnonzero(self.cases.places[:, 0] == case)
        return [int(own[len(own) * number // count]) for number in range(count)] if len(own) else []

    def batches(self, training: Training, batch: int) -> Batches:
        """Of slices, as the recipe says how many."""
        return SliceBatches(self.cases, training, batch)


class SliceBatches(Batches):
    """The keys of one epoch after another; how many there are is known when all volumes were read."""

    def __init__(self, cases: SliceCases, training: Training, batch: int) -> None:
        super().__init__(len(cases), 0, batch, training.seed)
        self.source, self.training = cases, training

    @cached_property
    def steps(self) -> int:
        """Of an epoch."""
        full = self.source.full_count
        drawn = count_drawn(full, len(self.source.places) - full, self.source.slices.empty)
        count = self.training.samples_of_epoch(drawn, self.batch, MOST_SLICE_STEPS)
        return max(1, -(-count // self.batch))

    def order(self, count: int) -> list[int]:
        """Which slices the samples of the epoch show."""
        return slice_order(
            self.source.full_count,
            len(self.source.places),
            self.source.slices.empty,
            count,
            seed=self.seed,
            epoch=self.epoch,
        )


def slice_order(full: int, total: int, share: float, count: int, *, seed: int, epoch: int) -> list[int]:
    """Which slice each of `count` samples of an epoch shows.

    Shuffled rounds of every slice with a structure and a random share of the others, so that none with a structure is seen
    twice before every other was seen once.

    Args:
        full: slices with a structure: numbers 0 to full - 1.
        total: all slices.
        share: of the others that a round draws.
        count: samples.
        seed: of the training.
        epoch: from 0.
    """
    stream = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch])))
    drawn = count_drawn(full, total - full, share) - full
    order: list[int] = []
    while len(order) < count:
        some = np.concatenate([np.arange(full), full + stream.permutation(total - full)[:drawn]])
        order += stream.permutation(some).tolist()
    return order[:count]


def sliced(image: Tensor, labels: Tensor, axis: int, ignored: int | None = None) -> SlicedVolume:
    """What the slices of a prepared volume hold: (C, *S), and (D, H, W) or (D, K, H, W) with D along `axis`.

    A slice of which no class is known is neither full nor empty: nothing can be learnt from it.
    """
    structures = tuple(Structures(one, 2, ignored) for one in labels)
    values = labels.flatten(1)
    known = torch.ones_like(values, dtype=torch.bool) if ignored is None else values != ignored
    full = (values.ne(0) & known).any(1)
    slices = image.movedim(axis + 1, 0).flatten(2)
    varied = (slices.amin(2) != slices.amax(2)).any(1) & known.any(1)
    if not bool((full | varied).any()):  # nothing at all is there to see, and something must be drawn
        varied = ~full
    numbers = (full.nonzero()[:, 0].numpy(), (varied & ~full).nonzero()[:, 0].numpy())
    return SlicedVolume(*numbers, structures)


def training_samples(
    cases: Sequence[Case],
    plan: Plan,
    recipe: Recipe,
    *,
    folder: Path,
    device: torch.device,
    device_bytes: int,
    store: CaseStore | None = None,
    sharing: int = 1,
    within: Within | None = None,
) -> Samples:
    """The samples of a training: patches of images, or slices of volumes.

    Args:
        cases: that train.
        plan: of the training.
        recipe: its augmentation, sampling, foreground and seed.
        folder: of the run.
        device: that keeps cases, and makes samples.
        device_bytes: that cases may take there.
        store: the cache; None for none.
        sharing: processes that keep cases, beside each other.
        within: the limit that the training keeps to; None for none.
    """
    how: dict[str, Any] = {
        "device": device,
        "device_bytes": device_bytes,
        "sampling": recipe.training.sampling,
        "store": store,
        "folder": folder,
        "sharing": sharing,
    }
    if within is not None:
        how |= {"keep_bytes": within.keep_train, "bounded": True, "structures_bytes": within.structures}
    kept: PreparedCases
    if plan.slices is None:
        kept = PreparedCases(cases, plan, **how, lean=() if within is None else within.lean)
    else:
        kept = SliceCases(cases, plan, **how)
    return samples_of(kept, plan, recipe)


def samples_of(cases: PreparedCases, plan: Plan, recipe: Recipe) -> Samples:
    """Samples of cases, or of the slices of `SliceCases`, as a recipe says."""
    kind = SliceSamples if isinstance(cases, SliceCases) else Samples
    return kind(
        cases,
        augment=Augment(recipe.augmentation, plan),
        foreground=recipe.training.foreground,
        centred=recipe.training.placement == "centred",
        seed=recipe.training.seed,
    )


def _slices_of(plan: Plan) -> Slices:
    assert plan.slices is not None
    return plan.slices
