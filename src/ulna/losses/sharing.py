"""The loss of a batch whose samples several processes share: exactly that of the whole batch, for every loss.

A loss that is the mean of those of the samples needs no more than the own ones. All others (pooled over the batch, over
known voxels, weighted by class, of the hardest voxels) read the logits of all samples, which the processes tell each other;
each takes the gradients of its own.
"""

from __future__ import annotations

from torch import Tensor, nn

from ulna.losses.criteria import CrossEntropy, DiceAnd, HeadsLoss, Overlap
from ulna.losses.shapes import Boundary, CenterlineDice
from ulna.losses.voxels import Focal
from ulna.networks.heads import Outputs
from ulna.system.ranks import Ranks


def own_part(
    criterion: HeadsLoss, outputs: Outputs, labels: Tensor, *, batch: int, ranks: Ranks
) -> tuple[Tensor, Tensor]:
    """A loss whose gradients add up over the ranks to those of the whole batch.

    Args:
        criterion: of the whole batch.
        outputs: of the network, for the samples of this rank.
        labels: of them.
        batch: samples of all ranks.
        ranks: that share the batch.

    Returns:
        What to take gradients of, and this rank's part of the loss: these add up to the loss.
    """
    if ranks.alone or is_mean_of_samples(criterion):
        part: Tensor = criterion(outputs, labels)[0] * ranks.share(batch)
        return part, part.detach()
    points = None if outputs.points is None else ranks.whole(outputs.points, batch)
    heads = {name: ranks.whole(logits, batch) for name, logits in outputs.heads.items()}
    whole = Outputs(next(iter(heads.values())), heads, points)  # a loss reads the heads alone
    loss: Tensor = criterion(whole, ranks.whole(labels, batch))[0]
    return loss, loss.detach() / ranks.count


def is_mean_of_samples(criterion: HeadsLoss) -> bool:
    """Whether the loss of a batch is the mean of those of its samples, taken one by one."""
    return criterion.ignored is None and _by_sample(criterion.criterion)


def _by_sample(loss: nn.Module) -> bool:
    if isinstance(loss, DiceAnd):
        return _by_sample(loss.soft_dice) and _by_sample(loss.other)
    if isinstance(loss, Boundary | CenterlineDice):
        return loss.reduction == "image" and _by_sample(loss.dice)
    if isinstance(loss, CrossEntropy | Focal):
        return loss.weights is None
    return isinstance(loss, Overlap) and loss.reduction == "image"
