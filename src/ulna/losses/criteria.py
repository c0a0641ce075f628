"""Losses on logits: soft Dice, cross-entropy and their like, and the weighted mean of one over the supervised heads.

Legend: N images, K logit maps, *S spatial axes. Targets are class indices (N, *S); with one map they are 0 and 1; with
`multilabel` they are (N, K, *S) with 0 and 1. p is a probability, g the target. Sums run in the precision of the logits,
low ones in float32. A third tensor, `known`, has the shape of the target: where it is False, no voxel counts.
Formulas, edge cases and where they come from: docs/papers/losses_and_metrics.md, section 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ulna.errors import UsageError, unknown
from ulna.kernels.points.point_sample import point_sample
from ulna.losses.weights import ClassWeights, class_weights
from ulna.networks.heads import Outputs, probabilities

REDUCTIONS = ("image", "batch")


class Overlap(nn.Module):
    """What the losses on overlaps share: probabilities against one-hot targets, summed per image or over the batch."""

    def __init__(
        self, *, smooth: float = 1.0, reduction: str = "image", background: bool = False, multilabel: bool = False
    ) -> None:
        super().__init__()
        if smooth <= 0:
            raise UsageError(f"smooth is {smooth}; it must be above 0, or an empty mask gives 0/0")
        if reduction not in REDUCTIONS:
            raise unknown("reduction", reduction, REDUCTIONS)
        self.smooth, self.reduction, self.background, self.multilabel = smooth, reduction, background, multilabel

    def maps(self, logits: Tensor, target: Tensor, known: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """p and g as (N, maps, *S), 0 where not known; softmax outputs lose their background unless `background`."""
        p = probabilities(logits, multilabel=self.multilabel)
        exclusive = logits.shape[1] > 1 and not self.multilabel
        g = one_hot(target, logits.shape[1]) if exclusive else as_maps(target, logits)
        first = 1 if exclusive and not self.background else 0
        p, g = p[:, first:], g[:, first:].to(p.dtype)
        if known is not None:
            inside = as_maps(known, logits).to(p.dtype)
            p, g = p * inside, g * inside
        return p, g

    def pairs(self, logits: Tensor, target: Tensor, known: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The same as (N, maps, voxels)."""
        p, g = self.maps(logits, target, known)
        return p.flatten(2), g.flatten(2)

    def sum(self, x: Tensor) -> Tensor:
        """Sum over voxels: (N, maps, voxels) -> (N, maps), or (maps,) pooled over the batch."""
        return x.sum(dim=2) if self.reduction == "image" else x.sum(dim=(0, 2))


class SoftDice(Overlap):
    """1 - (2 sum pg + s) / (sum p + sum g + s); with `squared` p and g are squared in the denominator.

    Source: modular U-Net (laird2019), Sec. 5.2 ("Dice" and "Dice squared"); s = 1 in the code of UNet++ (zhou2018).

    Args:
        smooth: s, above 0. Small values make the loss of an empty image a step.
        reduction: "image" (per image and class, then the mean) or "batch" (pooled over the batch, per class).
        background: whether map 0 of a softmax counts.
        squared: square the terms of the denominator.

    Shape:
        (N, K, *S), (N, *S) -> ()

    Example:
        >>> round(SoftDice()(torch.full((1, 1, 2, 2), 20.0), torch.ones(1, 2, 2)).item(), 4)
        0.0
    """

    def __init__(
        self,
        *,
        smooth: float = 1.0,
        reduction: str = "image",
        background: bool = False,
        squared: bool = False,
        multilabel: bool = False,
    ) -> None:
        super().__init__(smooth=smooth, reduction=reduction, background=background, multilabel=multilabel)
        self.squared = squared

    def forward(self, logits: Tensor, target: Tensor, known: Tensor | None = None) -> Tensor:
        p, g = self.pairs(logits, target, known)
        below = self.sum(p * p) + self.sum(g * g) if self.squared else self.sum(p) + self.sum(g)
        return 1 - ((2 * self.sum(p * g) + self.smooth) / (below + self.smooth)).mean()


