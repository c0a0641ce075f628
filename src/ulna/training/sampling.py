"""Which structure a patch shows that is placed on one, where all training cases are looked at together.

By case every case is as likely as any other, and then every class that it holds (`Structures`). By class every class of the
data set is as likely as any other, and then every case that holds it; by lesion, every connected component of the class in
all cases, so that a small one is seen as often as a large one. Classes that overlap are taken one by one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy.ndimage import generate_binary_structure, label
from torch import Tensor

from ulna.data.pipeline.patches import Runs, Structures, voxel_of

Sampling = Literal["case", "class", "lesion"]


class Chosen(NamedTuple):
    """A voxel of a structure, and the case that it lies in."""

    case: int
    voxel: tuple[int, ...]
    size: tuple[int, ...]  # of the case


class Pieces(NamedTuple):
    """What may be chosen in one case: its classes whole, or their lesions.

    Args:
        size: of the case.
        by_class: class -> the voxels of each piece.
    """

    size: tuple[int, ...]
    by_class: Mapping[int, Sequence[Runs]]

    @property
    def nbytes(self) -> int:
        """Of memory."""
        return sum(first.nbytes + ends.nbytes for runs in self.by_class.values() for first, ends in runs)

    @classmethod
    def of(cls, structures: Structures, labels: Tensor, sampling: Sampling) -> Pieces:
        """Those of a case.

        Args:
            structures: of these labels.
            labels: (*S) or (K, *S).
            sampling: "class" or "lesion".
        """
        found: dict[int, Sequence[Runs]] = {}
        for number, runs in structures.by_class.items():
            if sampling == "class":
                found[number] = [runs]
                continue
            overlapping = labels.ndim > len(structures.size)
            found[number] = lesions((labels[number - 1] == 1) if overlapping else (labels == number))
        return cls(structures.size, found)


def lesions(mask: Tensor) -> list[Runs]:
    """The voxels of each connected component of a mask (*S); voxels that share an edge or a corner are one piece."""
    numbers, count = label(mask.cpu().numpy(), generate_binary_structure(mask.ndim, mask.ndim))
    flat = numbers.reshape(-1)
    first = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    lengths, of_runs = np.diff(first, append=len(flat)), flat[first]
    order = np.argsort(of_runs, kind="stable")
    cuts = np.searchsorted(of_runs[order], np.arange(1, count + 1))
    return [(first[some], lengths[some].cumsum()) for some in np.split(order, cuts)[1:]]


class Balance:
    """The pieces of all training cases, to choose from.

    Args:
        cases: of every training case, in their order.
    """

    def __init__(self, cases: Sequence[Pieces]) -> None:
        self._sizes = [case.size for case in cases]
        found: dict[int, list[tuple[int, Runs]]] = {}
        for number, case in enumerate(cases):
            for one, pieces in case.by_class.items():
                found.setdefault(one, []).extend((number, runs) for runs in pieces)
        self._classes = [found[one] for one in sorted(found)]

    def choose(self, generator: np.random.Generator) -> Chosen | None:
        """A random voxel of a random piece of a random class; None where no case holds a structure."""
        if not self._classes:
            return None
        pieces = self._classes[int(generator.integers(len(self._classes)))]
        case, runs = pieces[int(generator.integers(len(pieces)))]
        return Chosen(case, voxel_of(runs, self._sizes[case], generator), self._sizes[case])
