"""Losses on the overlap of regions, beside soft Dice: generalised Dice and Tversky.

Legend as in `criteria.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ulna.losses.criteria import FocalTversky, Overlap, as_maps, one_hot
from ulna.networks.heads import probabilities


class Tversky(FocalTversky):
    """1 - (TP + s) / (TP + alpha FN + beta FP + s).

    Source: Tversky loss (salehi2017), Sec. 2.2, whose alpha weighs what is wrong and beta what is missed; here alpha weighs
    what is missed, as in focal Tversky. The default has the best Dice there. With 1/2 and 1/2 it is soft Dice of twice the s.

    Args:
        alpha: of what is missed.
        beta: of what is wrong.
        smooth: s, above 0.
        reduction: "image" or "batch".
        background: whether map 0 of a softmax counts.

    Shape:
        (N, K, *S), (N, *S) -> ()
    """

    def __init__(
        self,
        *,
        alpha: float = 0.7,
        beta: float = 0.3,
        smooth: float = 1.0,
        reduction: str = "image",
        background: bool = False,
        multilabel: bool = False,
    ) -> None:
        super().__init__(
            alpha=alpha, beta=beta, smooth=smooth, reduction=reduction, background=background, multilabel=multilabel
        )

    def forward(self, logits: Tensor, target: Tensor, known: Tensor | None = None) -> Tensor:
        return (1 - self.index(logits, target, known)).mean()


class GeneralisedDice(Overlap):
    """1 - (2 sum_l w_l sum pg + s) / (sum_l w_l sum (p + g) + s) with w_l = 1 / (sum g)^2: small classes count as much.

    The classes l are those of a softmax, background included; one map, and each map of overlapping classes, is a structure
    and its background.

    Source: generalised Dice (sudre2017), Sec. 2.1. Reading: the weights are scaled to a sum of 1, which changes nothing but
    what s means; a class without a voxel weighs as much as one of a single voxel, where the formula has 1 / 0.

    Args:
        smooth: s, above 0.
        reduction: "image" or "batch".
        multilabel: every map has its own sigmoid.

    Shape:
        (N, K, *S), (N, *S) -> ()
    """

    def __init__(self, *, smooth: float = 1.0, reduction: str = "image", multilabel: bool = False) -> None:
        super().__init__(smooth=smooth, reduction=reduction, background=True, multilabel=multilabel)

    def forward(self, logits: Tensor, target: Tensor, known: Tensor | None = None) -> Tensor:
        p = probabilities(logits, multilabel=self.multilabel)
        if logits.shape[1] == 1 or self.multilabel:
            g = as_maps(target, logits).to(p.dtype)
            p, g = (torch.stack([1 - x, x], dim=2) for x in (p, g))  # (N, maps, 2, *S)
        else:
            g = one_hot(target, logits.shape[1]).to(p.dtype)
            p, g = (x[:, None] for x in (p, g))  # (N, 1, K, *S)
        if known is not None:
            inside = as_maps(known, logits)[:, :, None].to(p.dtype)
            p, g = p * inside, g * inside
        p, g = p.flatten(3), g.flatten(3)
        axes = 3 if self.reduction == "image" else (0, 3)
        both, all_p, all_g = (x.sum(dim=axes) for x in (p * g, p, g))
        weights = all_g.clamp_min(1.0) ** -2
        weights = weights / weights.sum(dim=-1, keepdim=True)
        hit, whole = ((weights * x).sum(dim=-1) for x in (both, all_p + all_g))
        return 1 - ((2 * hit + self.smooth) / (whole + self.smooth)).mean()