class CrossEntropy(nn.Module):
    """Cross-entropy over all voxels that are known: of a sigmoid for one map or with `multilabel` (BCE), else of a softmax.

    Where none is known, it is 0.

    Args:
        weights: of the classes (`ClassWeights`), as of a weighted mean; None: all alike.
        multilabel: every map has its own sigmoid.

    Shape:
        (N, K, *S), (N, *S) -> ()
    """

    def __init__(self, *, weights: Sequence[float] | str | None = None, multilabel: bool = False) -> None:
        super().__init__()
        self.multilabel = multilabel
        self.weights = class_weights(weights, multilabel=multilabel)

    def forward(self, logits: Tensor, target: Tensor, known: Tensor | None = None) -> Tensor:
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.weights is None and known is None:
            return entropies(logits, target, multilabel=self.multilabel, reduction="mean")
        each = entropies(logits, target, multilabel=self.multilabel)
        if self.weights is not None:
            return self.weights.mean(each, target, logits.shape[1], known)
        return mean_of(each, known)


def entropies(logits: Tensor, target: Tensor, *, multilabel: bool, reduction: str = "none") -> Tensor:
    """The cross-entropy of every voxel, or their mean: (N, K, *S), (N, *S) -> (N, *S), or (N, K, *S) of sigmoids."""
    if multilabel or logits.shape[1] == 1:
        maps = as_maps(target, logits).to(logits.dtype)
        return F.binary_cross_entropy_with_logits(logits, maps, reduction=reduction)
    return F.cross_entropy(logits, target.long(), reduction=reduction)


def mean_of(each: Tensor, known: Tensor | None) -> Tensor:
    """The mean of the losses of voxels over those that are known; 0 where none is.

    Shape:
        (N, *S) or (N, K, *S), the same or (N, *S) of one map -> ()
    """
    if known is None:
        return each.mean()
    inside = known.reshape(each.shape).to(each.dtype)
    return (each * inside).sum() / inside.sum().clamp_min(1)


class DiceAnd(nn.Module):
    """`dice` * soft Dice + `share` * another criterion.

    Args:
        soft_dice: soft Dice.
        other: the criterion beside it.
        dice: how much soft Dice counts.
        share: how much the other counts.

    Shape:
        (N, K, *S), (N, *S) -> ()
    """

    def __init__(self, soft_dice: SoftDice, other: nn.Module, *, dice: float, share: float) -> None:
        super().__init__()
        self.soft_dice, self.other, self.shares = soft_dice, other, (dice, share)

    def forward(self, logits: Tensor, target: Tensor, known: Tensor | None = None) -> Tensor:
        dice, other = (one(logits, target, known) for one in (self.soft_dice, self.other))
        return self.shares[0] * dice + self.shares[1] * other


class DiceCrossEntropy(DiceAnd):
    """`dice` * soft Dice + `cross_entropy` * cross-entropy.

    Source: SDU-Net (carvalho2021), Sec. 3.2, and Implicit U-Net (marimont2022), Sec. 3.1. Reading: weights 1 and 1.
    The `weights` of the classes are those of the cross-entropy; Dice is a mean over classes.
    """

    def __init__(
        self,
        *,
        dice: float = 1.0,
        cross_entropy: float = 1.0,
        weights: Sequence[float] | str | None = None,
        smooth: float = 1.0,
        reduction: str = "image",
        multilabel: bool = False,
    ) -> None:
        soft_dice = SoftDice(smooth=smooth, reduction=reduction, multilabel=multilabel)
        other = CrossEntropy(weights=weights, multilabel=multilabel)
        super().__init__(soft_dice, other, dice=dice, share=cross_entropy)


class UNetPlusPlusLoss(DiceCrossEntropy):
    """Half the binary cross-entropy plus soft Dice.

    Source: UNet++ (zhou2018), Eq. 2. Reading: as printed it has only the positive half of the cross-entropy and no sums in
    the ratio; taken as in the authors' code, Dice per image and not pooled (docs/papers/unetpp.md, section 4).
    """

    def __init__(self, *, smooth: float = 1.0, reduction: str = "image", multilabel: bool = False) -> None:
        super().__init__(cross_entropy=0.5, smooth=smooth, reduction=reduction, multilabel=multilabel)


