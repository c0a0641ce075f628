"""Check that what a network computes is finite: a label map would turn NaN into background."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from ulna.errors import UsageError
from ulna.networks.network import Network


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
        bad = int((~torch.isfinite(values)).sum())
        raise UsageError(
            f"{network.origin or 'this network'}: {bad:,} of {values.numel():,} values that it computed are NaN or infinite; "
            "its weights or its plan.yaml are damaged, or the image has values far from those of the training images: check "
            "the image, restore the run or train again"
        )
