"""What the training cases of a data set are, summed up from what a check found of each."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ulna.data.pipeline.orientation import AS_STORED, Turn, codes, tilt_of, to_canonical, world_of
from ulna.data.quality.check import Report
from ulna.data.quality.intensity import Shape, shape_of
from ulna.data.quality.scan import CaseStats
from ulna.errors import UsageError
from ulna.planning.symmetry import slice_axes, world_axes
from ulna.recipe import Extent, Fingerprint, Foreground, Labels, parse


def fingerprint(report: Report, train: Sequence[str], channel_names: Sequence[str] | None = None) -> Fingerprint:
    """Sum up what the training cases are; validation and test cases do not shape the plan.

    Args:
        report: what `check_dataset` found; its scans are read, no file is opened again.
        train: ids of the training cases.
        channel_names: as the data set states them.
    """
    chosen = set(train)
    scans = [s for s in report.scans if s.size and s.case in chosen]
    if not scans:
        raise UsageError(f"{report.root}: no readable case to plan for")
    digest = hashlib.sha256("".join(sorted(f"{s.case} {s.digest}\n" for s in report.scans)).encode())
    first = scans[0]
    found = _orientations(scans)
    sizes = np.array([turn.order(s.size) for s, turn in zip(scans, found.turns, strict=True)])
    spacings = np.array([turn.order(s.spacing) for s, turn in zip(scans, found.turns, strict=True)])
    labelled = [s.foreground_values for s in scans if s.foreground_values is not None]
    foreground = [_foreground(values) for values in np.concatenate(labelled, axis=1)] if labelled else []
    facts = {
        "cases": len(scans),
        "digest": digest.hexdigest()[:16],
        "spatial_dims": len(first.size),
        "channels": first.channels,
        "channel_names": tuple(channel_names or [f"channel {c}" for c in range(first.channels)]),
        "dtypes": tuple(sorted({s.dtype for s in scans})),
        "size": _extent(sizes),
        "spacing": _extent(spacings),
        "orientation": found.orientation,
        "orientations": found.stored,
        "worlds": found.worlds,
        "world_axes": found.axes,
        "unit": first.unit if len({s.unit for s in scans}) == 1 else "px",
        "intensity": [
            {"min": min(s.image[c].min for s in scans), "max": max(s.image[c].max for s in scans)}
            for c in range(first.channels)
        ],
        "foreground": foreground,
        "classes": report.labels.names if report.labels else (),
        "voxels": _voxels(scans, report.labels),
        "extent": _extent(sizes * spacings),
        "values": _shapes(scans),
        "tilt": None if found.orientation is None else max(tilt_of(np.array(s.affine), len(s.size)) for s in scans),
        "modalities": dict(Counter(s.modality for s in scans if s.modality)),
        "body_parts": dict(Counter(s.body_part for s in scans if s.body_part)),
    }
    return parse(Fingerprint, facts, source=str(report.root))


def turns_of(scans: Sequence[CaseStats]) -> list[Turn]:
    """How each of some training images is turned for the network."""
    return _orientations(scans).turns


def _voxels(scans: Sequence[CaseStats], labels: Labels | None) -> tuple[int, ...]:
    """Of the background and every class; what is ignored is neither."""
    if labels is None:
        return ()
    return tuple(sum(s.label_values.get(number, 0) for s in scans) for number in range(len(labels.foreground) + 1))


def _extent(values: NDArray[Any]) -> Extent:
    """(cases, axes) -> what they reach from and to."""
    return Extent(min=values.min(0).tolist(), median=np.median(values, 0).tolist(), max=values.max(0).tolist())


def _shapes(scans: Sequence[CaseStats]) -> list[dict[str, Any]]:
    """A channel: what the distributions of its values reach from and to; none where a channel has one value alone."""
    channels = []
    for c in range(scans[0].channels):
        shapes = [shape for s in scans if (shape := shape_of(s.image[c])) is not None]
        if not shapes:
            return []
        low, high = np.min(shapes, axis=0).tolist(), np.max(shapes, axis=0).tolist()
        names = Shape._fields
        channels.append({name: {"min": a, "max": b} for name, a, b in zip(names, low, high, strict=True)})
    return channels


def _foreground(values: NDArray[np.float32]) -> Foreground:
    low, high = np.percentile(values.astype(np.float64), [0.5, 99.5])
    inside = values.astype(np.float64).clip(low, high)
    return Foreground(low=float(low), high=float(high), mean=float(inside.mean()), std=float(inside.std()))


class _Orientations(NamedTuple):
    """How the training images lie: the turn of each, the orientation that they are turned to, that of the files in letters,
    and the world axes that the turned ones span and run along."""

    turns: list[Turn]
    orientation: str | None
    stored: dict[str, int]
    worlds: tuple[int, ...] | None
    axes: tuple[int | None, ...] | None


def _orientations(scans: Sequence[CaseStats]) -> _Orientations:
    dims = len(scans[0].size)
    affines = [np.array(s.affine) for s in scans if s.affine is not None]
    if len(affines) < len(scans):  # what some files do not say cannot be used for any
        return _Orientations([AS_STORED] * len(scans), None, {}, None, None)
    turns = [to_canonical(affine, dims) for affine in affines]
    spanned = {world_of(affine, dims) for affine in affines}
    worlds = tuple(next(iter(spanned))) if len(spanned) == 1 else None
    turned = [turn.affine(affine, s.size) for turn, affine, s in zip(turns, affines, scans, strict=True)]
    along = None
    if dims == 3:
        along = tuple(world_axes(affine.tolist() for affine in turned))
    elif worlds is not None:
        along = tuple(slice_axes((affine.tolist() for affine in turned), worlds))
    return _Orientations(turns, "RAS", dict(Counter(codes(affine, dims) for affine in affines)), worlds, along)
