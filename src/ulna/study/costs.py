"""What every network of a study costs: size, work, time and memory, measured on this machine in turn."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from ulna.data.layout.case import Case
from ulna.data.pipeline.points import count_points
from ulna.errors import counted
from ulna.inference.segmenter import Segmenter, network_for
from ulna.networks.build import count_parameters
from ulna.networks.profile.cost import count_gmacs
from ulna.recipe import Plan, Recipe, from_yaml
from ulna.study.steps import hundred_steps
from ulna.study.timing import Times, time_in_turn
from ulna.system.device import default_device, device_name
from ulna.system.files import write_text
from ulna.system.reading import read_json_object

ROUNDS = 15
WARM_UP = 2
LONGEST_S = 240.0  # for the times of all networks


@dataclass(frozen=True)
class Cost:
    """What one network costs.

    Args:
        parameters: trainable values.
        gmacs: of one forward pass over a patch; a head that reads points is counted at those of a training step.
        wall_ms: median and 95th percentile of predicting one image, from the image in memory to its mask; NaN where the
            weights are gone.
        cpu_ms: process time of the same, median: what all threads took together.
        prediction_mb: peak memory of a process that predicts that image; None on a GPU, where it is not measured.
        image_s: of predicting one of several images, each once: the mean; None where no paper prints that.
        steps_s: of a hundred training steps; None where no paper prints that.
        steps_mb: peak memory of a process that makes them.
    """

    parameters: int
    gmacs: float
    wall_ms: tuple[float, float]
    cpu_ms: float
    prediction_mb: float | None
    image_s: float | None = None
    steps_s: float | None = None
    steps_mb: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values; None for what was not timed."""
        timed = not math.isnan(self.cpu_ms)
        return {**asdict(self), **({} if timed else {"wall_ms": None, "cpu_ms": None})}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Cost:
        """What `to_json` gave."""
        wall = values["wall_ms"]
        return cls(**{**values, **(UNTIMED if wall is None else {"wall_ms": tuple(wall)})})


UNTIMED: dict[str, Any] = {"wall_ms": (math.nan, math.nan), "cpu_ms": math.nan}


@dataclass(frozen=True)
class Costs:
    """The costs of all networks, and the conditions."""

    models: dict[str, Cost]
    conditions: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"models": {name: cost.to_json() for name, cost in self.models.items()}, "conditions": self.conditions}


def measure_costs(
    runs: Mapping[str, Path], data: Path, case: Case, kept: Path, *, as_printed: Sequence[Case] = ()
) -> Costs:
    """Measure, or read what was measured for the same weights before.

    All networks predict the same image in turn, round after round, so that what else the machine does strikes all alike. Of a
    run whose weights are gone, size and work are counted, and nothing is timed.

    Args:
        runs: model -> one of its run folders.
        data: the data set.
        case: of it, whose image is predicted.
        kept: the file in which the result is kept.
        as_printed: cases whose images are predicted once each, beside a hundred steps of every training, where a paper prints
            what those take.
    """
    key = {name: _mark(run) for name, run in runs.items()}
    stored = _stored(kept, key, len(as_printed))
    if stored is not None:
        return stored
    volume = case.read_image()
    segmenters = {name: Segmenter.load(run) for name, run in runs.items() if key[name] is not None}
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    times: dict[str, Times] = {}
    if segmenters:
        times = time_in_turn(
            {name: segmenter.mask for name, segmenter in segmenters.items()},
            lambda *_: volume,
            rounds=ROUNDS,
            warm_up=WARM_UP,
            longest_s=LONGEST_S,
        )
    images = _over_images(segmenters, as_printed)
    models: dict[str, Cost] = {}
    asked: dict[str, int] = {}
    for name, run in runs.items():
        timed = name in segmenters
        one = segmenters[name] if timed else _unweighted(run)
        plan, recipe = one.plan, one.recipe
        points = count_points(recipe.points, math.prod(plan.patch), sparse=one.network.head.sparse)
        if points is not None:
            asked[name] = points
        steps = hundred_steps(runs[name]) if as_printed else None
        models[name] = Cost(
            count_parameters(one.network),
            count_gmacs(one.network, plan.patch, points=points),
            times[name].wall_ms if timed else UNTIMED["wall_ms"],
            times[name].cpu_ms[0] if timed else UNTIMED["cpu_ms"],
            prediction_mb(run, data, case) if timed else None,
            images.get(name),
            *((None, None) if steps is None else (steps.seconds, steps.mb)),
        )
    conditions = {
        "device": str(default_device()),
        "device_name": device_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "image": list(volume.size),
        "patch": list(plan.patch),
        "points": asked,
        "tta": any(segmenter.recipe.inference.tta for segmenter in segmenters.values()),
        "rounds": max((len(one.wall_s) for one in times.values()), default=0),
        "untimed": [name for name in runs if name not in segmenters],
        "load_before": load,
        "images": len(as_printed),
    }
    costs = Costs(models, conditions)
    write_text(kept, json.dumps({"key": key, **costs.to_json()}, indent=1))
    return costs


