"""How much the answers to one image agree: of the heads of a network, of mirrored copies, or of several networks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ulna.recipe import Labels

if TYPE_CHECKING:
    from torch import Tensor  # imported where answers are counted alone: a server of exported files has no torch

MOST_CLASSES = 32  # each is compared for itself


class Agreement:
    """Voxels that pairs of answers have in common, summed over all windows or slabs of an image.

    Args:
        labels: the classes.
        copies: whether mirrored copies are made for it alone, and the answer stays that to the image as it is.
    """

    def __init__(self, labels: Labels, *, copies: bool = False) -> None:
        self.labels, self.copies = labels, copies
        self._sums: Tensor | None = None  # (2, K): twice what is common, and all

    def add(self, counts: Tensor) -> None:
        """Counts of `count_agreement`, (N, 2, K)."""
        import torch

        counts = counts.sum(dim=0, dtype=torch.float32 if counts.device.type == "mps" else torch.float64)
        self._sums = counts if self._sums is None else self._sums + counts

    def by_class(self) -> dict[str, float]:
        """Class -> 2 |A and B| / (|A| + |B|); NaN where no answer holds it. Empty where nothing was compared."""
        if self._sums is None:
            return {}
        common, total = self._sums.cpu().numpy()
        values: NDArray[np.float64] = np.divide(common, total, out=np.full(len(total), np.nan), where=total > 0)
        return dict(zip(self.labels.foreground, values.tolist(), strict=True))


def count_agreement(first: Tensor, second: Tensor, labels: Labels, *, logits: bool = False) -> Tensor:
    """Twice what two answers have in common, and both together, by class: (N, K, *S) twice -> (N, 2, K), float32.

    A second answer of a coarser grid is compared at the first voxel of each of its cells.

    Args:
        first: probabilities or logits.
        second: the same, on this grid or a coarser one.
        labels: the classes.
        logits: whether they are logits.
    """
    import torch

    if first.shape[2:] != second.shape[2:]:
        steps = [max(1, -(-n // m)) for n, m in zip(first.shape[2:], second.shape[2:], strict=True)]
        coarse: tuple[Any, ...] = (..., *(slice(None, None, step) for step in steps))
        first = first[coarse]
        both: tuple[Any, ...] = (
            ...,
            *(slice(min(n, m)) for n, m in zip(first.shape[2:], second.shape[2:], strict=True)),
        )
        first, second = first[both], second[both]
    counts = []
    for a, b in zip(*(_classes(maps, labels, logits) for maps in (first, second)), strict=True):
        axes = tuple(range(1, a.ndim))
        common = (a & b).sum(dim=axes)
        counts.append(torch.stack([2 * common, a.sum(dim=axes) + b.sum(dim=axes)], dim=1))
    return torch.stack(counts, dim=2).float()


def _classes(maps: Tensor, labels: Labels, logits: bool) -> list[Tensor]:
    """Where every structure is: K of (N, *S)."""
    if labels.multilabel or maps.shape[1] == 1:
        return list((maps > (0.0 if logits else 0.5)).unbind(dim=1))
    chosen = maps.max(dim=1).indices
    return [chosen == number for number in range(1, maps.shape[1])]
