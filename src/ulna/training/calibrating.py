"""The end of a training: what its validation cases say about the answers of its best weights, for calibration.json.

The cost is bounded by numbers of cases (each predicted once, and fewer with mirrored copies), and by a share of the time that
the training took: beyond it no further case is begun.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ulna.data.formats.label_maps import encode_labels
from ulna.data.layout.case import Case, read_reference
from ulna.errors import UsageError
from ulna.evaluation.known import known_alone
from ulna.inference.segmenter import Segmenter
from ulna.inference.spread import MOST_CLASSES, Agreement
from ulna.inference.volume import Slabs
from ulna.recipe import Labels, Plan, Recipe, Training
from ulna.system.device import to_host
from ulna.system.outputs import file_digest
from ulna.system.progress import track
from ulna.training.limit import MOST_CALIBRATION
from ulna.trust.calibration import Calibration
from ulna.trust.choosing import Dices, candidates, choose_rules, dice_by_rule
from ulna.trust.cleaning import Rule
from ulna.trust.components import box_of
from ulna.trust.dice import Lines, Origin, fit_lines
from ulna.trust.structures import Found, Structures, find_structures, sum_up, unit_of
from ulna.trust.temperature import Sample, fit_temperature

log = logging.getLogger("ulna")

MOST_REFERENCES = 200  # of the training: their label maps are read again
LEAST_REFERENCES = 20  # also where the time is over: of fewer, much that is well looks odd
MOST_CASES = 40  # of validation: each is predicted once
MOST_MIRRORED = 16  # of these: predicted with mirrored copies
SHARE, LEAST_S = 0.1, 60.0  # of the training's time, and at least, after which no further case is begun
POINTS = 20_000  # of an image, on a regular grid, whose probabilities are kept
MARGIN = 4  # grid points about the structures within which a temperature is fitted


class Seen(NamedTuple):
    """One validation case.

    Args:
        dice: class -> Dice under every rule.
        sample: of its probabilities.
        agreement: class -> that of the heads; empty without heads.
    """

    dice: dict[str, Dices]
    sample: Sample
    agreement: dict[str, float]


def calibrate(
    folder: Path, segmenter: Segmenter, train: Sequence[Case], val: Sequence[Case], most_s: float
) -> Calibration:
    """Look at the training references and the validation cases of a run, and write calibration.json.

    Args:
        folder: of the run, with its best weights.
        segmenter: of these weights, without a calibration.
        train: labelled.
        val: labelled.
        most_s: after which no further case is begun.
    """
    start = time.perf_counter()
    clock = _Clock(start + most_s)
    plan, labels = segmenter.plan, segmenter.plan.labels
    structures = _structures(segmenter, clock.within(spread_out(train, MOST_REFERENCES), LEAST_REFERENCES))
    segmenter.compares = _with_heads(segmenter)
    chosen = clock.within(track(spread_out(val, MOST_CASES), "calibrating"))
    seen = [_seen(segmenter, case, structures) for case in chosen]
    exclusive = labels.outputs > 1 and not labels.multilabel
    dice: dict[Origin, Lines] = {}
    plain = [{name: rows[Rule()] for name, rows in one.dice.items()} for one in seen]
    if segmenter.compares == "heads":
        dice["heads"] = fit_lines([one.agreement for one in seen], plain)
    if _mirrors(plan, segmenter.recipe):
        dice |= _mirrored(segmenter, clock.within(spread_out(val, MOST_MIRRORED)))
    found = Calibration(
        weights=file_digest(folder / "weights.safetensors"),
        cases=len(seen),
        seconds=round(time.perf_counter() - start, 1),
        cut_short=clock.said,
        structures=structures,
        temperature=fit_temperature([one.sample for one in seen], exclusive=exclusive),
        post_processing=choose_rules({name: [one.dice[name] for one in seen] for name in labels.foreground}),
        dice={origin: lines for origin, lines in dice.items() if lines.mean is not None},
    )
    found.write(folder)
    _say(found)
    return found


def calibration_s(training: Training, elapsed_s: float) -> float:
    """After how many seconds no further case is begun: a tenth of the training, or a minute if that is more; with a limit of
    hours a tenth of that."""
    if training.max_hours is not None:
        return MOST_CALIBRATION * 3600 * training.max_hours
    return max(LEAST_S, SHARE * elapsed_s)


def calibrating_predictions(plan: Plan, recipe: Recipe, val_cases: int) -> int:
    """How many predictions a calibration makes: one a case, and one more for every way that it is mirrored."""
    ways = 2 ** len(plan.mirror_axes)
    mirrored = ways * min(MOST_MIRRORED, val_cases) if _mirrors(plan, recipe) else 0
    return (ways if recipe.inference.tta else 1) * min(MOST_CASES, val_cases) + mirrored


def _mirrors(plan: Plan, recipe: Recipe) -> bool:
    """Whether mirrored copies are compared beside the answers."""
    return bool(plan.mirror_axes) and len(plan.labels.foreground) <= MOST_CLASSES and not recipe.inference.tta


class _Clock:
    """Cases until the time is over."""

    def __init__(self, end: float) -> None:
        self.end, self.said = end, ""

    def within(self, cases: Any, least: int = 1) -> Iterator[Case]:
        """Those that are begun in time, and so many in any case."""
        for number, case in enumerate(cases):
            if number >= least and time.perf_counter() > self.end:
                self.said = "the time for it was over"
                return
            yield case


def spread_out(cases: Sequence[Case], most: int) -> list[Case]:
    """At most so many of the cases, evenly spread.

    Example:
        >>> spread_out(range(10), 4)
        [0, 2, 5, 7]
    """
    count = min(most, len(cases))
    return [cases[number * len(cases) // count] for number in range(count)]


def _with_heads(segmenter: Segmenter) -> Origin | None:
    """Whether the network has heads to compare."""
    architecture, classes = segmenter.recipe.architecture, len(segmenter.plan.labels.foreground)
    several = len(getattr(segmenter.network.head, "convs", ())) > 1
    usable = several and not segmenter.network.head.sparse and architecture.ends_at is None
    return "heads" if usable and classes <= MOST_CLASSES else None


def _structures(segmenter: Segmenter, cases: Iterator[Case]) -> Structures | None:
    """What the references of the training hold."""
    plan = segmenter.plan
    found: list[dict[str, Found]] = []
    units = set()
    for case in cases:
        volume = case.of_classes(plan.labels).read_labels(plan.image_dims)
        unit, voxel = unit_of(volume)
        units.add(unit)
        found.append(find_structures(encode_labels(volume, plan.labels), plan.labels, voxel))
    return sum_up(found, units.pop()) if len(units) == 1 else None


def _seen(segmenter: Segmenter, case: Case, structures: Structures | None) -> Seen:
    volume = case.read_image()
    labels = segmenter.plan.labels
    reference = read_reference(case, volume, segmenter.plan)
    agreement = Agreement(labels) if segmenter.compares == "heads" else None
    slabs = segmenter.slabs(volume, agreement)
    step = _step(slabs.size)
    kept: list[NDArray[np.float32]] = []
    watched = slabs._replace(parts=_noted(slabs, step, kept))
    mask = watched.label_map(labels, segmenter.recipe.inference.threshold)
    maps = np.concatenate(kept, axis=1 + slabs.axis)
    sample = _sample(maps, slabs.turn.forward(mask), slabs.turn.forward(reference), labels, step)
    mask, reference = known_alone(mask, reference, labels)
    _, voxel = unit_of(volume)
    dice: dict[str, Dices] = {}
    for name in labels.foreground:
        rules = [Rule()] if structures is None else candidates(name, structures)
        dice[name] = dice_by_rule(mask, reference, labels, name, rules, voxel)
    return Seen(dice, sample, {} if agreement is None else agreement.by_class())


def _step(size: Sequence[int]) -> int:
    """Of a regular grid with about POINTS of an image."""
    return max(1, round((float(np.prod(size)) / POINTS) ** (1 / len(size))))


def _noted(slabs: Slabs, step: int, kept: list[NDArray[np.float32]]) -> Iterator[Tensor]:
    """The slabs as they are, while their probabilities on a coarse grid are kept."""
    row = 0
    for part in slabs.parts:
        rows = part.shape[1 + slabs.axis]
        at: list[slice] = [slice(None, None, step)] * len(slabs.size)
        at[slabs.axis] = slice(-row % step, None, step)
        if part.shape[1 + slabs.axis] > -row % step:
            kept.append(to_host(part[(slice(None), *at)]).float().numpy().copy())
        yield part
        row += rows


def _sample(
    maps: NDArray[np.float32], mask: NDArray[Any], reference: NDArray[Any], labels: Labels, step: int
) -> Sample:
    """Voxels about the structures of mask and reference, whose class is known; all is turned as the network sees it."""
    grid: tuple[Any, ...] = (..., *(slice(None, None, step),) * (maps.ndim - 1))
    mask, reference = mask[grid], reference[grid]
    if labels.multilabel:
        there, known = (mask == 1).any(0) | (reference == 1).any(0), (reference != labels.ignored).all(0)
        classes = (reference == 1).astype(np.int64)
    else:
        known = np.ones(mask.shape, bool) if labels.ignored is None else reference != labels.ignored
        there = (mask > 0) | ((reference > 0) & known)
        classes = reference.astype(np.int64)
        if labels.outputs == 1:
            classes = (reference == 1).astype(np.int64)[None]
    box = box_of(there)
    if box is None:
        return Sample(np.empty((len(maps), 0), np.float32), np.empty((0,), np.int64))
    inside = np.zeros(there.shape, bool)
    inside[tuple(slice(max(0, part.start - MARGIN), part.stop + MARGIN) for part in box)] = True
    inside &= known
    return Sample(maps[:, inside], classes[..., inside])


def _mirrored(segmenter: Segmenter, cases: Iterator[Case]) -> dict[Origin, Lines]:
    """From the agreement of mirrored copies to the Dice of their average, and to that of the answer to the image as it is."""
    mirrored, labels = segmenter.mirrored(), segmenter.plan.labels
    mirrored.compares = "mirrored"
    agreements: list[Mapping[str, float]] = []
    dice: dict[Origin, list[Mapping[str, float]]] = {"mirrored": [], "copies": []}
    for case in cases:
        volume = case.read_image()
        agreement = Agreement(labels)
        answers: dict[Origin, Slabs] = {
            "mirrored": mirrored.slabs(volume, agreement),
            "copies": segmenter.slabs(volume),
        }
        whole = read_reference(case, volume, segmenter.plan)
        for origin, slabs in answers.items():
            mask = slabs.label_map(labels, segmenter.recipe.inference.threshold)
            mask, reference = known_alone(mask, whole, labels)
            dice[origin].append({name: _dice(mask, reference, labels, name) for name in labels.foreground})
        agreements.append(agreement.by_class())
    return {origin: fit_lines(agreements, of_origin) for origin, of_origin in dice.items()}


def _dice(mask: NDArray[Any], reference: NDArray[Any], labels: Labels, name: str) -> float:
    return dice_by_rule(mask, reference, labels, name, [Rule()], 1.0)[Rule()]


def _say(found: Calibration) -> None:
    """Three lines of the log at most."""
    if found.temperature is not None:
        t = found.temperature
        log.info("probabilities: temperature %.3g, ECE %.4f before and %.4f after", t.value, t.ece_before, t.ece_after)
    for name, kept in found.post_processing.items():
        text = "post-processing of %s: %s; Dice %.4f before and %.4f after on %d validation cases, p %.2g"
        log.info(text, name, kept.rule.words, kept.dice_before, kept.dice_after, kept.cases, kept.p)
    for origin, lines in found.dice.items():
        if lines.mean is not None:
            text = (
                "predicted Dice, from %s: mean error %.4f on validation cases held back; of their mean Dice alone %.4f"
            )
            log.info(text, origin, lines.mean.error, lines.mean.error_of_mean)


def tried(
    folder: Path, segmenter: Segmenter, train: Sequence[Case], val: Sequence[Case], most_s: float
) -> Calibration | None:
    """`calibrate`, or a line in the log where a case cannot be predicted: a finished training stays one."""
    try:
        with torch.inference_mode():
            return calibrate(folder, segmenter, train, val, most_s)
    except UsageError as error:
        log.warning("note: the run is not calibrated: %s", error)
        return None


def error_of(predicted: Sequence[tuple[float | None, float]]) -> dict[str, Any] | None:
    """The mean absolute error of predicted Dice; None where nothing was predicted.

    Example:
        >>> error_of([(0.8, 0.9), (None, 0.5), (0.7, 0.6)])
        {'mean_absolute_error': 0.1, 'cases': 2}
    """
    apart = [abs(told - true) for told, true in predicted if told is not None and not np.isnan(true)]
    return {"mean_absolute_error": round(float(np.mean(apart)), 4), "cases": len(apart)} if apart else None
