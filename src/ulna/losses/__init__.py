"""Losses on logits, by name: `loss.kind` and `loss.options` of a recipe. Formulas: docs/papers/losses_and_metrics.md."""

from ulna.losses.criteria import (
    CrossEntropy,
    DiceCrossEntropy,
    FocalTversky,
    HeadsLoss,
    SoftDice,
    UNetPlusPlusLoss,
    as_maps,
    check_targets,
    one_hot,
    target_for,
)
from ulna.losses.making import LOSSES, make_loss
from ulna.losses.regions import GeneralisedDice, Tversky
from ulna.losses.shapes import Boundary, CenterlineDice
from ulna.losses.voxels import DiceFocal, DiceTopK, Focal, TopK

__all__ = [
    "LOSSES",
    "Boundary",
    "CenterlineDice",
    "CrossEntropy",
    "DiceCrossEntropy",
    "DiceFocal",
    "DiceTopK",
    "Focal",
    "FocalTversky",
    "GeneralisedDice",
    "HeadsLoss",
    "SoftDice",
    "TopK",
    "Tversky",
    "UNetPlusPlusLoss",
    "as_maps",
    "check_targets",
    "make_loss",
    "one_hot",
    "target_for",
]
