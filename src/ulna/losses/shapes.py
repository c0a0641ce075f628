"""Losses that know where voxels lie to each other: boundary loss and clDice. They need whole maps, not sampled points.

Where the class is not known, no structure is: one that is cut off there has a border and a skeleton as if it ended.
Legend as in `criteria.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ulna.errors import UsageError, unknown
from ulna.losses.criteria import Overlap, SoftDice, as_maps, mean_of
from ulna.losses.distances import signed_distances
from ulna.losses.regions import GeneralisedDice

SCHEDULES = ("constant", "increase", "rebalance")


class Boundary(Overlap):
    """`dice` * generalised Dice + alpha * mean of phi p, phi being the distance to the border of the reference.

    phi is below 0 within, so that what is wrong costs more the further it lies from the border; the loss may be below 0.
    alpha is `boundary`, with a schedule min(`most`, `boundary` + `growth` * epoch), epochs counted from 0: "increase" leaves
    the weight of Dice as it is, "rebalance" makes it (1 - alpha) * `dice`.

    Source: boundary loss (kervadec2019), Sec. 2: alpha begins at 0.01 and grows by 0.01 an epoch. Reading: distances in
    voxels of the map; 0 for a class that the image does not hold; `most`, of which the paper says nothing: without any Dice
    an empty mask would be best.

    Args:
        dice: weight of generalised Dice, which the paper adds: alone, the boundary term has its minimum for empty masks too.
        boundary: weight of the boundary term, in the first epoch where it has a schedule.
        schedule: "constant", "increase" or "rebalance".
        growth: of alpha, an epoch; 0 or more.
        most: what alpha grows to; at most 1 with "rebalance".
        smooth: s of generalised Dice, above 0.
        reduction: "image" or "batch", of generalised Dice.
        background: whether map 0 of a softmax counts in the boundary term.

    Shape:
        (N, K, *S), (N, *S) -> ()

    Raises:
        UsageError: for an unknown schedule, or numbers that it cannot go by.
    """

    needs_maps = True

    def __init__(
        self,
        *,
        dice: float = 1.0,
        boundary: float = 0.01,
        schedule: str = "constant",
        growth: float = 0.01,
        most: float = 0.99,
        smooth: float = 1.0,
        reduction: str = "image",
        background: bool = False,
        multilabel: bool = False,
    ) -> None:
        super().__init__(smooth=smooth, reduction=reduction, background=background, multilabel=multilabel)
        if schedule not in SCHEDULES:
            raise unknown("schedule of the boundary loss", schedule, SCHEDULES)
        largest = 1.0 if schedule == "rebalance" else float("inf")
        if schedule != "constant" and not (growth >= 0 and 0 <= boundary <= most <= largest):
            raise UsageError(
                f"schedule={schedule} of the boundary loss: growth is 0 or more, and boundary at most `most`"
                + (", which is at most 1" if schedule == "rebalance" else "")
                + f"; got growth={growth}, boundary={boundary}, most={most}"
            )
        self.shares, self.schedule, self.growth, self.most = (dice, boundary), schedule, growth, most
        self.dice = GeneralisedDice(smooth=smooth, reduction=reduction, multilabel=multilabel)
        # a tensor, which a recorded step reads anew every time
        self.register_buffer("alpha", torch.tensor(float(boundary)), persistent=False)
        self.alpha: Tensor

    def begin_epoch(self, epoch: int) -> None:
        """Take the weight of an epoch, counted from 0: it depends on nothing else, so that a resumed training has it too."""
        if self.schedule != "constant":
            self.alpha.fill_(min(self.most, self.shares[1] + self.growth * epoch))

    def forward(self, logits: Tensor, target: Tensor, known: Tensor | None = None) -> Tensor:
        p, g = self.maps(logits, target, known)
        with torch.no_grad():
            phi = signed_distances(g > 0.5, p.dtype)
        inside = None if known is None else as_maps(known, logits).expand_as(p)
        dice, boundary = self.dice(logits, target, known), mean_of(phi * p, inside)
        if self.schedule == "constant":
            return self.shares[0] * dice + self.shares[1] * boundary
        rest = 1 - self.alpha if self.schedule == "rebalance" else 1.0
        return rest * self.shares[0] * dice + self.alpha * boundary


class CenterlineDice(Overlap):
    """(1 - `cldice`) * soft Dice + `cldice` * (1 - clDice), for vessels and other tubes.

    clDice is the harmonic mean of the share of the predicted skeleton that lies in the reference, and of the reference's
    skeleton that lies in the prediction. A soft skeleton is what erosions, one after the other, leave of an opening.

    Source: clDice (shit2021), Alg. 1 and 2. Reading: a weight of 1/2; erosion by the neighbours along the axes and dilation
    by all, as in the authors' public code; sums as in `reduction`.

    Args:
        cldice: alpha, 0 to 1.
        iterations: k of the skeleton, 1 or more: about the radius of the thickest tube, in voxels.
        smooth: s of all ratios, above 0.
        reduction: "image" or "batch".
        background: whether map 0 of a softmax counts.

    Shape:
        (N, K, *S), (N, *S) -> ()

    Raises:
        UsageError: for a share or a number outside its range.
    """

    needs_maps = True

    def __init__(
        self,
        *,
        cldice: float = 0.5,
        iterations: int = 3,
        smooth: float = 1.0,
        reduction: str = "image",
        background: bool = False,
        multilabel: bool = False,
    ) -> None:
        super().__init__(smooth=smooth, reduction=reduction, background=background, multilabel=multilabel)
        if not 0 <= cldice <= 1 or not isinstance(iterations, int) or iterations < 1:
            raise UsageError(
                f"cldice is 0 to 1 and iterations a whole number from 1 up; got cldice={cldice}, iterations={iterations}"
            )
        self.share, self.iterations = cldice, iterations
        self.dice = SoftDice(smooth=smooth, reduction=reduction, background=background, multilabel=multilabel)

    def forward(self, logits: Tensor, target: Tensor, known: Tensor | None = None) -> Tensor:
        p, g = self.maps(logits, target, known)
        precision = self._within(skeleton(p, self.iterations), g)
        with torch.no_grad():
            thin = skeleton(g, self.iterations)
        sensitivity = self._within(thin, p)
        cldice = (2 * precision * sensitivity / (precision + sensitivity)).mean()
        return (1 - self.share) * self.dice(logits, target, known) + self.share * (1 - cldice)

    def _within(self, thin: Tensor, region: Tensor) -> Tensor:
        thin, region = thin.flatten(2), region.flatten(2)
        return (self.sum(thin * region) + self.smooth) / (self.sum(thin) + self.smooth)


def skeleton(x: Tensor, iterations: int) -> Tensor:
    """The soft skeleton of maps of probabilities: (N, K, *S) -> (N, K, *S)."""
    thin = F.relu(x - dilated(eroded(x)))
    for _ in range(iterations):
        x = eroded(x)
        rest = F.relu(x - dilated(eroded(x)))
        thin = thin + F.relu(rest - thin * rest)
    return thin


def eroded(x: Tensor) -> Tensor:
    """The least of every voxel and its two neighbours along each axis."""
    least = x
    for axis in range(2, x.ndim):
        for neighbour in _neighbours(x, axis):
            least = torch.minimum(least, neighbour)
    return least


def dilated(x: Tensor) -> Tensor:
    """The largest of every voxel and all its neighbours, one axis after the other."""
    for axis in range(2, x.ndim):
        before, after = _neighbours(x, axis)
        x = torch.maximum(torch.maximum(before, x), after)
    return x


def _neighbours(x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """What lies before and behind every voxel; at an end, itself. On a CPU twice as fast as pooling volumes."""
    n = x.shape[axis]
    first, last = x.narrow(axis, 0, 1), x.narrow(axis, n - 1, 1)
    return torch.cat([first, x.narrow(axis, 0, n - 1)], axis), torch.cat([x.narrow(axis, 1, n - 1), last], axis)
