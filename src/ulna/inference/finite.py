"""Check that what a network computes is finite: a label map would turn NaN into background."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from ulna.errors import UsageError
from ulna.networks.network import Network


class FiniteCheck:
    """Checks maps batch by batch; on a GPU it counts there, and reads the count, which waits for it, in `finish` alone.

    Args:
        network: named by the folder that its weights came from.
        device: that computes.
    """

    def __init__(self, network: Network, device: torch.device) -> None:
        self._network, self._at_once = network, device.type == "cpu"
        self._bad: Tensor | None = None  # how many values of those added are not finite
        self._values = 0

    def add(self, maps: Tensor) -> None:
        """Check maps of any size, on a CPU at once.

        Raises:
            UsageError: if some of them are not finite.
        """
        if self._at_once:
            check_finite_maps(self._network, [maps])
            return
        bad = (~torch.isfinite(maps)).sum()
        self._bad = bad if self._bad is None else self._bad + bad
        self._values += maps.numel()

    def finish(self) -> None:
        """Look at what was counted.

        Raises:
            UsageError: if some of the values added since the last call are not finite.
        """
        bad = 0 if self._bad is None else int(self._bad)
        values, self._bad, self._values = self._values, None, 0
        if bad:
            raise _not_finite(self._network, bad, values)


def check_finite_maps(network: Network, maps: Iterable[Tensor]) -> None:
    """Raise a UsageError where maps of a network hold NaN or infinity: a label map makes background of them.

    Args:
        network: named by the folder that its weights came from.
        maps: logits, or what a head reads; (N, K, *S) of any size.
    """
    for values in maps:
        # one pass without a copy; a sum of finite numbers may be infinite, so then the numbers decide
        if math.isfinite(float(values.sum(dtype=torch.float32))) or bool(torch.isfinite(values).all()):
            continue
        raise _not_finite(network, int((~torch.isfinite(values)).sum()), values.numel())


def _not_finite(network: Network, bad: int, values: int) -> UsageError:
    return UsageError(
        f"{network.origin or 'this network'}: {bad:,} of {values:,} values that it computed are NaN or infinite; "
        "its weights or its plan.yaml are damaged, or the image has values far from those of the training images: check "
        "the image, restore the run or train again"
    )
