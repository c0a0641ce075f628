"""Patches for training: where they lie is random, from a given generator."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ulna.data.pipeline.cropping import margins

AT_ONCE = 1 << 23  # voxels that are looked through at once
Runs = tuple[NDArray[np.int64], NDArray[np.int64]]  # first voxels, and how many voxels up to their ends


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
        overlapping = labels.ndim > dims
        self.size = tuple(labels.shape[-dims:])
        self._runs: list[Runs] = []
        self._classes: list[int] = []  # of the runs: values of labels, or numbers of maps from 1
        for number, one in enumerate(labels if overlapping else [labels], start=1):
            found = {value: runs for value, runs in runs_of(one).items() if value not in (0, ignored)}
            self._runs += found.values()
            self._classes += [number] * len(found) if overlapping else found
        self._background = runs_of(labels.ne(0).any(0) if overlapping else labels).get(0)

    @property
    def nbytes(self) -> int:
        """Of memory."""
        kept = self._runs + ([] if self._background is None else [self._background])
        return sum(first.nbytes + ends.nbytes for first, ends in kept)

    @property
    def by_class(self) -> dict[int, Runs]:
        """The voxels of every class that is there: by its value, or by the number of its map from 1."""
        return dict(zip(self._classes, self._runs, strict=True))

    def random_voxel(self, generator: np.random.Generator) -> tuple[int, ...] | None:
        """A random voxel of a random structure; None where there is none."""
        if not self._runs:
            return None
        return voxel_of(self._runs[int(generator.integers(len(self._runs)))], self.size, generator)

    def random_background(self, generator: np.random.Generator) -> tuple[int, ...] | None:
        """A random voxel that belongs to no structure; None where there is none."""
        return None if self._background is None else voxel_of(self._background, self.size, generator)


def voxel_of(runs: Runs, size: Sequence[int], generator: np.random.Generator) -> tuple[int, ...]:
    """A random voxel of runs in an array of this size."""
    first, ends = runs
    number = int(generator.integers(ends[-1]))
    run = int(np.searchsorted(ends, number, side="right"))
    behind = int(ends[run]) - number  # up to the end of the run
    length = int(ends[run] - (ends[run - 1] if run else 0))
    return tuple(int(i) for i in np.unravel_index(int(first[run]) + length - behind, size))


def runs_of(labels: Tensor) -> dict[int, Runs]:
    """Value -> its runs: first voxels, and how many voxels up to the end of each."""
    flat = labels.cpu().numpy().reshape(-1)
    ends = [(start, min(start + AT_ONCE, len(flat) - 1)) for start in range(0, len(flat) - 1, AT_ONCE)]
    changes = [np.flatnonzero(flat[start + 1 : end + 1] != flat[start:end]) + start + 1 for start, end in ends]
    first = np.concatenate([np.zeros(1, np.int64), *changes])
    lengths, values = np.diff(first, append=len(flat)), flat[first]
    chosen = {int(value): values == value for value in np.unique(values)}
    return {value: (first[of_it], lengths[of_it].cumsum()) for value, of_it in chosen.items()}


def place_patch(
    structures: Structures,
    patch: Sequence[int],
    *,
    foreground: float,
    generator: np.random.Generator,
    centred: bool = False,
) -> tuple[int, ...]:
    """The first voxel of one random patch of an image.

    With probability `foreground` the patch is placed to hold a random voxel of a random structure, at a random place within
    the patch; else anywhere. `centred` puts that voxel in the middle of the patch, as far as the image reaches, and the
    others about a random voxel of background. Along axes shorter than the patch the image lies in its middle: the first
    voxel is below 0.
    """
    size = structures.size
    room = [max(n - p, 0) for n, p in zip(size, patch, strict=True)]
    if centred:
        start = _centred(structures, patch, room, foreground, generator)
        return tuple(s - before for s, (before, _) in zip(start, margins(size, patch), strict=True))
    start = [int(generator.integers(0, r + 1)) for r in room]
    if any(room) and generator.random() < foreground:
        voxel = structures.random_voxel(generator)
        if voxel is not None:
            return patch_about(voxel, size, patch, generator)
    return tuple(s - before for s, (before, _) in zip(start, margins(size, patch), strict=True))


def patch_about(
    voxel: Sequence[int],
    size: Sequence[int],
    patch: Sequence[int],
    generator: np.random.Generator,
    *,
    centred: bool = False,
) -> tuple[int, ...]:
    """The first voxel of a patch that holds a voxel of an image: at a random place, or `centred` in its middle."""
    offset = [p // 2 if centred else int(generator.integers(0, p)) for p in patch]
    start = [min(max(v - o, 0), max(n - p, 0)) for v, o, n, p in zip(voxel, offset, size, patch, strict=True)]
    return tuple(s - before for s, (before, _) in zip(start, margins(size, patch), strict=True))


def _centred(
    structures: Structures, patch: Sequence[int], room: Sequence[int], foreground: float, generator: np.random.Generator
) -> list[int]:
    """The first voxel of a patch about a voxel of a structure, or of background; what an image lacks, the other stands for.

    Source: Implicit U-Net (marimont2022), Sec. 2 (docs/papers/implicit_unet.md, section 5).
    """
    ways = [structures.random_voxel, structures.random_background]
    if generator.random() >= foreground:
        ways.reverse()
    # where neither is, all is ignored, and any place as good
    voxel = next((found for way in ways if (found := way(generator)) is not None), (0,) * len(patch))
    return [min(max(v - p // 2, 0), r) for v, p, r in zip(voxel, patch, room, strict=True)]
