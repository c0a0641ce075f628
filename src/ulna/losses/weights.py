"""Weights of the classes in losses that are means over voxels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ulna.errors import UsageError, brief

AUTO = "auto"  # planning makes numbers of it
MOST = 20.0  # times that the rarest class counts as much as the most frequent one, of automatic weights


class ClassWeights:
    """How much a voxel of each class counts.

    Args:
        values: background and structure for one map; one for each map of a softmax, background first; one for each map of
            overlapping classes, where it weighs the whole map. "auto" until planning has made numbers of it: all alike.

    Raises:
        UsageError: for fewer than one weight, one below 0 or not finite, or none above 0.
    """

    def __init__(self, values: Sequence[float] | str, *, multilabel: bool) -> None:
        self.values: tuple[float, ...] | None = None
        self.multilabel = multilabel
        if values == AUTO:
            return
        numbers: list[Any] = [] if isinstance(values, str) or not isinstance(values, Sequence) else list(values)
        real = bool(numbers) and all(isinstance(v, int | float) and math.isfinite(v) for v in numbers)
        if not real or min(numbers) < 0 or max(numbers) <= 0:
            raise UsageError(
                f"loss.options.weights is {brief(values)}; it is {AUTO}, or a list of one number a class, 0 or more, "
                "not all 0"
            )
        self.values = tuple(map(float, numbers))

    def check(self, maps: int) -> None:
        """Refuse another number of weights than these maps ask for.

        Raises:
            UsageError: with the number that is asked for.
        """
        if self.values is None:
            return
        wanted = 2 if maps == 1 and not self.multilabel else maps
        if len(self.values) != wanted:
            which = "of the classes" if self.multilabel else "of the classes, background first"
            raise UsageError(
                f"loss.options.weights has {len(self.values)} numbers; these data ask for {wanted}, {which}"
            )

    def of(self, target: Tensor, each: Tensor) -> Tensor:
        """The weight of every value of `each`, which has a loss for every voxel, or for every voxel and map.

        Numbers go into the operations, not into a tensor: a step on a GPU is recorded, and waits for nothing.

        Shape:
            (N, *S) or (N, K, *S), the same or (N, 1, *S) -> that of `each`
        """
        if self.values is None:
            return torch.ones_like(each)
        if self.multilabel:
            weights = each.new_ones(()).expand_as(each).clone()
            for number, value in enumerate(self.values):
                weights[:, number] = value
            return weights
        where = target.reshape(each.shape)
        weights = (where == 0).to(each.dtype) * self.values[0]
        for number, value in enumerate(self.values[1:], start=1):
            weights = weights + (where == number).to(each.dtype) * value
        return weights

    def mean(self, each: Tensor, target: Tensor, maps: int, known: Tensor | None = None) -> Tensor:
        """The weighted mean of the losses of voxels that are known, from so many maps of logits: ()."""
        self.check(maps)
        weights = self.of(target, each)
        if known is not None:
            weights = weights * known.reshape(each.shape)
        return (weights * each).sum() / weights.sum().clamp_min(1e-12)


def class_weights(values: Sequence[float] | str | None, *, multilabel: bool) -> ClassWeights | None:
    """None where there are none."""
    return None if values is None else ClassWeights(values, multilabel=multilabel)


def inverse_frequencies(counts: Sequence[int], *, multilabel: bool) -> tuple[float, ...]:
    """Weights of classes by their voxels: 1 for the most frequent class, for the others as much more as they are rarer.

    Reading: at most `MOST`, also for a class that nothing holds: weights of thousands make a training chase single voxels.
    Only ratios matter, for what is weighed is a weighted mean.

    Args:
        counts: of the voxels of the background and every class.
        multilabel: whether classes overlap: the background then has no weight.

    Returns:
        To three digits, as `ClassWeights` takes them.

    Example:
        >>> inverse_frequencies([9000, 900, 100, 0], multilabel=False)
        (1.0, 10.0, 20.0, 20.0)
    """
    counted = counts[1:] if multilabel else counts
    most = max(counted)
    return tuple(float(f"{min(MOST, most / count) if count else MOST:.3g}") for count in counted)
