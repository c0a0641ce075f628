"""What a finished training says about itself: measures of the best weights on the cases kept aside, and the facts."""

from __future__ import annotations

import json
import platform
import shlex
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ulna.data.layout.case import Case
from ulna.data.layout.splitting import split_hash
from ulna.evaluation import figures
from ulna.evaluation.evaluate import Evaluation
from ulna.inference.scoring import predict_pair, scores_for
from ulna.inference.segmenter import Segmenter
from ulna.kernels.allocator import peak_memory_mb
from ulna.recipe import Plan, Recipe, Split
from ulna.system.device import choose_precision, default_device, device_name
from ulna.system.files import read_tensors, write_text
from ulna.system.progress import track
from ulna.training.loop import State

Panel = tuple[str, list[figures.Picture]]


def final_part(split: Split) -> str:
    """Where the final figures come from: the test cases, or the validation cases where there are none."""
    return "test" if split.test else "val"


def summarise(
    folder: Path,
    data: Path,
    split: Split,
    cases: Sequence[Case],
    recipe: Recipe,
    plan: Plan,
    state: State,
    parameters: int,
) -> dict[str, Any]:
    """Evaluate the best weights on the test cases (the validation cases where there are none), draw, and write it down."""
    start = time.perf_counter()
    part = final_part(split)
    evaluation, drawn = _final(folder, cases)
    facts = read_tensors(folder / "weights.safetensors").state
    summary = {
        "model": recipe.model,
        "data": data.resolve().name,
        "parameters": parameters,
        "epochs": state.epoch,
        "best_epoch": facts["epoch"],
        "val_dice": facts["val_dice"],
        "evaluated_on": part,
        part: evaluation.summary,
        "wall_seconds": round(state.elapsed_s + time.perf_counter() - start, 1),
        "training_seconds": round(state.elapsed_s, 1),
        "peak_memory_mb": max(state.peak_mb, peak_memory_mb()),
        "device": device_name(),
        "precision": choose_precision(recipe.training.precision, default_device()),
        "threads": torch.get_num_threads(),
        "seed": recipe.training.seed,
        "split_hash": split_hash(split),
        "data_fingerprint": plan.fingerprint.get("digest"),
        "versions": {name: version(name) for name in ("ulna", "torch", "numpy", "monai")}
        | {"python": platform.python_version()},
        "command": shlex.join(
            ["ulna", "train", str(data), "--recipe", str(folder / "recipe.yaml"), "--out", "NEW_FOLDER"]
        ),
    }
    evaluation.write_rows(folder / "cases.csv")
    write_text(folder / "summary.json", json.dumps(summary, indent=1, allow_nan=False))
    figures.panels(drawn, folder / "figures" / f"{part}.png")
    return summary


def _final(folder: Path, cases: Sequence[Case]) -> tuple[Evaluation, list[Panel]]:
    """Measures over the cases, and pictures of the three with the lowest and the three with the highest Dice."""
    segmenter = Segmenter.load(folder)
    scores = scores_for(segmenter)
    for case in track(cases, "evaluating"):
        scores.add(predict_pair(segmenter, case))
    evaluation = scores.evaluation()
    # what is rightly empty comes last: there is nothing to see
    order = sorted(cases, key=lambda case: np.nan_to_num(evaluation.case_dice(case.id), nan=1.0))
    drawn = [order[i] for i in sorted({*range(min(3, len(order))), *range(max(0, len(order) - 3), len(order))})]
    panels: list[Panel] = []
    for case in drawn:
        pair = predict_pair(segmenter, case)
        score = evaluation.case_dice(case.id)
        title = f"{case.id}  {'empty' if np.isnan(score) else f'Dice {score:.3f}'}"
        seen = figures.view(pair.volume, pair.reference, pair.prediction)
        pictures = figures.comparison(seen.image, seen.maps[1], seen.maps[0])
        panels.append((title, [figures.Picture(*one, seen.sides) for one in pictures]))
    return evaluation, panels
