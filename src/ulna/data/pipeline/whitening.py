"""ZCA whitening of the channels of an image: what the training images have in common is taken out of every voxel."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ulna.recipe import Whitening

EPSILON = 1e-6  # added to every variance: the generator that the modular U-Net was trained with takes this


def fit_whitening(images: Iterable[Tensor]) -> Whitening:
    """Mean and ZCA matrix of all voxels: W = U diag(1 / sqrt(s + EPSILON)) U^T for a covariance U diag(s) U^T.

    Source: modular U-Net (laird2019), Sec. 5.1. Reading: of the channels of a voxel. Over all pixels of an image, as
    generators for small pictures do it, the covariance of 144 x 144 x 4 values would have 82,944 rows and columns.

    Shape:
        [(C, *S), ...] of any sizes
    """
    count, total, products = 0, torch.zeros(()), torch.zeros(())
    for image in images:
        x = image.flatten(1).double()
        count += x.shape[1]
        total = total + x.sum(dim=1)
        products = products + x @ x.T
    mean = total / count
    s, U = torch.linalg.eigh(products / count - torch.outer(mean, mean))
    matrix = U @ torch.diag((s.clamp_min(0) + EPSILON).rsqrt()) @ U.T
    return Whitening(mean=tuple(mean.tolist()), matrix=tuple(tuple(row) for row in matrix.tolist()))


def whiten(image: Tensor, how: Whitening) -> Tensor:
    """Every voxel x becomes W (x - mean): (C, *S) -> the same."""
    mean, matrix = (torch.tensor(values, device=image.device) for values in (how.mean, how.matrix))
    return (matrix @ (image.flatten(1) - mean[:, None])).reshape(image.shape)
