"""The networks that a recipe may become, each built once, without memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ulna.data.pipeline.points import count_points
from ulna.networks.build import match_width, validate, widths
from ulna.networks.foreign import tried
from ulna.networks.network import Network
from ulna.networks.profile.cost import kept_per_voxel
from ulna.planning.levels import unplanned_strides
from ulna.recipe import Architecture, Labels, Plan, Recipe


class Drafts:
    """The networks that a recipe may become, by the strides between their levels; each is built once, without memory.

    Args:
        recipe: its architecture, and the budget that widths are scaled to.
        shape: `in_channels`, `classes`, `spatial_dims` and `multilabel` of the network.
    """

    def __init__(self, recipe: Recipe, shape: Mapping[str, Any]) -> None:
        self.recipe, self.shape = _sized(recipe, shape), shape
        self._resolved: dict[tuple[tuple[int, ...], ...], Architecture] = {}
        self._built: dict[tuple[tuple[int, ...], ...], Network] = {}
        self._kept: dict[int, float] = {}

    def architecture(self, strides: tuple[tuple[int, ...], ...]) -> Architecture:
        """With widths and strides of every level stated.

        Raises:
            UsageError: if it cannot be scaled to the budget.
        """
        if strides not in self._resolved:
            architecture = self.recipe.architecture
            if architecture.foreign is None:
                channels = widths(architecture, self.shape["spatial_dims"])[: len(strides) + 1]
                architecture = architecture.replaced(channels=channels, strides=strides, levels=None)
            if self.recipe.planning.parameters is not None:
                architecture = match_width(architecture, self.recipe.planning.parameters, **self.shape)
            self._resolved[strides] = architecture
        return self._resolved[strides]

    def network(self, strides: tuple[tuple[int, ...], ...]) -> Network:
        """Without memory.

        Raises:
            UsageError: if it cannot be built.
        """
        if strides not in self._built:
            self._built[strides] = validate(self.architecture(strides), **self.shape)
        return self._built[strides]

    def kept_per_voxel(self, voxels: int) -> float:
        """Values that a training step keeps per voxel of a patch, before its size and the strides are chosen.

        They are hardly a matter of the size. A step that reads points reads as large a share of the voxels as of a patch of
        `voxels`.
        """
        if voxels not in self._kept:
            network = self.network(unplanned_strides(self.recipe.architecture, self.shape["spatial_dims"]))
            size = tuple(max(2 * divisor, 32) for divisor in network.divisor)
            points = count_points(self.recipe.points, voxels, sparse=network.head.sparse)
            share = None if points is None else max(1, round(points / voxels * math.prod(size)))
            self._kept[voxels] = kept_per_voxel(network, size, points=share)
        return self._kept[voxels]


def _sized(recipe: Recipe, shape: Mapping[str, Any]) -> Recipe:
    """With the sizes that a network of others takes, which is found out once."""
    foreign = recipe.architecture.foreign
    if foreign is None:
        return recipe
    return recipe.replaced(architecture=Architecture(foreign=tried(foreign, **shape)))


def shape_of(plan: Plan) -> dict[str, Any]:
    """What the data say of a network: the keywords of `from_architecture`."""
    return network_shape(plan.inputs, plan.spatial_dims, plan.labels)


def network_shape(channels: int, dims: int, labels: Labels) -> dict[str, Any]:
    return {
        "in_channels": channels,
        "classes": labels.outputs,
        "spatial_dims": dims,
        "multilabel": labels.multilabel,
    }
