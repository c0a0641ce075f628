"""Weights of the classes in losses that are means over voxels."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from ulna.errors import UsageError, brief


class ClassWeights:
    """How much a voxel of each class counts.

    Args:
        values: background and structure for one map; one for each map of a softmax, background first; one for each map of
            overlapping classes, where it weighs the whole map.

    Raises:
        UsageError: for fewer than one weight, one below 0 or not finite, or none above 0.
    """

    def __init__(self, values: Sequence[float], *, multilabel: bool) -> None:
        numbers = isinstance(values, Sequence) and all(isinstance(v, int | float) for v in values)
        if not numbers or not values or min(values) < 0 or max(values) <= 0 or not all(map(math.isfinite, values)):
            raise UsageError(
                f"loss.options.weights is {brief(values)}; it is a list of one number a class, 0 or more, not all 0"
            )
        self.values, self.multilabel = tuple(float(v) for v in values), multilabel

    def check(self, maps: int) -> None:
        """Refuse another number of weights than these maps ask for.

        Raises:
            UsageError: with the number that is asked for.
        """
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


def class_weights(values: Sequence[float] | None, *, multilabel: bool) -> ClassWeights | None:
    """None where there are none."""
    return None if values is None else ClassWeights(values, multilabel=multilabel)
