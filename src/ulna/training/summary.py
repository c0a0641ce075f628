"""What a finished training says about itself: measures of the best weights on the cases kept aside, and the facts."""

from __future__ import annotations

import bisect
import json
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ulna.data.layout.case import Case
from ulna.data.layout.splitting import split_hash
from ulna.evaluation import figures
from ulna.evaluation.evaluate import Evaluation, Pair
from ulna.evaluation.views import view
from ulna.inference.scoring import predict_pair, scores_for
from ulna.inference.segmenter import Segmenter
from ulna.kernels.allocator import peak_memory_mb
from ulna.networks.network import Network
from ulna.networks.weights import load_weights
from ulna.planning.plan import Planned
from ulna.recipe import Split
from ulna.system.device import choose_precision, default_device, device_name
from ulna.system.files import read_tensors, write_text
from ulna.system.progress import track
from ulna.training.state import State
from ulna.verbs import command
from ulna.version import version

Panel = tuple[str, list[figures.Picture]]
LIMITS = ("epochs", "steps", "max_hours", "patience", "validate_every")  # of a training
EACH = 3  # cases drawn of those with the lowest Dice, and of those with the highest


def final_part(split: Split) -> str:
    """Where the final figures come from: the test cases, or the validation cases where there are none."""
    return "test" if split.test else "val"


def summarise(
    folder: Path, data: Path, cases: Sequence[Case], planned: Planned, network: Network, state: State
) -> dict[str, Any]:
    """Evaluate the best weights on the test cases (the validation cases where there are none), draw, and write it down.

    Args:
        folder: of the run.
        data: the data set.
        cases: of `final_part`.
        planned: what was trained.
        network: it gets the best weights.
        state: where the training stands.
    """
    start = time.perf_counter()
    recipe, plan, split = planned.recipe, planned.plan, planned.split
    part = final_part(split)
    best = Segmenter(load_weights(network, folder / "weights.safetensors"), plan, recipe)
    evaluation, drawn = _final(best, cases)
    facts = read_tensors(folder / "weights.safetensors").state
    summary = {
        "model": recipe.model,
        "data": data.resolve().name,
        "parameters": planned.parameters,
        "epochs": state.epoch,
        "best_epoch": facts["epoch"],
        "val_dice": facts["val_dice"],
        "val_iou": facts.get("val_iou"),
        "monitor": recipe.training.monitor,
        "limits": {name: getattr(recipe.training, name) for name in LIMITS},
        "evaluated_on": part,
        part: evaluation.summary,
        "wall_seconds": round(state.elapsed_s + time.perf_counter() - start, 1),
        "training_seconds": round(state.elapsed_s, 1),
        "seconds": {phase: round(spent, 1) for phase, spent in state.seconds.items()},  # of the training
        "peak_memory_mb": max(state.peak_mb, peak_memory_mb()),
        "device": device_name(),
        "precision": choose_precision(recipe.training.precision, default_device()),
        "threads": torch.get_num_threads(),
        "seed": recipe.training.seed,
        "split_hash": split_hash(split),
        "data_fingerprint": plan.fingerprint.digest,
        "versions": {name: version(name) for name in ("ulna", "torch", "numpy")}
        | {"python": platform.python_version()},
        "command": command(
            ["train", data, "--recipe", folder / "recipe.yaml", "--plan", folder / "plan.yaml", "--out", "NEW_FOLDER"]
        ),
    }
    evaluation.write_rows(folder / "cases.csv")
    write_text(folder / "summary.json", json.dumps(summary, indent=1, allow_nan=False))
    figures.panels(drawn, folder / "figures" / f"{part}.png")
    return summary


def _final(segmenter: Segmenter, cases: Sequence[Case]) -> tuple[Evaluation, list[Panel]]:
    """Measures over the cases, each predicted once, and pictures of those with the lowest and the highest Dice."""
    scores, extremes = scores_for(segmenter, cases), Extremes()
    for case in track(cases, "evaluating"):
        pair = predict_pair(segmenter, case)
        extremes.offer(scores.add(pair), pair)
    return scores.evaluation(), extremes.panels


class Extremes:
    """Pictures of the three cases with the lowest and the three with the highest Dice, drawn while their masks are there.

    What is rightly empty comes last: there is nothing to see.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[float, int, Panel]] = []  # by Dice, and as they came
        self._seen = 0

    @property
    def panels(self) -> list[Panel]:
        """From the lowest Dice to the highest."""
        return [panel for _, _, panel in self._kept]

    def offer(self, dice: float, pair: Pair) -> None:
        """Draw a case, if it is among them so far; NaN for one whose Dice is not defined."""
        rank = (float(np.nan_to_num(dice, nan=1.0)), self._seen)
        self._seen += 1
        place = bisect.bisect(self._kept, rank, key=lambda kept: kept[:2])
        if len(self._kept) == 2 * EACH and place == EACH:
            return  # as many are lower, and as many higher
        self._kept.insert(place, (*rank, _drawn(dice, pair)))
        if len(self._kept) > 2 * EACH:
            del self._kept[EACH]


def _drawn(dice: float, pair: Pair) -> Panel:
    title = f"{pair.case}  {'empty' if np.isnan(dice) else f'Dice {dice:.3f}'}"
    seen = view(pair.volume, pair.reference, pair.prediction)
    pictures = figures.comparison(seen.image, seen.maps[1], seen.maps[0])
    return title, [figures.Picture(*one, seen.sides) for one in pictures]
