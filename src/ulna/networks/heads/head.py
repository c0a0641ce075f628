"""What every head gives, and what it must offer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from ulna.errors import UsageError
from ulna.networks.wiring import Wiring


class Outputs(NamedTuple):
    """What training needs.

    Args:
        logits: (N, K, *S), the network's answer.
        heads: the logits of every supervised head by name, a dense one by that of its node; coarser heads are smaller.
    """

    logits: Tensor
    heads: dict[str, Tensor]


class Head(nn.Module):
    """The contract of a head; a head with several answers overrides `only`."""

    @staticmethod
    def reads(wiring: Wiring, *, deep_supervision: bool, readout: str) -> tuple[str, ...]:
        """The nodes that the head reads; nodes that none of them depends on are never built.

        Raises:
            UsageError: if the wiring has nothing that it can read in this way.
        """
        raise NotImplementedError

    def forward(self, maps: dict[str, Tensor], size: Sequence[int]) -> Outputs:
        """The maps of every node, (N, C, *S / stride), and the size S of the image -> Outputs with (N, K, *S)."""
        raise NotImplementedError

    def only(self, name: str) -> Head:
        """The head at one node alone.

        Raises:
            UsageError: if there is none.
        """
        raise UsageError("this network has one head, which reads all levels; there is nothing to prune")


def probabilities(logits: Tensor, *, multilabel: bool = False) -> Tensor:
    """Probabilities in float32: a sigmoid for one map or with `multilabel`, else a softmax over the maps.

    Shape:
        (N, K, *S) -> (N, K, *S)
    """
    if multilabel or logits.shape[1] == 1:
        return logits.float().sigmoid()
    return logits.float().softmax(dim=1)