def _over_images(segmenters: Mapping[str, Segmenter], cases: Sequence[Case]) -> dict[str, float]:
    """Mean seconds of an image, from the image in memory to its mask, all networks in turn; nothing without cases."""
    if not cases or not segmenters:
        return {}
    read = lru_cache(maxsize=1)(lambda number: cases[number].read_image())
    times = time_in_turn(
        {name: segmenter.mask for name, segmenter in segmenters.items()},
        lambda number, _: read(number),
        rounds=len(cases),
        longest_s=LONGEST_S,
    )
    return {name: sum(of.wall_s) / len(of.wall_s) for name, of in times.items()}


def _unweighted(run: Path) -> Segmenter:
    """The network of a run whose weights are gone, to be counted."""
    plan, recipe = from_yaml(Plan, run / "plan.yaml"), from_yaml(Recipe, run / "recipe.yaml")
    return Segmenter(network_for(recipe, plan), plan, recipe)


def _mark(run: Path) -> str | None:
    """Which weights a run has, not by its whole path: a study that is moved keeps its times. None if it has none."""
    weights = run / "weights.safetensors"
    return f"{run.parent.name}/{run.name}:{weights.stat().st_mtime_ns}" if weights.exists() else None


def _stored(kept: Path, key: Mapping[str, str | None], images: int) -> Costs | None:
    try:
        values = read_json_object(kept)
        known: Mapping[str, str | None] = values["key"]
        # of weights that are gone, what was measured stays
        same = known.keys() == key.keys() and all(mark in (None, known[name]) for name, mark in key.items())
        if not same or "points" not in values["conditions"]:  # an earlier ulna counted all voxels
            return None
        if values["conditions"].get("images", 0) != images:
            return None
        models = {name: Cost.from_json(cost) for name, cost in values["models"].items()}
        return Costs(models, values["conditions"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


_PREDICT = """
import sys
from ulna.kernels.allocator import peak_memory_mb, tune_memory
from ulna.data.layout.dataset import Dataset
from ulna.recipe import set_value
from ulna.inference.segmenter import Segmenter
tune_memory()
segmenter = Segmenter.load(sys.argv[1], allow_code=True)  # the study has loaded it before
dataset = Dataset.from_folder(sys.argv[2]).of_dims(segmenter.plan.image_dims)
case = next(case for case in dataset.cases if str(case.images[0]) == sys.argv[3])  # ids may be pseudonyms
for assignment in sys.argv[4:]:
    segmenter.recipe = set_value(segmenter.recipe, assignment)
segmenter.mask(case.read_image())
print(peak_memory_mb())
"""


def prediction_mb(run: Path, data: Path, case: Case, *changes: str) -> float | None:
    """Peak memory of a fresh process that predicts one image; with changes of the recipe such as inference.mesh_step=2.

    None on a GPU, where it is not measured, and where the process failed.
    """
    if default_device().type == "cuda":
        return None
    done = subprocess.run(
        [sys.executable, "-P", "-c", _PREDICT, str(run), str(data), str(case.images[0]), *changes],
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        return round(float(done.stdout), 1)
    except ValueError:
        return None


def conditions_in_words(conditions: Mapping[str, Any]) -> str:
    """One line under a table."""
    load, untimed = conditions.get("load_before"), conditions.get("untimed", [])
    numbers, images = sorted(set(conditions["points"].values())), conditions.get("images", 0)
    points = f", or {' or '.join(f'{n:,}' for n in numbers)} points of it as in training" if numbers else ""
    return (
        f"times: one image of {'x'.join(map(str, conditions['image']))}, {conditions['rounds']} rounds in turn, "
        f"{conditions['device_name']}, {counted(conditions['threads'], 'thread')}, "
        f"{'with' if conditions['tta'] else 'no'} mirrored copies, torch {conditions['torch']}"
        + (f", load before {load:.2f}" if load is not None else "")
        + (f"; seconds an image: mean of {counted(images, 'image')}; 100 steps: on made samples" if images else "")
        + f"; GMACs of a forward pass over {'x'.join(map(str, conditions['patch']))}{points}"
        + (f"; not timed, for their weights are gone: {', '.join(untimed)}" if untimed else "")
    )


def pick_case(cases: Sequence[Case]) -> Case:
    """The case whose image is predicted for the times: the first by id."""
    return min(cases, key=lambda case: case.id)
