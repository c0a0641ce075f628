"""Whether an exported file predicts as the run does: voxel by voxel, and its logits."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from ulna.data.layout.case import Case, read_reference
from ulna.data.pipeline.preprocess import prepare
from ulna.data.pipeline.slices import neighbourhoods
from ulna.data.volume import Volume
from ulna.evaluation.choice import spread
from ulna.inference.inputs import assumed_affine
from ulna.inference.segmenter import Segmenter
from ulna.inference.volume import as_given
from ulna.networks.network import pad_to_multiple
from ulna.recipe import Plan
from ulna.system.extras import need

log = logging.getLogger(__name__)

MOST_CASES = 8  # that are compared
MADE_UP = 2


class Compared(NamedTuple):
    """An image, and its reference where there is one."""

    name: str
    volume: Volume
    reference: NDArray[Any] | None


@dataclass(frozen=True)
class Parity:
    """How an exported file and its run compare.

    Args:
        cases: images that were compared.
        made_up: whether they were made up, for lack of data.
        voxels: of all of them.
        identical: the share of voxels with the same answer.
        probabilities: the largest difference.
        logits: the largest difference of the windows' logits, over the largest logit where that is above 1.
        dice_lost: the mean Dice of the run minus that of the file, against the references; where there are none, 1 minus the
            Dice of both masks.
        against_references: whether there are.
    """

    cases: int
    made_up: bool
    voxels: int
    identical: float
    probabilities: float
    logits: float
    dice_lost: float
    against_references: bool

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def compare(run: Segmenter, exported: Any, images: Iterator[Compared], *, made_up: bool, logits: float) -> Parity:
    """Predict every image in both ways, masks after post-processing and probabilities as they are shown.

    Args:
        run: on a CPU in float32.
        exported: a segmenter of `ulna_runtime`.
        images: to compare.
        made_up: whether they are.
        logits: what the windows' logits differ by.
    """
    to_runtime = need("ulna_runtime").Volume
    same = voxels = count = 0
    apart, lost = 0.0, []
    against = False
    for image in images:
        volume = image.volume
        expected = run.segment(volume, probabilities=True)
        ours = expected.mask
        theirs = exported(
            to_runtime(volume.array, volume.spacing, volume.unit, volume.affine, volume.path), probabilities=True
        )
        apart = max(apart, float(np.abs(theirs.probabilities - expected.probabilities).max()))
        agree = ours == theirs.mask
        same, voxels, count = same + int(agree.sum()), voxels + agree.size, count + 1
        against = against or image.reference is not None
        lost.append(_dice_lost(ours, theirs.mask, image.reference, run.plan))
    return Parity(count, made_up, voxels, same / max(1, voxels), apart, logits, float(np.mean(lost)), against)


def cases_to_compare(cases: Sequence[Case], plan: Plan, most: int = MOST_CASES) -> Iterator[Compared]:
    """Some cases, evenly taken, with their references."""
    for case in spread(cases, most):
        volume = case.read_image()
        yield Compared(case.id, volume, read_reference(case, volume, plan) if case.label is not None else None)


def made_up_images(plan: Plan) -> Iterator[Compared]:
    """Smooth blobs on noise, of the size, spacing and values that the fingerprint of the training tells."""
    told, rng = plan.fingerprint, np.random.default_rng(0)
    spacing = tuple(told.spacing.median)
    ranges = told.intensity or ()
    for number in range(MADE_UP):
        size = tuple(max(4, round(n * (1 + 0.1 * number))) for n in told.size.median)
        noise = rng.normal(size=(plan.in_channels, *size))
        blobs = np.stack([ndimage.gaussian_filter(one, max(1.0, min(size) / 16)) for one in noise])
        blobs /= max(float(np.abs(blobs).max()), 1e-9)
        values = np.clip(0.5 + 0.4 * blobs + 0.05 * noise, 0, 1)
        for channel in range(plan.in_channels):
            low, high = (ranges[channel].min, ranges[channel].max) if channel < len(ranges) else (0, 255)
            values[channel] = low + (high - low) * values[channel]
        affine = assumed_affine(plan, spacing) if plan.orientation else None
        yield Compared(f"made-up {number}", Volume(values.astype(np.float32), spacing, plan.unit, affine), None)


def windows_of(run: Segmenter, volumes: Sequence[Volume], count: int) -> list[NDArray[np.float32]]:
    """Windows of images as the network sees them, from places spread over each: (1, C, *patch)."""
    plan, rng = run.plan, np.random.default_rng(0)
    found = []
    for number in range(count):
        volume = volumes[number % len(volumes)]
        image = as_given(prepare(volume, plan), run.network, plan).image
        if plan.slices is not None:
            place = int(rng.integers(image.shape[1 + plan.slices.axis]))
            image = neighbourhoods(image, plan.slices.axis, [place], plan.slices.neighbours)[0]
        corner = [int(rng.integers(max(1, n - p + 1))) for n, p in zip(image.shape[1:], plan.patch, strict=True)]
        window = image[(slice(None), *(slice(c, c + p) for c, p in zip(corner, plan.patch, strict=True)))]
        found.append(pad_to_multiple(window[None], run.network.divisor).numpy())
    return found


def logits_apart(run: Segmenter, network: Any, windows: Sequence[NDArray[np.float32]]) -> float:
    """The largest difference of logits, over the largest logit where that is above 1; heads that read points at all voxels.

    Args:
        run: on a CPU in float32.
        network: of `ulna_runtime`.
        windows: (1, C, *S).
    """
    apart, largest = 0.0, 1.0
    with torch.inference_mode():
        for window in windows:
            expected = run.network(torch.from_numpy(window))[0].numpy()
            found = network.dense_logits(window[0])
            apart, largest = (
                max(apart, float(np.abs(found - expected).max())),
                max(largest, float(np.abs(expected).max())),
            )
    return apart / largest


def _dice_lost(ours: NDArray[Any], theirs: NDArray[Any], reference: NDArray[Any] | None, plan: Plan) -> float:
    if reference is None:
        return 1 - dice(ours, theirs, plan)
    return dice(ours, reference, plan) - dice(theirs, reference, plan)


def dice(a: NDArray[Any], b: NDArray[Any], plan: Plan) -> float:
    """The mean Dice of the structures that either holds, 1 where none does; without what the reference does not know."""
    labels = plan.labels
    if labels.ignored is not None:
        known = b != labels.ignored
        a, b = np.where(known, a, 0), np.where(known, b, 0)
    scores = []
    for number in range(len(labels.foreground)):
        one, other = (a[number] > 0, b[number] > 0) if labels.multilabel else (a == number + 1, b == number + 1)
        total = int(one.sum()) + int(other.sum())
        if total:
            scores.append(2 * int((one & other).sum()) / total)
    return float(np.mean(scores)) if scores else 1.0
