"""Patches for training: where they lie is random, from a given generator."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ulna.data.pipeline.preprocess import margins


def sample_stream(seed: int, epoch: int, sample: int) -> np.random.Generator:
    """The random stream of one training sample: the same numbers whatever ran before it, wherever.

    So threads do not matter, and a training that was stopped can go on exactly.
    """
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch, sample])))


def epoch_order(cases: int, count: int, *, seed: int, epoch: int) -> list[int]:
    """Which case each of `count` samples of an epoch shows: shuffled rounds that go on from epoch to epoch.

    So no case is seen twice before every other was seen once.
    """
    first, last = epoch * count, (epoch + 1) * count
    order: list[int] = []
    for number in range(first // cases, -(-last // cases)):
        stream = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, number])))
        order += stream.permutation(cases).tolist()
    start = first - first // cases * cases
    return order[start : start + count]


class Structures:
    """Where the structures of a label map lie: as runs of voxels in the order of memory, so that none is searched again.

    Args:
        labels: (*S) or (K, *S).
        dims: spatial dimensions.
        ignored: the label of what is not known, which is no structure.
    """

    def __init__(self, labels: Tensor, dims: int, ignored: int | None = None) -> None:
        if ignored is not None:
            labels = labels * (labels != ignored)
        overlapping = labels.ndim > dims
        self.size = tuple(labels.shape[-dims:])
        self._runs: list[
            tuple[NDArray[np.int64], NDArray[np.int64]]
        ] = []  # first voxels, and how many up to their ends
        for one in labels.ne(0) if overlapping else [labels]:
            flat = one.cpu().numpy().reshape(-1)
            first = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
            lengths, values = np.diff(first, append=len(flat)), flat[first]
            for value in np.unique(values[values > 0]):
                chosen = values == value
                self._runs.append((first[chosen], lengths[chosen].cumsum()))

    @property
    def nbytes(self) -> int:
        """Of memory."""
        return sum(first.nbytes + ends.nbytes for first, ends in self._runs)

    def random_voxel(self, generator: np.random.Generator) -> tuple[int, ...] | None:
        """A random voxel of a random structure; None where there is none."""
        if not self._runs:
            return None
        first, ends = self._runs[int(generator.integers(len(self._runs)))]
        number = int(generator.integers(ends[-1]))
        run = int(np.searchsorted(ends, number, side="right"))
        behind = int(ends[run]) - number  # up to the end of the run
        length = int(ends[run] - (ends[run - 1] if run else 0))
        return tuple(int(i) for i in np.unravel_index(int(first[run]) + length - behind, self.size))


def place_patch(
    structures: Structures, patch: Sequence[int], *, foreground: float, generator: np.random.Generator
) -> tuple[int, ...]:
    """The first voxel of one random patch of an image.

    With probability `foreground` the patch is placed to hold a random voxel of a random structure, at a random place within
    the patch; else anywhere. Along axes shorter than the patch the image lies in its middle: the first voxel is below 0.
    """
    size = structures.size
    room = [max(n - p, 0) for n, p in zip(size, patch, strict=True)]
    start = [int(generator.integers(0, r + 1)) for r in room]
    if any(room) and generator.random() < foreground:
        voxel = structures.random_voxel(generator)
        if voxel is not None:
            offset = [int(generator.integers(0, p)) for p in patch]
            start = [min(max(v - o, 0), r) for v, o, r in zip(voxel, offset, room, strict=True)]
    return tuple(s - before for s, (before, _) in zip(start, margins(size, patch), strict=True))