class FocalTversky(Overlap):
    """(1 - TI)^exponent with TI = (TP + s) / (TP + alpha FN + beta FP + s).

    Source: modular U-Net (laird2019), Sec. 5.2; alpha, beta, s and the exponent from the code of focal Tversky
    (abraham2018). alpha weighs what is missed.

    Shape:
        (N, K, *S), (N, *S) -> ()
    """

    def __init__(
        self,
        *,
        alpha: float = 0.7,
        beta: float = 0.3,
        exponent: float = 0.75,
        smooth: float = 1.0,
        reduction: str = "image",
        background: bool = False,
        multilabel: bool = False,
    ) -> None:
        super().__init__(smooth=smooth, reduction=reduction, background=background, multilabel=multilabel)
        self.alpha, self.beta, self.exponent = alpha, beta, exponent

    def forward(self, logits: Tensor, target: Tensor, known: Tensor | None = None) -> Tensor:
        # below 1 the power has an infinite slope at 0, which a perfect prediction reaches
        return (1 - self.index(logits, target, known)).clamp_min(1e-7).pow(self.exponent).mean()

    def index(self, logits: Tensor, target: Tensor, known: Tensor | None = None) -> Tensor:
        """TI of every image and map, or of every map pooled over the batch."""
        p, g = self.pairs(logits, target, known)
        hit, missed, wrong = self.sum(p * g), self.sum((1 - p) * g), self.sum(p * (1 - g))
        return (hit + self.smooth) / (hit + self.alpha * missed + self.beta * wrong + self.smooth)


