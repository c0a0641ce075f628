"""One number that makes probabilities mean what they say: logits are divided by it, so that no answer changes.

Source: temperature scaling, and ECE with 15 bins (guo2017).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.optimize import minimize_scalar

from ulna.evaluation.calibration import ece
from ulna.recipe import Frozen

if TYPE_CHECKING:
    from torch import Tensor  # imported where something is scaled alone: a server of exported files has no torch

COLDEST, HOTTEST = 0.2, 10.0
_TINY = 1e-7  # what float32 tells from 0 and 1


class Sample(NamedTuple):
    """Voxels of one case.

    Args:
        probabilities: (K, n), float32.
        classes: (n), the class of the reference; of maps with a sigmoid each (K, n) of 0 and 1.
    """

    probabilities: NDArray[np.float32]
    classes: NDArray[np.int64]


class Temperature(Frozen):
    """What probabilities are scaled by, and the expected calibration error (ECE) before and after."""

    value: float = Field(ge=COLDEST, le=HOTTEST)
    ece_before: float = Field(ge=0, le=1)
    ece_after: float = Field(ge=0, le=1)
    cases: int = Field(ge=1)
    voxels: int = Field(ge=1)


def scaled(maps: Tensor, temperature: float, *, exclusive: bool) -> Tensor:
    """Probabilities with their logits divided by the temperature: (K, *S) -> (K, *S), float32.

    Args:
        maps: probabilities.
        temperature: above 1 they come closer to each other.
        exclusive: they sum to 1; else each map has a sigmoid of its own.

    Example:
        >>> import torch
        >>> scaled(torch.tensor([[0.8], [0.2]]), 2.0, exclusive=True).T
        tensor([[0.6667, 0.3333]])
    """
    if temperature == 1:
        return maps
    if exclusive:
        powers = maps.clamp_min(_TINY).pow_(1 / temperature)
        return powers.div_(powers.sum(dim=0, keepdim=True))
    return maps.logit(_TINY).div_(temperature).sigmoid_()


def fit_temperature(samples: list[Sample], *, exclusive: bool) -> Temperature | None:
    """The temperature with the highest likelihood; 1 where it lowers no error on cases that it was not fitted on.

    Both errors are of voxels that took no part in the fit: even cases by the fit of the odd ones, and the
    other way.

    Args:
        samples: of cases, each drawn where there is something to tell.
        exclusive: see `scaled`.

    Returns:
        None where fewer than two cases have voxels.
    """
    samples = [sample for sample in samples if sample.probabilities.shape[1]]
    if len(samples) < 2:
        return None
    halves = [samples[::2], samples[1::2]]
    before = _error(samples, [1.0, 1.0], exclusive)
    after = _error(samples, [_fit(halves[1], exclusive), _fit(halves[0], exclusive)], exclusive)
    value = _fit(samples, exclusive) if after < before else 1.0
    voxels = sum(sample.probabilities.shape[1] for sample in samples)
    return Temperature(value=value, ece_before=before, ece_after=min(before, after), cases=len(samples), voxels=voxels)


def _fit(samples: list[Sample], exclusive: bool) -> float:
    import torch

    maps = torch.from_numpy(np.concatenate([sample.probabilities for sample in samples], axis=1))
    classes = torch.from_numpy(np.concatenate([sample.classes for sample in samples], axis=-1))

    def loss(log: float) -> float:
        p = scaled(maps, float(np.exp(log)), exclusive=exclusive).clamp(_TINY, 1 - _TINY)
        if exclusive:
            return float(-p.gather(0, classes[None]).log().mean())
        return float(torch.nn.functional.binary_cross_entropy(p, classes.float()))

    found = minimize_scalar(loss, bounds=(np.log(COLDEST), np.log(HOTTEST)), method="bounded", options={"xatol": 1e-3})
    return round(float(np.exp(found.x)), 4)


def _error(samples: list[Sample], temperatures: list[float], exclusive: bool) -> float:
    """The ECE of all, even and odd cases each by a temperature."""
    import torch

    sure, right = [], []
    for number, sample in enumerate(samples):
        maps = scaled(torch.from_numpy(sample.probabilities), temperatures[number % 2], exclusive=exclusive).numpy()
        if exclusive:
            sure.append(maps.max(axis=0))
            right.append(maps.argmax(axis=0) == sample.classes)
        else:
            sure.append(np.maximum(maps, 1 - maps).reshape(-1))
            right.append(((maps > 0.5) == sample.classes).reshape(-1))
    return ece(np.concatenate(sure), np.concatenate(right))
