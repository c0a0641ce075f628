"""What a finished training says about itself: measures of the best weights on the cases kept aside, and the facts."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ulna.data.layout.case import Case
from ulna.data.layout.dataset import Dataset
from ulna.data.layout.splitting import split_hash
from ulna.evaluation import figures
from ulna.evaluation.drawn import DrawnCase, Extremes, ShownCase, keep_shown
from ulna.evaluation.origins import of_run
from ulna.evaluation.report import is_synthetic, write_report
from ulna.evaluation.scores import Evaluation
from ulna.inference.scoring import predict_result, scores_for
from ulna.inference.segmenter import Segmenter
from ulna.kernels.allocator import peak_memory_mb
from ulna.networks.foreign import allow_flag
from ulna.networks.network import Network
from ulna.networks.weights import load_weights
from ulna.pages.sealing import PAGE_FILE
from ulna.planning.plan import Planned
from ulna.recipe import Plan, Recipe, Split, Training
from ulna.system.device import choose_precision, default_device, device_name
from ulna.system.files import read_tensors, write_text
from ulna.system.passed_on import stored_command, without_place
from ulna.system.progress import track
from ulna.training.calibrating import calibration_s, error_of, tried
from ulna.training.state import State
from ulna.version import version

LIMITS = ("epochs", "steps", "max_hours", "patience", "validate_every")  # of a training
SHOWN_FILE = "figures/cases.json"  # what the page of a fold shows of cases, for the page of all folds


def limits_of(training: Training) -> dict[str, float | None]:
    """As a summary names those that its run was finished with."""
    return {name: getattr(training, name) for name in LIMITS}


def with_limits(training: Training, *, epochs: int | None, max_hours: float | None) -> Training:
    """A training with other limits where they are given; other epochs than before take the place of steps."""
    changes = {name: value for name, value in (("epochs", epochs), ("max_hours", max_hours)) if value is not None}
    return training.replaced(**changes, steps=training.steps if epochs in (None, training.epochs) else None)


def final_part(split: Split) -> str:
    """Where the final figures come from: the test cases, or the validation cases where there are none."""
    return "test" if split.test else "val"


def final_predictions(plan: Plan, recipe: Recipe, split: Split) -> int:
    """How many the final evaluation makes: one a case, and one more for every way that it is mirrored."""
    mirrored = 2 ** len(plan.mirror_axes) if recipe.inference.tta else 1
    return mirrored * len(getattr(split, final_part(split)))


def summarise(
    folder: Path, data: Path, parts: Parts, planned: Planned, network: Network, state: State, *, devices: int = 1
) -> dict[str, Any]:
    """Evaluate the best weights on the test cases (the validation cases where there are none), draw, and write it down.

    Args:
        folder: of the run.
        data: the data set.
        parts: the labelled cases of the split.
        planned: what was trained.
        network: it gets the best weights.
        state: where the training stands.
        devices: that trained together last.
    """
    start = time.perf_counter()
    recipe, plan, split = planned.recipe, planned.plan, planned.split
    part, foreign = final_part(split), recipe.architecture.foreign
    best = Segmenter(load_weights(network, folder / "weights.safetensors"), plan, recipe)
    calibration = tried(
        folder,
        best,
        parts.within(parts.train),
        parts.within(parts.val),
        calibration_s(recipe.training, state.elapsed_s),
    )
    best = Segmenter(best.network, plan, recipe, calibration=calibration)
    evaluation, drawn, error = _final(best, getattr(parts, part))
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
        **({} if state.val_cases is None else {"val_cases": state.val_cases}),  # a limit of hours left time for no more
        "limits": limits_of(recipe.training),
        "evaluated_on": part,
        part: evaluation.summary,
        **({} if calibration is None else {"trust": calibration.summary(error if part == "test" else None)}),
        "wall_seconds": round(state.elapsed_s + time.perf_counter() - start, 3),
        "training_seconds": round(state.elapsed_s, 3),
        "seconds": {phase: round(spent, 3) for phase, spent in state.seconds.items()},  # of the training
        "peak_memory_mb": max(state.peak_mb, peak_memory_mb()),
        "device": device_name(),
        "precision": choose_precision(recipe.training.precision, default_device()),
        "threads": torch.get_num_threads(),
        "devices": devices,
        "seed": recipe.training.seed,
        **({} if recipe.training.init is None else {"init": without_place(recipe.training.init)}),
        "split_hash": split_hash(split),
        "data_fingerprint": plan.fingerprint.digest,
        "versions": {name: version(name) for name in ("ulna", "torch", "numpy")}
        | {"python": platform.python_version()},
        **({} if foreign is None else {"network": foreign.model_dump(mode="json")}),  # with its version or digest
        "command": stored_command(
            [
                *("train", data, "--recipe", folder / "recipe.yaml", "--plan", folder / "plan.yaml"),
                *(() if recipe.training.init is None else ("--init", recipe.training.init)),
                *("--out", "NEW_FOLDER", *allow_flag(foreign)),
            ]
        ),
    }
    evaluation.write_rows(folder / "cases.csv")
    write_text(folder / "summary.json", json.dumps(summary, indent=1, allow_nan=False))
    figures.panels([(case.title, case.pictures) for case in drawn], folder / "figures" / f"{part}.png")
    shown = [ShownCase.of(case) for case in drawn]
    if recipe.training.folds is not None:
        keep_shown(folder / SHOWN_FILE, shown)
    write_report(
        folder / PAGE_FILE, evaluation, shown, of_run(folder),
        verb="train", title=data.resolve().name, table="cases.csv", synthetic=is_synthetic(data),
    )  # fmt: skip
    return summary


def _final(segmenter: Segmenter, cases: Sequence[Case]) -> tuple[Evaluation, list[DrawnCase], dict[str, Any] | None]:
    """Measures over the cases, each predicted once; pictures of those with the lowest and the highest Dice; and the error of
    the predicted Dice."""
    scores, extremes = scores_for(segmenter, cases), Extremes()
    predicted: list[tuple[float | None, float]] = []
    for case in track(cases, "evaluating"):
        pair, result = predict_result(segmenter, case)
        dice = scores.add(pair)
        extremes.offer(dice, pair)
        predicted.append((segmenter.predicted_mean(result), dice))
    error = error_of(predicted)
    return scores.evaluation(), extremes.cases, None if error is None else {"from": segmenter.compares, **error}


class Parts(NamedTuple):
    """The cases of a split.

    Args:
        train, val, test: as it divides them.
        apart: ids of those at which no calibration looks.
    """

    train: Sequence[Case]
    val: Sequence[Case]
    test: Sequence[Case]
    apart: Collection[str] = ()

    def within(self, cases: Sequence[Case]) -> list[Case]:
        """Those of these cases at which the calibration looks."""
        return [case for case in cases if case.id not in self.apart]

    @classmethod
    def of(cls, dataset: Dataset, split: Split, apart: Collection[str] = ()) -> Parts:
        """Those of a data set."""
        train, val, test = (dataset.cases_of(part) for part in (split.train, split.val, split.test))
        return cls(train, val, test, apart)
