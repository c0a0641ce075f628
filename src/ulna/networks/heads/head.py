"""What every head gives, and what it must offer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ulna.errors import UsageError
from ulna.kernels.points.point_sample import point_sample
from ulna.networks.wiring import Wiring


class Outputs(NamedTuple):
    """What training needs.

    Args:
        logits: (N, K, *S), the network's answer; (N, K, P) where it was read at points.
        heads: the logits of every supervised head by name, a dense one by that of its node; coarser heads are smaller.
        points: (N, P, D), whole voxel indices into the image, where it was read at points.
    """

    logits: Tensor
    heads: dict[str, Tensor]
    points: Tensor | None = None


Reader = Callable[[Tensor | None], Outputs]


class Head(nn.Module, ABC):
    """The contract of a head; a head with several answers overrides `only`.

    `prunable`: it answers at every node that it reads, and a network can end at one of them.
    `sparse`: it reads single points at little cost, by their place in the patch; so it is trained on points, and large
    images are predicted by patches of the size that it was trained on.
    """

    prunable = False
    sparse = False

    @staticmethod
    @abstractmethod
    def reads(wiring: Wiring, *, deep_supervision: bool, readout: str) -> tuple[str, ...]:
        """The nodes that the head reads; nodes that none of them depends on are never built.

        Raises:
            UsageError: if the wiring has nothing that it can read in this way.
        """

    @abstractmethod
    def forward(self, maps: dict[str, Tensor], size: Sequence[int], points: Tensor | None = None) -> Outputs:
        """Logits everywhere, or at points alone.

        Args:
            maps: of every node, (N, C, *S / stride).
            size: S, of the image that they were made from.
            points: (N, P, D), whole voxel indices into that image.

        Returns:
            Outputs with (N, K, *S), or (N, K, P) at points.
        """

    def reader(self, maps: dict[str, Tensor], size: Sequence[int]) -> Reader:
        """What reads the same maps several times, at points or, without any, everywhere: as `forward` does.

        Made with gradients off, it is to be read with gradients off.
        """
        return partial(self, maps, size)

    def only(self, name: str) -> Head:
        """The head at one node alone.

        Raises:
            UsageError: if there is none.
        """
        raise UsageError("this network has one head, which reads all levels; there is nothing to prune")


def at_points(logits: Tensor, points: Tensor, size: Sequence[int]) -> Tensor:
    """A map of logits read at points of the image: (N, K, *S / stride), (N, P, D) -> (N, K, P)."""
    return point_sample(logits, points, size).transpose(1, 2)


def probabilities(logits: Tensor, *, multilabel: bool = False) -> Tensor:
    """Probabilities in float32 or better: a sigmoid for one map or with `multilabel`, else a softmax over the maps.

    Shape:
        (N, K, *S) -> (N, K, *S)
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if multilabel or logits.shape[1] == 1:
        return logits.sigmoid()
    return logits.softmax(dim=1)
