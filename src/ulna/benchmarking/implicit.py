"""What the Implicit U-Net's choices cost and gain: one varied at a time, the others as recommended.

Source: Implicit U-Net (marimont2022), Sec. 2 (k, alpha, sigma, spacing) and Fig. 2 (the decoder); the paper states its values
without showing others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ulna.benchmarking.curves import draw_curves
from ulna.data.layout.dataset import Dataset
from ulna.demonstration import STATEMENT, make_phantom
from ulna.errors import Interrupted, PartialFailure, UsageError, counted
from ulna.executors.handing import stoppable
from ulna.inference.scoring import predict_pair, scores_for
from ulna.inference.segmenter import Segmenter, read_split
from ulna.inference.sparse import PointCounts
from ulna.networks.catalog import NAMED
from ulna.recipe import Recipe, from_yaml
from ulna.study.compare import Study, compare
from ulna.study.costs import pick_case, prediction_mb
from ulna.study.statistics import Description, describe
from ulna.study.timing import time_in_turn
from ulna.study.variants import make_variants
from ulna.system.files import move_whole, staged, unwritable
from ulna.system.outputs import check_free, make_folder
from ulna.system.progress import track

MODEL = "implicit_unet"
# field of the recipe -> what a reader calls it, and the values tried beside the network's own
VARIED: dict[str, tuple[str, tuple[float, ...]]] = {
    "points.fraction": ("points, share of a patch", (1 / 128, 1 / 64, 1 / 32, 1 / 16)),
    "architecture.head.points.width": ("decoder width", (64, 128, 256, 512)),
    "points.alpha": ("alpha, share near a boundary", (0, 0.25, 0.5, 0.75)),
    "points.sigma": ("sigma, voxels", (1, 2.5, 5, 10)),
}
MESH_STEP = "inference.mesh_step"
MESH_STEPS = (1, 2, 4, 8)
COUNT, SIZE = 16, (64, 64, 48)  # of the synthetic volumes
ROUNDS = 7  # predictions of an image with every mesh, in turn
WRITTEN = ("data", "study", "bench.json", "curves.png")


def measure(
    data: Path | None, out: Path, *, seeds: int, changes: Sequence[str], again: str, **asked: Any
) -> dict[str, Any]:
    """Train the recommended build and its variations as a study, predict with several meshes, and draw.

    Args:
        data: a data set of volumes; None draws one.
        out: the folder.
        seeds: trainings of each.
        changes: for all, KEY=VALUE.
        again: the command that goes on after a stop.
        asked: `epochs` and `max_hours` of a training; where trainings run: `jobs`, `on`, `slurm` and `threads`.

    Returns:
        `conditions`; `rows` of field, value, whether it is the unvaried network's own, Dice with its interval, epochs,
        seconds an epoch and MB of training, ms of a prediction, where those of the mesh have the share of the voxels that
        were asked and the MB of a prediction (None where it failed) in place of what training costs; `warning`,
        `footnotes` and `failed` of the study.
    """
    settings = [*(f"{key}={value}" for key, value in NAMED[MODEL].recipe.items()), *changes]
    vary = [f"{field}={','.join(f'{value:g}' for value in values)}" for field, (_, values) in VARIED.items()]
    variants = make_variants(
        [MODEL], {}, vary, settings, one_at_a_time=True
    )  # says what is wrong before anything is drawn
    own = _own(variants[0].recipe)
    _check_folder(out, data)
    synthetic = data is None
    data = _drawn(out) if data is None else data
    try:
        study = compare(
            data,
            models=MODEL,
            out=out / "study",
            seeds=seeds,
            vary=vary,
            one_at_a_time=True,
            set=settings,
            **asked,
        )
    except Interrupted as stop:
        raise Interrupted(stop.signal, again) from None
    except PartialFailure as failure:
        if not isinstance(failure.result, Study) or MODEL not in failure.result.outcome.models:
            raise
        study = failure.result
    outcome = study.outcome
    runs = [study.folder / "runs" / MODEL / f"seed{seed}" for seed in range(seeds)]
    rows = [row for field, (_, values) in VARIED.items() for row in _training_rows(study, field, values, own[field])]
    with stoppable(again):
        rows += _mesh_rows(study, runs, data, own[MESH_STEP])
    training = from_yaml(Recipe, runs[0] / "recipe.yaml").training
    conditions = {
        **outcome.costs.conditions,
        "data": data.resolve().name,
        "synthetic": synthetic,
        "part": outcome.part,
        "cases": outcome.cases,
        "seeds": seeds,
        "epochs": training.most_epochs,
        "max_hours": training.max_hours,
        "changes": list(changes),
    }
    limit = (
        counted(training.most_epochs, "epoch") if training.max_hours is None else counted(training.max_hours, "hour")
    )
    said = (
        f"{counted(outcome.cases, f'{outcome.part} case')} of {conditions['data']}{' (made by ulna, not real)' * synthetic}, "
        f"{counted(seeds, 'seed')}, {limit} a training, {conditions['device']}, {counted(conditions['threads'], 'thread')}"
    )
    names = {field: name for field, (name, _) in VARIED.items()} | {MESH_STEP: "mesh step, voxels"}
    draw_curves(rows, names, out / "curves.png", conditions=said)
    return {
        "conditions": conditions,
        "rows": rows,
        "warning": outcome.warning,
        "footnotes": outcome.footnotes,
        "failed": study.failed,
        "trainings": seeds * len(variants),
        "figure": str(out / "curves.png"),
    }


def _own(recipe: Recipe) -> dict[str, float | None]:
    """The values of the unvaried network."""
    return {
        "points.fraction": recipe.points.fraction,
        "architecture.head.points.width": recipe.architecture.head.options.get("width"),
        "points.alpha": recipe.points.alpha,
        "points.sigma": recipe.points.sigma,
        MESH_STEP: recipe.inference.mesh_step,
    }


def _check_folder(out: Path, data: Path | None) -> None:
    """Refuse a folder that holds anything but an earlier benchmark, or that of other data."""
    drawn = out / "data"
    own = WRITTEN if _statement(drawn) == STATEMENT else set(WRITTEN) - {drawn.name}
    check_free(out, own, what="holds something else than a benchmark")
    if data is None and (out / "study").exists() and not drawn.exists():
        raise UsageError(f"{out}: was begun with a data set; name it again, or choose another --out")
    if data is not None and drawn.exists():
        raise UsageError(f"{out}: was begun with synthetic data; leave the data set out, or choose another --out")


def _statement(folder: Path) -> str | None:
    path = folder / "SYNTHETIC"
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _drawn(out: Path) -> Path:
    """The synthetic data set, whole or absent."""
    target = out / "data"
    if target.exists():
        return target
    make_folder(out)
    with staged(out, "data") as staging:
        try:
            make_phantom(staging, count=COUNT, size=SIZE)
        except OSError as error:
            raise unwritable(out, error) from None
        move_whole(staging, target)
    return target


def _training_rows(study: Study, field: str, values: Sequence[float], own: float | None) -> Iterator[dict[str, Any]]:
    """One a value, but for those whose training failed."""
    outcome = study.outcome
    for value in sorted({*values, *([] if own is None else [own])}):
        name = MODEL if value == own else f"{MODEL} {field.removeprefix('architecture.')}={value:g}"
        if name in outcome.models:
            yield {
                "field": field,
                "value": value,
                "base": value == own,
                "dice": _interval(outcome.described[name]["dice"]),
                **_counts(outcome.described[name]["dice"]),
                "epochs": outcome.epochs[name],
                "epoch_s": 3600 * outcome.hours[name] / outcome.epochs[name],
                "training_mb": outcome.training_mb[name],
                "prediction_ms": outcome.costs.models[name].wall_ms[0],
            }


def _mesh_rows(study: Study, runs: Sequence[Path], data: Path, own: float | None) -> list[dict[str, Any]]:
    """One a step of the mesh, by all runs of the unvaried network on all scored cases; times on the image of the study's."""
    split, dataset = read_split(runs[0]), Dataset.from_folder(data)
    dataset = dataset.of_dims(Segmenter.load(runs[0]).plan.image_dims)
    wanted = {*(split.test or split.val)}
    cases = [case for case in dataset.cases if case.id in wanted]
    steps = sorted({*MESH_STEPS, *([] if own is None else [int(own)])})
    scores: dict[tuple[str, int, str], float] = {}
    asked = {step: PointCounts() for step in steps}
    for seed, run in enumerate(runs):
        segmenters = _on_meshes(Segmenter.load(run), asked)
        for case in track(cases, "predicting on meshes"):
            volume = case.read_image()
            for step, segmenter in segmenters.items():
                dice = scores_for(segmenter).add(predict_pair(segmenter, case, volume))
                scores[f"{step}", seed, case.id] = dice
    described = describe(scores, {row.case: row.group for row in study.outcome.rows if row.group})
    case = pick_case(cases)
    volume = case.read_image()
    segmenters = _on_meshes(Segmenter.load(runs[0]), {step: PointCounts() for step in steps})
    predict = {step: segmenter.mask for step, segmenter in segmenters.items()}
    times = time_in_turn(predict, lambda *_: volume, rounds=ROUNDS, warm_up=1)
    return [
        {
            "field": MESH_STEP,
            "value": step,
            "base": step == own,
            "dice": _interval(described[f"{step}"]),
            **_counts(described[f"{step}"]),
            "asked": (asked[step].mesh + asked[step].refined) / asked[step].voxels,
            "prediction_ms": times[step].wall_ms[0],
            "prediction_mb": prediction_mb(runs[0], data, case, f"{MESH_STEP}={step}"),
        }
        for step in steps
    ]


def _on_meshes(trained: Segmenter, tallies: Mapping[int, PointCounts]) -> dict[int, Segmenter]:
    """A run's network with meshes of several steps, each counting what it asks."""
    segmenters = {}
    for step, tally in tallies.items():
        inference = trained.recipe.inference.replaced(mesh_step=step)
        recipe = trained.recipe.replaced(inference=inference)
        segmenters[step] = Segmenter(trained.network, trained.plan, recipe, trained.device)
        segmenters[step].tally = tally
    return segmenters


def _counts(found: Description) -> dict[str, int]:
    return {"n": found.units, "both_empty": found.undefined}


def _interval(found: Description) -> list[float | None]:
    """Mean, low, high; None for what one unit does not give."""
    return [value if math.isfinite(value) else None for value in (found.mean, found.low, found.high)]
