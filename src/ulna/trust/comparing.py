"""A case against the training data, before it is predicted: what lies far outside of them.

Every number of a case (a length, or a number of `Shape`) is compared with the range that the n training cases span. It
is far outside where it lies beyond the range widened on both sides by (0.5 + 5 / n) of its width, and by no less than a
floor: so few cases give a wide range, and equal ones one that is not narrow. Lengths are compared as logarithms.
docs/trust.md has how often these rules flag cases that are like those of the training, and others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ulna.data.pipeline.orientation import PLANES, tilt_of, turn_of, world_of
from ulna.data.quality.intensity import Shape, measure, shape_of
from ulna.data.volume import Volume
from ulna.errors import listed
from ulna.recipe import Fingerprint, Plan

WIDENED, FEW = 0.5, 5.0  # a range is widened by WIDENED + FEW / n of its width
LENGTH_FLOOR = {"mm": math.log(1.5), "px": math.log(2.0)}  # of spacings and fields of view
SHAPE_FLOOR = Shape(width=0.5, low=0.15, middle=0.15)
TILT_FLOOR = 15.0  # degrees beyond the most that a training case had
# what data sets call their channels -> what DICOM calls the modality
_KNOWN = {
    "CT": ("ct",),
    "MR": ("mr", "mri", "t1", "t2", "flair", "t1w", "t2w", "t1c", "t1ce", "t1gd", "adc", "dwi", "pd"),
    "PT": ("pet", "pt"),
    "US": ("us", "ultrasound"),
}


class Finding(NamedTuple):
    """One thing that is odd.

    Args:
        about: "input" or "mask".
        what: the rule, such as "spacing" or "missing".
        text: a short sentence for people.
        structure: the class that it is about; empty for the whole case.
    """

    about: str
    what: str
    text: str
    structure: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {name: value for name, value in self._asdict().items() if value}


class Comparison(NamedTuple):
    """What a comparison found.

    Args:
        findings: what lies far outside.
        compared: the rules that were applied.
        left_out: rule -> why it was not.
    """

    findings: tuple[Finding, ...]
    compared: tuple[str, ...]
    left_out: dict[str, str]


def compare_case(volume: Volume, plan: Plan, shapes: Sequence[Shape | None] | None = None) -> Comparison:
    """Compare a case with the training data of a plan.

    Args:
        volume: one that fits the plan.
        plan: of the run; an earlier one knows less of its data.
        shapes: the distribution of every channel, where the values of the volume are not in memory.
    """
    if shapes is None:
        shapes = _shapes(volume) if plan.fingerprint.values else ()
    told, earlier = plan.fingerprint, "the plan is of an earlier version, which did not store it"
    found: dict[str, list[str] | str] = {  # rule -> what is odd, or why it was not applied
        "modality": _modality(volume, told),
        "body part": _body_part(volume, told),
        "spacing": _lengths(volume, plan, "spacing"),
        "field of view": earlier if told.extent is None else _lengths(volume, plan, "field of view"),
        "orientation": _orientation(volume, plan),
        "intensity": _intensity(shapes, told) if told.values else "the plan does not hold the range of its values",
    }
    applied = {rule: lines for rule, lines in found.items() if isinstance(lines, list)}
    findings = tuple(Finding("input", rule, line) for rule, lines in applied.items() for line in lines)
    return Comparison(findings, tuple(applied), {rule: why for rule, why in found.items() if isinstance(why, str)})


def outside(value: float, low: float, high: float, cases: int, floor: float) -> bool:
    """Whether a number lies far outside of the range of so many cases.

    Example:
        >>> outside(1.4, 0.0, 1.0, cases=100, floor=0.1), outside(1.6, 0.0, 1.0, cases=100, floor=0.1)
        (False, True)
    """
    margin = max((WIDENED + FEW / cases) * (high - low), floor)
    return not low - margin <= value <= high + margin


def _modality(volume: Volume, told: Fingerprint) -> list[str] | str:
    own = volume.meta.modality
    if not own:
        return "the file does not say"
    known = tuple(told.modalities) or tuple(
        {kind for name in told.channel_names for kind, words in _KNOWN.items() if name.lower() in words}
    )
    if not known:
        return "the training data did not say"
    return [] if own in known else [f"is {own}, the training images are {listed(sorted(known))}"]


def _body_part(volume: Volume, told: Fingerprint) -> list[str] | str:
    own = volume.meta.body_part
    if not own:
        return "the file does not say"
    if not told.body_parts:
        return "the training data did not say"
    return [] if own in told.body_parts else [f"shows {own}, the training images {listed(sorted(told.body_parts))}"]


def _lengths(volume: Volume, plan: Plan, rule: str) -> list[str] | str:
    told, turn = plan.fingerprint, turn_of(volume, plan)
    if volume.unit != told.unit:
        return f"the image is in {volume.unit}, the training images are in {told.unit}"
    size, spacing = np.array(turn.order(volume.size)), np.array(turn.order(volume.spacing))
    extent = told.spacing if rule == "spacing" else told.extent
    assert extent is not None
    lengths = spacing if rule == "spacing" else size * spacing
    floor = LENGTH_FLOOR[told.unit]
    axes = range(len(lengths))
    if plan.orientation is None:  # the axes are those of files, and a picture may be turned
        lengths, ranges = np.sort(lengths), (np.sort(extent.min), np.sort(extent.max))
    else:
        ranges = (np.array(extent.min), np.array(extent.max))
    odd = [
        axis
        for axis in axes
        if outside(math.log(lengths[axis]), math.log(ranges[0][axis]), math.log(ranges[1][axis]), told.cases, floor)
    ]
    if not odd:
        return []
    is_, was = (" x ".join(f"{n:.4g}" for n in each) for each in (lengths, ranges[0]))
    to = " x ".join(f"{n:.4g}" for n in ranges[1])
    return [f"is {is_} {told.unit}, the training images have {was} to {to}"]


def _orientation(volume: Volume, plan: Plan) -> list[str] | str:
    told, dims = plan.fingerprint, volume.spatial_dims
    if plan.orientation is None:
        return "the training images did not all state one"
    if volume.affine is None or not volume.meta.oriented:
        return ["the file states no orientation, the training images did"]
    odd = []
    worlds = world_of(volume.affine, dims)
    if dims == 2 and told.worlds is not None and worlds != tuple(told.worlds)[:2]:
        planes = [PLANES.get(tuple(one)[:2], "oblique") for one in (worlds, told.worlds)]
        odd.append(f"is {planes[0]}, the training images are {planes[1]}")
    tilt = tilt_of(volume.affine, dims)
    if told.tilt is not None and tilt > told.tilt + TILT_FLOOR:
        odd.append(f"is tilted by {tilt:.0f} degrees, the training images by at most {told.tilt:.0f}")
    return odd


def _shapes(volume: Volume) -> list[Shape | None]:
    found = (measure(channel).intensity for channel in volume.array)
    return [None if one is None else shape_of(one) for one in found]


def _intensity(shapes: Sequence[Shape | None], told: Fingerprint) -> list[str]:
    return [line for number in range(len(told.values)) for line in _channel(shapes[number], told, number)]


def _channel(shape: Shape | None, told: Fingerprint, number: int) -> Iterator[str]:
    name = f" of {told.channel_names[number]}" if len(told.values) > 1 else ""
    if shape is None:
        yield f"the values{name} are all the same"
        return
    ranges = told.values[number]
    words = {"width": "spread (log10)", "low": "lowest values over their spread", "middle": "place of the median"}
    for (rule, value), floor in zip(shape._asdict().items(), SHAPE_FLOOR, strict=True):
        known = getattr(ranges, rule)
        if outside(value, known.min, known.max, told.cases, floor):
            yield (
                f"the values{name} have another distribution: {words[rule]} {value:.3g}, "
                f"in the training {known.min:.3g} to {known.max:.3g}"
            )
            return  # one line is enough


def in_one_line(findings: Sequence[Finding]) -> str:
    """All findings as one line for people.

    Example:
        >>> in_one_line([Finding("input", "modality", "is CT, the training images are MR")])
        'modality is CT, the training images are MR'
    """
    told = []
    for one in findings:
        subject = (
            f"{one.structure}: " if one.structure else "" if one.what in ("intensity", "missing") else f"{one.what} "
        )
        told.append(f"{subject}{one.text}")
    return "; ".join(told)
