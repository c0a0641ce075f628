"""Patches for training: where they lie is random, from a given generator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ulna.data.pipeline.preprocess import extend, margins


def sample_stream(seed: int, epoch: int, sample: int) -> np.random.Generator:
    """The random stream of one training sample: the same numbers whatever ran before it, in whichever process.

    So workers do not matter, and a training that was stopped can go on exactly.
    """
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch, sample])))


def epoch_order(cases: int, count: int, *, seed: int, epoch: int) -> list[int]:
    """Which case each of `count` samples of an epoch shows: whole shuffled rounds, so no case is seen twice before
    every other was seen once."""
    stream = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch])))
    rounds = -(-count // cases)
    return [int(case) for _ in range(rounds) for case in stream.permutation(cases)][:count]


def crop_patch(
    image: Tensor, labels: Tensor, patch: Sequence[int], *, foreground: float, generator: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """One random patch of an image and its labels.

    With probability `foreground` the patch is placed to hold a random voxel of a random class that is present, at a
    random place within the patch; else anywhere. Axes shorter than the patch are padded by repeating the border.

    Shape:
        (C, *S), (*S) or (K, *S) -> (C, *patch), (*patch) or (K, *patch)
    """
    image, labels = _pad(image, labels, patch)
    size = image.shape[1:]
    room = [n - p for n, p in zip(size, patch, strict=True)]
    start = [int(generator.integers(0, r + 1)) for r in room]
    if any(room) and generator.random() < foreground:
        voxel = _random_foreground(labels, len(patch), generator)
        if voxel is not None:
            offset = [int(generator.integers(0, p)) for p in patch]
            start = [min(max(v - o, 0), r) for v, o, r in zip(voxel, offset, room, strict=True)]
    window: tuple[Any, ...] = (..., *(slice(s, s + p) for s, p in zip(start, patch, strict=True)))
    return image[window].contiguous(), labels[window].contiguous()


def _random_foreground(labels: Tensor, dims: int, generator: np.random.Generator) -> Sequence[int] | None:
    """A random voxel of a random present class; None without foreground."""
    if labels.ndim > dims:
        present = [mask for mask in labels if mask.any()]
    else:
        present = [labels == value for value in torch.unique(labels) if value > 0]
    if not present:
        return None
    where = present[int(generator.integers(len(present)))].nonzero()
    return [int(v) for v in where[int(generator.integers(len(where)))]]


def _pad(image: Tensor, labels: Tensor, patch: Sequence[int]) -> tuple[Tensor, Tensor]:
    sides = margins(image.shape[1:], patch)
    if sides == margins(patch, patch):
        return image, labels
    maps = labels if labels.ndim == image.ndim else labels[None]
    padded = extend(maps.float(), sides).to(labels.dtype)
    return extend(image, sides), padded if labels.ndim == image.ndim else padded[0]