class HeadsLoss(nn.Module):
    """Weighted mean of one criterion over the supervised heads.

    Source: UNet++ (zhou2018), Eq. 2, and omega-Net (wang2020), Eq. 8; "halving" is the deep supervision of nnU-Net
    (isensee2021): the weight halves from each head to the next coarser one, the coarsest gets none, then all are
    normalised to sum 1.

    Args:
        criterion: (logits, target) -> ().
        weights: "equal", "halving", or head name -> weight.
        ignored: what stands in targets where the class is not known; None: it is known everywhere.
    """

    def __init__(
        self, criterion: nn.Module, weights: str | Mapping[str, float] = "equal", ignored: int | None = None
    ) -> None:
        super().__init__()
        if isinstance(weights, str) and weights not in ("equal", "halving"):
            raise unknown("weighting of heads", weights, ("equal", "halving"))
        self.criterion = criterion
        self.weights = weights
        self.ignored = ignored

    def check(self, maps: int) -> None:
        """Refuse class weights that do not fit so many maps.

        Raises:
            UsageError: with the number that is asked for.
        """
        for part in self.criterion.modules():
            weights = getattr(part, "weights", None)
            if isinstance(weights, ClassWeights):
                weights.check(maps)

    def begin_epoch(self, epoch: int) -> None:
        """What of the criterion depends on the epoch, counted from 0; most depend on none."""
        for part in self.criterion.modules():
            if callable(begin := getattr(part, "begin_epoch", None)):
                begin(epoch)

    def forward(self, outputs: Outputs, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and the criterion at every head with a weight."""
        weights = self.weights_for(outputs)
        parts = {
            name: self._of(logits, target_for(logits, target, outputs.points))
            for name, logits in outputs.heads.items()
            if weights[name] > 0
        }
        return torch.stack([weights[name] * loss for name, loss in parts.items()]).sum(), parts

    def _of(self, logits: Tensor, target: Tensor) -> Tensor:
        """The criterion at one head, over the voxels that are known."""
        if self.ignored is None:
            return self.criterion(logits, target)
        known = target != self.ignored
        return self.criterion(logits, target * known, known)

    def weights_for(self, outputs: Outputs) -> dict[str, float]:
        """Head name -> weight; the weights sum to 1.

        Raises:
            UsageError: if a weight names a head that the network has not, or the criterion cannot read points.
        """
        names = list(outputs.heads)
        if outputs.points is not None and getattr(self.criterion, "needs_maps", False):
            raise UsageError(
                "loss.kind: this loss goes by where voxels lie to each other, and points are sampled from all over a patch; "
                "take another loss, or train on whole patches: leave points.count and points.fraction out, with another head"
            )
        if isinstance(self.weights, Mapping):
            for name in self.weights:
                if name not in names:
                    raise UsageError(f"loss.heads: {unknown('head', name, names)}")
            raw = {name: float(self.weights.get(name, 0.0)) for name in names}
        elif self.weights == "halving" and len(names) > 1:
            if outputs.points is not None:
                raise UsageError(
                    "loss.heads=halving goes by the size of the heads, and all have that of the sampled points; "
                    "weigh them by name, or leave points.count and points.fraction out"
                )
            size = {name: outputs.heads[name][0, 0].numel() for name in names}
            fine_to_coarse = sorted(set(size.values()), reverse=True)
            raw = {name: 0.5 ** fine_to_coarse.index(size[name]) for name in names}
            if len(fine_to_coarse) > 1:  # heads of one size, as UNet++ has, weigh the same
                raw |= {name: 0.0 for name in names if size[name] == fine_to_coarse[-1]}
        else:
            raw = dict.fromkeys(names, 1.0)
        total = sum(raw.values())
        if total <= 0 or min(raw.values()) < 0:
            raise UsageError(f"loss.heads: weights {raw} must be 0 or more, and not all 0")
        return {name: raw[name] / total for name in names}


def check_targets(target: Tensor, maps: int, *, multilabel: bool, ignored: int | None = None) -> None:
    """Refuse targets that the losses would take for something else: 255 in a binary one gives a Dice loss below 0.

    It reads every value, so it is for the start of a training; the losses themselves check nothing.

    Args:
        target: of a training, or its lowest and highest value alone.
        maps: K, of the network's logits.
        multilabel: whether classes overlap.
        ignored: what stands where the class is not known, the value behind the last.

    Shape:
        (N, *S), or (N, K, *S) with `multilabel`

    Raises:
        UsageError: for values other than those of the classes.
    """
    last = (1 if multilabel or maps == 1 else maps - 1) if ignored is None else ignored
    low, high = (float(value) for value in target.aminmax())
    broken = target.is_floating_point() and bool((target != target.round()).any())
    if low >= 0 and high <= last and not broken:  # not so for NaN
        return
    known = torch.arange(last + 1, device=target.device, dtype=target.dtype)
    odd = torch.unique(target[torch.isin(target, known, invert=True)]).tolist()
    shown = ", ".join(f"{value:g}" for value in odd[:5]) + (", ..." if len(odd) > 5 else "")
    raise UsageError(
        f"the labels of a training hold {shown}; this network knows 0 to {last}"
        + (" in each of its maps" if multilabel else " (0 is background)")
        + "; look at the masks with `ulna check`, and name further values as classes or map them to these"
    )


def target_for(logits: Tensor, target: Tensor, points: Tensor | None = None) -> Tensor:
    """The target where `logits` are: at points, or on the grid of a coarser head by nearest neighbour.

    Shape:
        (N, *S) or (N, K, *S) -> (N, *S') or (N, K, *S') with S' of `logits`; at points (N, P, D), (N, P) or (N, K, P)
    """
    if points is not None:
        dims = points.shape[-1]
        maps = target if target.ndim > dims + 1 else target[:, None]
        found = point_sample(maps, points, maps.shape[2:]).transpose(1, 2)
        return found if target.ndim > dims + 1 else found[:, 0]
    size = logits.shape[2:]
    if target.shape[-len(size) :] == size:
        return target
    maps = target if target.ndim == logits.ndim else target[:, None]
    wide = maps.to(torch.promote_types(maps.dtype, torch.float32))
    resized = F.interpolate(wide, size=size, mode="nearest-exact").to(target.dtype)
    return resized if target.ndim == logits.ndim else resized[:, 0]


def one_hot(target: Tensor, classes: int) -> Tensor:
    """(N, *S) class indices -> (N, K, *S) with 0 and 1."""
    return F.one_hot(target.long(), classes).movedim(-1, 1)


def as_maps(target: Tensor, logits: Tensor) -> Tensor:
    """Binary targets with the axes of `logits`: (N, *S) -> (N, 1, *S); (N, K, *S) stays."""
    return target if target.ndim == logits.ndim else target[:, None]
