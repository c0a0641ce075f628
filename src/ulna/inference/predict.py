"""One image through a network: probabilities and labels in the image's own geometry."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ulna.blocks import nd
from ulna.data.preprocess import Prepared, prepare, restore
from ulna.inference.arithmetic import autocast
from ulna.inference.sliding import by_windows
from ulna.networks.heads import probabilities
from ulna.networks.network import Network
from ulna.recipe import Inference, Labels, Plan
from ulna.volume import Volume, label_dtype


def predict_volume(
    network: Network, plan: Plan, volume: Volume, *, settings: Inference, device: torch.device, precision: str = "fp32"
) -> Tensor:
    """Probabilities on the volume's own grid: Volume (C, *S) -> (K, *S), float32, on the CPU.

    Raises:
        UsageError: if the volume does not fit the plan.
    """
    return predict_prepared(network, plan, prepare(volume, plan), settings=settings, device=device, precision=precision)


def predict_prepared(
    network: Network, plan: Plan, prepared: Prepared, *, settings: Inference, device: torch.device, precision: str
) -> Tensor:
    """As `predict_volume`, from an image that is on the plan's grid already."""
    image = prepared.image.to(device)
    mirrored = _mirrorings(plan.mirror_axes) if settings.tta else [()]
    whole = math.prod(image.shape[1:]) <= plan.whole_image_limit

    def from_windows(windows: Tensor) -> Tensor:
        # channels last is faster in 2D, whatever layout the weights came in
        windows = windows.contiguous(memory_format=nd.layout(plan.spatial_dims, channels_last=True))
        maps: Tensor | None = None
        for axes in mirrored:
            logits = network(windows.flip(axes) if axes else windows)
            p = probabilities(logits, multilabel=plan.labels.multilabel)
            p = p.flip(axes) if axes else p
            maps = p if maps is None else maps + p
        assert maps is not None
        return maps / len(mirrored)

    with torch.inference_mode(), autocast(precision, device):
        patch = tuple(image.shape[1:]) if whole else plan.patch
        maps = by_windows(from_windows, image, patch, overlap=settings.overlap)
        return restore(maps.cpu(), prepared.size)


def to_labels(maps: Tensor, labels: Labels, threshold: float = 0.5) -> NDArray[Any]:
    """Probabilities to a label map in the smallest unsigned type: (K, *S) -> (*S), or (K, *S) of 0 and 1 if multilabel."""
    if labels.multilabel:
        return (maps > threshold).numpy().astype(np.uint8)
    if maps.shape[0] == 1:
        return (maps[0] > threshold).numpy().astype(np.uint8)
    return maps.argmax(dim=0).numpy().astype(label_dtype(maps.shape[0] - 1))


def _mirrorings(axes: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Every set of spatial axes to flip, as axes of (N, C, *S)."""
    return [tuple(a + 2 for a in some) for n in range(len(axes) + 1) for some in itertools.combinations(axes, n)]
