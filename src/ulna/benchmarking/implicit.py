"""What the Implicit U-Net's choices cost and gain: one varied at a time, the others as recommended.

Source: Implicit U-Net, Sec. 2 (k, alpha, sigma, spacing) and Fig. 2 (the decoder); the paper states its values without
showing others.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ulna.allocation import keep_freed_memory
from ulna.benchmarking.curves import draw_curves
from ulna.data.dataset import Dataset
from ulna.data.read import encode_labels
from ulna.demonstration import make_phantom
from ulna.evaluation import evaluate_pairs
from ulna.progress import track
from ulna.recipe import Plan, from_yaml
from ulna.segmenter import Segmenter, read_split
from ulna.study.comparing import Study, compare
from ulna.volume import Volume

MODEL = "implicit_unet"
# field of the recipe -> what a reader calls it, and the values tried
VARIED: dict[str, tuple[str, tuple[float, ...]]] = {
    "points.count": ("points, share of a patch", (1 / 128, 1 / 64, 1 / 32, 1 / 16)),
    "architecture.head.points.width": ("decoder width", (64, 128, 256, 512)),
    "points.alpha": ("alpha, share near a boundary", (0, 0.25, 0.5, 0.75)),
    "points.sigma": ("sigma, voxels", (1, 2.5, 5, 10)),
}
SPACING = "inference.spacing"
SPACINGS = (1, 2, 4, 8)


def measure(data: Path | None, out: Path, *, seeds: int, set: Sequence[str], **limits: Any) -> dict[str, Any]:
    """Train the recommended build and its variations as a study, predict with several meshes, and draw.

    Args:
        data: a data set of volumes; None draws one.
        out: the folder.
        seeds: trainings of each.
        set: changes for all.
        limits: `epochs` and `max_hours` of a training.

    Returns:
        `conditions`, and `rows` of field, value, whether it is the unvaried network's own, Dice with its interval, seconds an
        epoch, MB of training, ms of a prediction; those of the mesh have the share of the voxels that were asked in place
        of what training costs.
    """
    synthetic = data is None
    if data is None:
        data = out / "data"
        if not data.exists():
            make_phantom(data, count=16, size=(64, 64, 48))
    vary = [f"{field}={','.join(f'{value:g}' for value in values)}" for field, (_, values) in VARIED.items()]
    study = compare(
        data, models=MODEL, out=out / "study", seeds=seeds, vary=vary, one_at_a_time=True, set=set, **limits
    )
    run = study.folder / "runs" / MODEL / "seed0"
    rows = [row for field, (_, values) in VARIED.items() for row in _training_rows(study, field, values)]
    rows += _mesh_rows(run, data)
    plan = from_yaml(Plan, run / "plan.yaml")
    conditions = {
        "data": data.resolve().name,
        "synthetic": synthetic,
        "part": study.outcome.part,
        "cases": study.outcome.cases,
        "seeds": seeds,
        **limits,
        "changes": list(set),
        "patch": list(plan.patch),
        "batch": plan.batch,
        **study.outcome.costs.conditions,
    }
    said = ("made by ulna, not real; " if synthetic else "") + (
        f"{study.outcome.cases} {study.outcome.part} cases of {conditions['data']}, {seeds} seed{'s' * (seeds > 1)}, "
        + " and ".join(f"{value:g} {name.replace('max_', '')}" for name, value in limits.items() if value is not None)
        + f" a training, {conditions['device']}, {conditions['threads']} threads"
    )
    names = {field: name for field, (name, _) in VARIED.items()} | {SPACING: "spacing of the mesh, voxels"}
    draw_curves(rows, names, out / "curves.png", conditions=said)
    return {"conditions": conditions, "rows": rows, "figure": str(out / "curves.png")}


def _training_rows(study: Study, field: str, values: Sequence[float]) -> Iterator[dict[str, Any]]:
    """One a value. The value that has no row of its own is the unvaried network's: a study with a failed one ends before."""
    outcome = study.outcome
    for value in values:
        name = f"{MODEL} {field.removeprefix('architecture.')}={value:g}"
        own = name in outcome.models
        name = name if own else MODEL
        dice = outcome.described[name]["dice"]
        yield {
            "field": field,
            "value": value,
            "base": not own,
            "dice": [dice.mean, dice.low, dice.high],
            "epoch_s": 3600 * outcome.hours[name] / outcome.epochs[name],
            "training_mb": outcome.training_mb[name],
            "prediction_ms": outcome.costs.models[name].wall_ms[0],
        }


def _mesh_rows(run: Path, data: Path) -> list[dict[str, Any]]:
    """One a step of the mesh, by the unvaried network's first run; image by image, all meshes in turn."""
    split, dataset = read_split(run), Dataset.from_folder(data)
    wanted = {*(split.test or split.val)}
    cases = [case for case in dataset.cases if case.id in wanted]
    keep_freed_memory()
    first = Segmenter.load(run)
    inference = first.recipe.inference
    segmenters = {
        spacing: Segmenter(
            first.network,
            first.plan,
            first.recipe.replaced(inference=inference.replaced(spacing=spacing)),
            first.device,
        )
        for spacing in SPACINGS
    }
    seconds: dict[int, list[float]] = {spacing: [] for spacing in SPACINGS}
    masks: dict[int, list[tuple[str, NDArray[Any], NDArray[Any], Volume]]] = {spacing: [] for spacing in SPACINGS}
    warm = False
    for case in track(cases, "predicting on meshes"):
        volume, labels = case.read_image(), case.read_labels()
        for spacing, segmenter in segmenters.items():
            if not warm:
                segmenter.mask(volume)
            start = time.perf_counter()
            mask = segmenter.mask(volume)
            seconds[spacing].append(time.perf_counter() - start)
            masks[spacing].append((case.id, mask, encode_labels(labels, segmenter.plan.labels), volume))
        warm = True
    rows = []
    for spacing, segmenter in segmenters.items():
        dice = evaluate_pairs(masks[spacing], segmenter.plan.labels).summary["mean"]["dice"]
        tally = segmenter.tally
        rows.append(
            {
                "field": SPACING,
                "value": spacing,
                "base": spacing == inference.spacing,
                "dice": [dice["mean"], dice["low"], dice["high"]],
                "asked": (tally.mesh + tally.refined) / tally.voxels,
                "prediction_ms": 1e3 * float(np.median(seconds[spacing])),
            }
        )
    return rows
