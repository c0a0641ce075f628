"""Losses that are means over voxels: focal, and of the hardest voxels alone; and their sums with Dice.

Legend as in `criteria.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ulna.errors import UsageError
from ulna.losses.criteria import DiceAnd, SoftDice, as_maps, entropies, mean_of
from ulna.losses.weights import class_weights


class Focal(nn.Module):
    """Mean of (1 - q)^gamma (-log q), q being the probability of what a voxel is: easy voxels count little.

    Source: focal loss (lin2017), Eq. 4 and 5. Reading: its alpha is `weights=[1 - alpha, alpha]`, and the mean is over all
    voxels, weighted, where the paper divides by the number of objects.

    Args:
        gamma: 0 or more; 0 is cross-entropy.
        weights: of the classes (`ClassWeights`); None: all alike.
        multilabel: every map has its own sigmoid.

    Shape:
        (N, K, *S), (N, *S) -> ()

    Raises:
        UsageError: for a gamma below 0.
    """

    def __init__(
        self, *, gamma: float = 2.0, weights: Sequence[float] | str | None = None, multilabel: bool = False
    ) -> None:
        super().__init__()
        if gamma < 0:
            raise UsageError(f"gamma is {gamma}; it must be 0 or more")
        self.gamma, self.multilabel = gamma, multilabel
        self.weights = class_weights(weights, multilabel=multilabel)

    def forward(self, logits: Tensor, target: Tensor, known: Tensor | None = None) -> Tensor:
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        each = entropies(logits, target, multilabel=self.multilabel)
        if self.multilabel or logits.shape[1] == 1:
            # 1 - q by logits of its own: 1 - exp(-entropy) has no digits left where q is near 1
            g = as_maps(target, logits).to(logits.dtype)
            log_rest = g * F.logsigmoid(-logits) + (1 - g) * F.logsigmoid(logits)
            focused = (self.gamma * log_rest).exp() * each
        else:
            # for a gamma below 1 the power has an infinite slope at 0, which a sure voxel reaches
            focused = (-torch.expm1(-each)).clamp_min(1e-7).pow(self.gamma) * each
        if self.weights is not None:
            return self.weights.mean(focused, target, logits.shape[1], known)
        return mean_of(focused, known)


class TopK(nn.Module):
    """Cross-entropy over the hardest voxels of the batch alone.

    Source: online bootstrapping of hard pixels (wu2016); a tenth of the voxels as in public code of nnU-Net
    (isensee2021). With overlapping classes, the hardest values of all maps. Reading: with weights, a voxel is as hard as
    its weighted cross-entropy says, and the mean is a weighted one.

    Args:
        share: of the voxels that count, above 0 up to 1.
        weights: of the classes (`ClassWeights`); None: all alike.
        multilabel: every map has its own sigmoid.

    Shape:
        (N, K, *S), (N, *S) -> ()

    Raises:
        UsageError: for a share outside its range.
    """

    def __init__(
        self, *, share: float = 0.1, weights: Sequence[float] | str | None = None, multilabel: bool = False
    ) -> None:
        super().__init__()
        if not 0 < share <= 1:
            raise UsageError(f"share is {share}; it must be above 0, and 1 at most")
        self.share, self.multilabel = share, multilabel
        self.weights = class_weights(weights, multilabel=multilabel)

    def forward(self, logits: Tensor, target: Tensor, known: Tensor | None = None) -> Tensor:
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        each = entropies(logits, target, multilabel=self.multilabel)
        most = max(1, round(self.share * each.numel()))
        if self.weights is None and known is None:
            return each.flatten().topk(most, sorted=False).values.mean()
        weights = torch.ones_like(each)
        if self.weights is not None:
            self.weights.check(logits.shape[1])
            weights = self.weights.of(target, each)
        inside = torch.ones_like(each, dtype=torch.bool) if known is None else known.reshape(each.shape)
        hardest, at = (weights * each).masked_fill(~inside, 0).flatten().topk(most)
        # a share of those that are known, which are fewer: the first of as many as there may be
        first = torch.arange(most, device=each.device) < (self.share * inside.sum()).round().clamp_min(1)
        return (hardest * first).sum() / (weights.flatten()[at] * first).sum().clamp_min(1e-12)


class DiceFocal(DiceAnd):
    """`dice` * soft Dice + `focal` * focal loss.

    Shape:
        (N, K, *S), (N, *S) -> ()
    """

    def __init__(
        self,
        *,
        dice: float = 1.0,
        focal: float = 1.0,
        gamma: float = 2.0,
        weights: Sequence[float] | str | None = None,
        smooth: float = 1.0,
        reduction: str = "image",
        multilabel: bool = False,
    ) -> None:
        soft_dice = SoftDice(smooth=smooth, reduction=reduction, multilabel=multilabel)
        super().__init__(soft_dice, Focal(gamma=gamma, weights=weights, multilabel=multilabel), dice=dice, share=focal)


class DiceTopK(DiceAnd):
    """`dice` * soft Dice + `topk` * cross-entropy over the hardest voxels.

    Shape:
        (N, K, *S), (N, *S) -> ()
    """

    def __init__(
        self,
        *,
        dice: float = 1.0,
        topk: float = 1.0,
        share: float = 0.1,
        weights: Sequence[float] | str | None = None,
        smooth: float = 1.0,
        reduction: str = "image",
        multilabel: bool = False,
    ) -> None:
        soft_dice = SoftDice(smooth=smooth, reduction=reduction, multilabel=multilabel)
        super().__init__(soft_dice, TopK(share=share, weights=weights, multilabel=multilabel), dice=dice, share=topk)
