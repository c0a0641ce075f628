"""The losses by name, and the loss of a recipe."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from ulna.errors import UsageError, unknown
from ulna.losses.criteria import CrossEntropy, DiceCrossEntropy, FocalTversky, HeadsLoss, SoftDice, UNetPlusPlusLoss
from ulna.losses.regions import GeneralisedDice, Tversky
from ulna.losses.shapes import Boundary, CenterlineDice
from ulna.losses.voxels import DiceFocal, DiceTopK, Focal, TopK

LOSSES: dict[str, Callable[..., nn.Module]] = {
    "dice": SoftDice,
    "dice_squared": lambda **options: SoftDice(squared=True, **options),
    "cross_entropy": CrossEntropy,
    "dice_ce": DiceCrossEntropy,
    "unetpp": UNetPlusPlusLoss,
    "focal_tversky": FocalTversky,
    "generalised_dice": GeneralisedDice,
    "tversky": Tversky,
    "focal": Focal,
    "dice_focal": DiceFocal,
    "topk_ce": TopK,
    "dice_topk": DiceTopK,
    "boundary": Boundary,
    "cldice": CenterlineDice,
}


def make_loss(
    kind: str,
    *,
    options: Mapping[str, Any] | None = None,
    heads: str | Mapping[str, float] = "equal",
    multilabel: bool,
    ignored: int | None = None,
) -> HeadsLoss:
    """The loss of a recipe; `multilabel` and `ignored` are those of `Labels`.

    Raises:
        UsageError: for an unknown loss, option or weighting.
    """
    if kind not in LOSSES:
        raise unknown("loss", kind, LOSSES)
    valid = list(inspect.signature(SoftDice if kind == "dice_squared" else LOSSES[kind]).parameters)
    for option in options or {}:
        if option not in valid or option == "multilabel":
            raise unknown(f"option of loss {kind!r}", option, (name for name in valid if name != "multilabel"))
    try:
        criterion = LOSSES[kind](**(options or {}), multilabel=multilabel)
    except TypeError as error:
        raise UsageError(f"loss.options {dict(options or {})} do not work for {kind!r}: {error}") from None
    return HeadsLoss(criterion, heads, ignored)
