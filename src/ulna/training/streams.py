"""What a step draws at random beside its samples: the points that a network is asked at, and what dropout leaves out."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ulna.data.pipeline.points import sample_points
from ulna.recipe import Plan, Recipe
from ulna.system.ranks import Ranks


def points_of(
    labels: Tensor, plan: Plan, recipe: Recipe, count: int, *, place: tuple[int, int], ranks: Ranks
) -> Tensor:
    """The points of a step, from a stream of its own; of the samples of this rank.

    They are drawn for one sample after the other, so each rank draws those of the whole batch, from all its labels.

    Args:
        labels: of the samples of this rank.
        plan: of the data set.
        recipe: its points, and the seed.
        count: P.
        place: epoch and step, from 0.
        ranks: that share the batch.

    Shape:
        (N, *S) or (N, K, *S) -> (N, P, D)
    """
    generator = torch.Generator(labels.device).manual_seed(_seed(recipe, place))
    points = sample_points(
        ranks.whole(labels, plan.batch),
        plan.spatial_dims,
        count=count,
        alpha=recipe.points.alpha,
        sigma=recipe.points.sigma,
        generator=generator,
        ignored=plan.labels.ignored,
    )
    return points if ranks.alone else points[ranks.rows(plan.batch)]


def begin_shared_step(recipe: Recipe, place: tuple[int, int], ranks: Ranks) -> None:
    """Where ranks share a batch, what dropout leaves out of a share has a stream of its own: by epoch, step and rank."""
    if not ranks.alone:
        torch.manual_seed(_seed(recipe, (*place, ranks.rank)))


def _seed(recipe: Recipe, place: tuple[int, ...]) -> int:
    return int(np.random.SeedSequence([recipe.training.seed, *place]).generate_state(1)[0])
