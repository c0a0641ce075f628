"""Samples of a training before it begins: real cases as the network would see them, drawn on one sheet."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ulna.data.formats.limits import check_need
from ulna.data.layout.case import Case
from ulna.data.layout.dataset import Dataset
from ulna.data.pipeline.augment import Draw
from ulna.data.pipeline.patches import epoch_order
from ulna.data.volume import Volume
from ulna.evaluation.colours import CLASS_COLOURS, Colour
from ulna.evaluation.figures import Picture, outlined, panels
from ulna.evaluation.views import COARSE, view
from ulna.inference.inputs import assumed_affine
from ulna.planning.plan import Planned
from ulna.recipe import Plan, Slices
from ulna.system.files import write_text
from ulna.system.locking import locked
from ulna.system.mapped import let_go
from ulna.system.outputs import check_folder, check_names, file_digest
from ulna.system.reading import read_json_object
from ulna.training.needs import drawing_bytes, seen
from ulna.training.samples import PreparedCases, Samples
from ulna.training.slices import SliceCases, SliceSamples, samples_of
from ulna.training.within import Within

SHEET, FACTS = "preview.png", "preview.json"
CASES, DRAWS = 4, 5  # of a sheet
REMEDY = "choose another --preview"
_STRETCH = (1, 99)  # percentiles of a case that are black and white


def check_preview(out: Path, dataset: Dataset) -> None:
    """Refuse a folder that belongs to somebody else, and to replace what is no preview.

    Raises:
        UsageError: with the reason.
    """
    check_folder(out, [dataset.root, *(source.path for case in dataset.cases for source in case.images)], REMEDY)
    check_names(out, {SHEET: _is_own, FACTS: lambda path: {"sheet", "digest"} <= read_json_object(path).keys()}, REMEDY)


def draw_preview(planned: Planned, dataset: Dataset, out: Path, bound: Within | None = None) -> Path:
    """Draw the cases that a training would begin with, each as a whole and as random samples of it; returns the sheet.

    Args:
        planned: the training.
        dataset: with the dimensions that were found.
        out: the folder, from `check_preview`.
        bound: the limit that it keeps to: cases lie on the disk of `out`, and one is looked at after the other.

    Raises:
        UsageError: if a case cannot be read, or takes more than the limit, or the folder cannot be written to.
    """
    plan, recipe = planned.plan, planned.recipe
    train = planned.split.train
    first = epoch_order(len(train), len(train), seed=recipe.training.seed, epoch=0)[:CASES]
    cases = dataset.cases_of(train[number] for number in first)
    how: dict[str, Any] = {}
    if bound is not None:
        for case in cases:
            check_need(
                case.images[0], drawing_bytes(seen(case), plan), "its preview", "raise it, or leave --preview out"
            )
        at = next(one for one in (out.absolute(), *out.absolute().parents) if one.is_dir())
        how = {"keep_bytes": 0, "structures_bytes": 0, "folder": at, "bounded": True}
    lean = () if bound is None else bound.lean
    kept = PreparedCases(cases, plan, **how, lean=lean) if plan.slices is None else SliceCases(cases, plan, **how)
    samples = samples_of(kept, plan, recipe)
    for _ in samples.cases.fill() if plan.slices is not None else ():  # which slices there are, is known then
        pass
    rows, told = [], []
    for number, case in enumerate(cases):
        pictures, drawn = _row(samples, number, plan)
        if bound is not None:
            let_go(kept[number][0].image)
        rows.append((_title(case, plan), pictures))
        told.append({"case": case.id, "samples": drawn})
    with locked(out):
        check_preview(out, dataset)  # what stood up during the work is not replaced
        sheet = panels(rows, out / SHEET, legend=_legend(plan))
        facts = {"sheet": SHEET, "digest": file_digest(sheet), "seed": recipe.training.seed, "cases": told}
        write_text(out / FACTS, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    return sheet


def in_words(draw: Draw) -> str:
    """What happens to a sample.

    Example:
        >>> in_words(Draw(flips=(0,), quarters=1, gamma=1.25)), in_words(Draw())
        ('flip along axis 0, turn by 90°, gamma 1.25', 'as it is')
    """
    said = []
    if draw.flips:
        axes = " and ".join(map(str, draw.flips))
        said.append(f"flip along {'axis' if len(draw.flips) == 1 else 'axes'} {axes}")
    if draw.quarters:
        said.append(f"turn by {90 * draw.quarters}°")
    if draw.matrix is not None and not np.array_equal(draw.matrix, np.eye(len(draw.matrix))):
        factor = abs(np.linalg.det(draw.matrix)) ** (1 / len(draw.matrix))
        cosine = (float(np.trace(draw.matrix / factor)) - len(draw.matrix) + 2) / 2
        angle = math.degrees(math.acos(min(max(cosine, -1.0), 1.0)))
        said.append(f"about {angle:.0f}°, scale {1 / factor:.2f}")
    if draw.bends is not None:
        said.append("elastic")
    for name, value in (("contrast", draw.scale), ("brightness", draw.shift)):
        if value is not None:
            said.append(f"{name} {value:+.2f}")
    if draw.gamma is not None:
        said.append(f"gamma {draw.gamma:.2f}")
    if draw.noise is not None:
        said.append(f"noise {draw.noise[1]:.2f}")
    if draw.blur is not None:
        said.append("blur")
    return ", ".join(said) or "as it is"


def _row(samples: Samples, number: int, plan: Plan) -> tuple[list[Picture], list[str]]:
    """The pictures of one case, and what was drawn for each sample of it."""
    prepared, labels = samples.cases[number]
    image, items = prepared.image, [number] * DRAWS
    if isinstance(samples, SliceSamples):
        image, labels = _volume(image, labels, samples.cases.slices)
        items = samples.some_of(number, DRAWS)
    ends = np.percentile(image.cpu().numpy().reshape(plan.in_channels, -1), _STRETCH, axis=1).T
    size = " x ".join(map(str, image.shape[1:]))
    pictures = [_picture(f"the case, {size}", image, labels, plan, ends)]
    if not items:  # a volume of which no slice is drawn
        return pictures, []
    drawn = [samples.draw((0, number + sample * CASES, item)) for sample, item in enumerate(items)]
    images, masks = samples.make(drawn, prepared.image.device)
    if plan.slices is not None:
        pairs = [_one_slice(*one, plan) for one in zip(images, masks, strict=True)]
        images, masks = (torch.stack(some) for some in zip(*pairs, strict=True))
    told = [in_words(sample.draw) for sample in drawn]
    for one in zip(told, images, masks, strict=True):
        picture = _picture(*one, plan, ends)  # a flipped one has no sides
        sides = None if picture.sides is None else picture.sides._replace(left="", right="", top="", bottom="")
        pictures.append(picture._replace(sides=sides))
    return pictures, told


def _volume(stack: Tensor, labels: Tensor, slices: Slices) -> tuple[Tensor, Tensor]:
    """A case slice by slice as a volume again: (D + 2n, C, H, W), (D, H, W) or (D, K, H, W) -> (C, *S), (*S) or (K, *S)."""
    inner = stack[slices.neighbours : len(stack) - slices.neighbours]
    return inner.movedim(0, slices.axis - 3), labels.movedim(0, slices.axis - 3)


def _one_slice(seen: Tensor, labels: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
    """What the network sees of a slice as a volume of that one slice, without its neighbours: (T * C, H, W) -> (C, *S)."""
    assert plan.slices is not None
    first = plan.slices.neighbours * plan.in_channels
    own, axis = seen[first : first + plan.in_channels], plan.slices.axis
    return own.unsqueeze(axis - 3), labels.unsqueeze(axis - 3)


def _picture(caption: str, image: Tensor, labels: Tensor, plan: Plan, ends: NDArray[np.float64]) -> Picture:
    """An image in the greys of its case, so that a change of brightness shows, with the outlines of its structures."""
    low, high = (ends[:, end].reshape(-1, *[1] * plan.image_dims) for end in (0, 1))
    array = ((image.cpu().numpy() - low) / np.maximum(high - low, 1e-8)).clip(0, 1)
    maps, spacing = labels.cpu().numpy(), plan.spacing or (1.0,) * plan.image_dims
    across = None if plan.slices is None else plan.slices.axis
    if plan.orientation is None and across is None:
        array, maps, spacing = _coarsest_last(array, maps, spacing)
    affine = None if plan.orientation is None else assumed_affine(plan, spacing)
    shown = view(Volume(array.astype(np.float32), spacing, plan.unit, affine), maps, across=across)
    grey = shown.image if len(shown.image) == 3 else np.repeat(shown.image[:1], 3, axis=0)
    picture = np.rint(255 * np.moveaxis(grey, 0, -1)).astype(np.uint8)
    return Picture(caption, outlined(picture, shown.maps[0]), shown.sides)


def _coarsest_last(
    array: NDArray[Any], maps: NDArray[Any], spacing: tuple[float, ...]
) -> tuple[NDArray[Any], NDArray[Any], tuple[float, ...]]:
    """A volume without orientation is drawn across its last axis; slices lie across one that is coarsest by far."""
    dims, coarsest = len(spacing), int(np.argmax(spacing))
    if dims == 2 or spacing[coarsest] <= COARSE * sorted(spacing)[1]:
        return array, maps, spacing
    order = [axis for axis in range(dims) if axis != coarsest] + [coarsest]
    turned = tuple(np.moveaxis(one, coarsest - dims, -1) for one in (array, maps))
    return turned[0], turned[1], tuple(spacing[axis] for axis in order)


def _title(case: Case, plan: Plan) -> str:
    one = plan.in_channels not in (1, 3)
    return f"{case.id}, channel {plan.channel_names[0]}" if one else case.id


def _legend(plan: Plan) -> Sequence[tuple[str, Colour]]:
    names = plan.labels.foreground[: len(CLASS_COLOURS)]
    return [(name, CLASS_COLOURS[number]) for number, name in enumerate(names)]


def _is_own(path: Path) -> bool:
    """Whether a sheet is the one that the file beside it tells of."""
    return read_json_object(path.with_name(FACTS)).get("digest") == file_digest(path)
