"""Cross-validation: a run folder a fold, then one summary in which the network that did not train on a case scores it.

The folder that holds them has `folds.yaml`, the recipe of all folds before planning; with it a stopped cross-validation goes
on: finished folds are skipped, a stopped one goes on, the others begin.
"""

from __future__ import annotations

import csv
import json
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ulna.data.layout.dataset import Dataset, Division, split
from ulna.errors import Interrupted, UsageError, counted, listed, printable
from ulna.evaluation.agreed import Agreed
from ulna.evaluation.drawn import extremes_shown, read_shown
from ulna.evaluation.objects import merged_lesions
from ulna.evaluation.origins import of_folds
from ulna.evaluation.report import is_synthetic, write_report
from ulna.evaluation.scores import Scores
from ulna.inference.fold_runs import fold_runs
from ulna.networks.foreign import allow_flag
from ulna.pages.sealing import PAGE_FILE
from ulna.recipe import Plan, Recipe, Split, from_yaml, to_yaml
from ulna.system.files import from_cell, write_text
from ulna.system.locking import locked
from ulna.system.names import PLAN_FILE
from ulna.system.outputs import FOLDS_FILE, RUN_FILE
from ulna.system.passed_on import stored_command
from ulna.system.reading import read_json_object
from ulna.training.limit import told_duration
from ulna.training.summary import SHOWN_FILE, final_part, limits_of, with_limits
from ulna.verbs import command

log = logging.getLogger("ulna")

CASES, SUMMARY = "cases.csv", "summary.json"
ALL = "all"  # what the cases of the summary are called, where those of a run are `val` or `test`
SHARED = ("model", "data", "parameters", "monitor", "device", "precision", "threads", "seed", "versions")
Limits = dict[str, Any]
# train into a folder by a recipe, or go on there without one, to other limits, before further folds; gives what the run says
# about itself
OneFold = Callable[[Path, Recipe | None, Limits, Sequence[int]], dict[str, Any]]
# the data, the folder, its runs, the recipe of all, the command that goes on, and what is called before a job begins
AllFolds = Callable[[Path, Path, Sequence[Path], Recipe, str, Callable[[], None]], None]


def check_folds(dataset: Dataset, recipe: Recipe) -> None:
    """Refuse what cannot be cross-validated, before any case is read.

    Raises:
        UsageError: if the data set brings one split, another number of folds, or folds that score a case twice.
    """
    folds, given = recipe.training.folds or 0, dataset.given_splits
    if len(given) == 1:
        raise UsageError(
            f"--folds {folds}: the data set brings one split, not folds; leave --folds out, or take the split away"
        )
    if given and len(given) != folds:
        raise UsageError(
            f"--folds {folds}: the data set brings {counted(len(given), 'fold')}; write --folds {len(given)}"
        )
    for number in range(folds):
        dataset.check_divisible(Division(number, folds))
    if given:
        _check_once([split(dataset, _seed(recipe), wanted=Division(number, folds)) for number in range(folds)])


def _check_once(splits: Sequence[Split]) -> None:
    """Every case must be scored by one network alone."""
    times = Counter(case for one in splits for case in getattr(one, final_part(one)))
    twice = [case for case, count in times.items() if count > 1]
    if twice:
        raise UsageError(
            f"--folds {len(splits)}: {counted(len(twice), 'case')} kept aside by several folds ({listed(twice, 3)}), and a "
            "cross-validation scores every case once; train the folds one by one with --fold"
        )


def _seed(recipe: Recipe) -> int:
    training = recipe.training
    return training.seed if training.split_seed is None else training.split_seed


def cross_validate(
    data: Path,
    folder: Path,
    recipe: Recipe | None,
    one_fold: OneFold,
    limits: Limits,
    *,
    key: Sequence[str] = (),
    all_folds: AllFolds | None = None,
) -> dict[str, Any]:
    """Train all folds that are not finished, and summarise; returns what stands in the summary.

    Args:
        data: the data set.
        folder: a new one, or that of a cross-validation that goes on.
        recipe: of all folds; None to go on.
        one_fold: trains one.
        limits: `epochs` and `max_hours` of a cross-validation that goes on, where they change.
        key: words of the command that goes on: where the pseudonyms come from.
        all_folds: trains those that are not finished, in processes, in place of `one_fold`.

    Raises:
        Interrupted: after a signal, with the command that goes on with all folds.
    """
    with locked(folder):
        if recipe is None:
            recipe = _changed(folder, limits)
        else:
            check_folds(Dataset.from_folder(data), recipe)
        allowed = allow_flag(recipe.architecture.foreign)
        again = command(["train", data, "--out", folder, "--resume", *key, *allowed])
        with _begun(folder, recipe) as keep:
            if all_folds is not None:
                all_folds(data, folder, fold_runs(folder), recipe, again, keep)
            runs, start, trained = fold_runs(folder), time.perf_counter(), 0
            todo = [run for run in runs if not finished(run, recipe)]
            for number, run in enumerate(runs):
                which = f"fold {number + 1} of {len(runs)} ({run.name})"
                if run not in todo:
                    if all_folds is None:
                        log.info("%s: is finished", which)
                    continue
                check_alike(folder, runs)
                begun = (run / RUN_FILE).exists()
                log.info("%s: %s", which, "goes on" if begun else "begins")
                own = recipe.replaced(training=recipe.training.replaced(fold=number))
                to_come = [] if trained else [n for n, other in enumerate(runs) if n > number and other in todo]
                try:
                    further = other_limits(run, recipe) if begun else {}
                    summary = one_fold(run, None if begun else own, further, to_come)
                except Interrupted as stopped:
                    raise Interrupted(stopped.signal, again, f"{run.name}: {stopped.done}") from None
                trained += 1
                left = (len(todo) - trained) * (time.perf_counter() - start) / trained
                log.info("%s: %s", which, told(summary, left))
        return _summarise(folder, runs, recipe, data)


@contextmanager
def _begun(folder: Path, recipe: Recipe) -> Iterator[Callable[[], None]]:
    """Write down what is trained; taken back where no fold could begin.

    What is given keeps it from there on: jobs that were handed out read it, maybe long after this command.
    """
    kept = [(folder / FOLDS_FILE).exists()]
    write_text(folder / FOLDS_FILE, to_yaml(recipe))
    try:
        yield lambda: kept.append(True)
    except BaseException:
        if not any(kept) and not any((run / RUN_FILE).exists() for run in fold_runs(folder)):
            (folder / FOLDS_FILE).unlink()
        raise


def _changed(folder: Path, limits: Limits) -> Recipe:
    """The recipe of a cross-validation that goes on, with other limits where they are given."""
    recipe = from_yaml(Recipe, folder / FOLDS_FILE)
    return recipe.replaced(training=with_limits(recipe.training, **limits))


def check_alike(folder: Path, runs: Sequence[Path]) -> None:
    """Refuse folds of which some predict images in windows of the patch, and others in one piece, as earlier versions did.

    Raises:
        UsageError: naming one of each.
    """
    planned = [run for run in runs if (run / PLAN_FILE).exists()]
    windows = {from_yaml(Plan, run / PLAN_FILE).whole_image_limit == 0: run.name for run in reversed(planned)}
    if len(windows) == 2:
        raise UsageError(
            f"{folder}: {windows[False]} was planned by an earlier version of ulna, which predicted images larger than a "
            f"patch in one piece, {windows[True]} in windows of the patch; one summary does not mix them: train all folds "
            "into another --out"
        )


def finished(run: Path, recipe: Recipe) -> bool:
    """Whether a fold has its figures, and was trained as long as the recipe of all folds says."""
    if not all((run / name).exists() for name in (RUN_FILE, CASES, SUMMARY)):
        return False
    told, own = read_json_object(run / SUMMARY).get("limits"), from_yaml(Recipe, run / RUN_FILE).training
    being_extended = told != limits_of(own)
    return not being_extended and not other_limits(run, recipe)


def other_limits(run: Path, recipe: Recipe) -> Limits:
    """In which the recipe of all folds goes beyond that of a fold, since the cross-validation was extended."""
    own, wanted = from_yaml(Recipe, run / RUN_FILE).training, recipe.training
    names = ("max_hours",) if wanted.steps is not None else ("epochs", "max_hours")  # of steps, epochs follow
    return {name: value for name in names if (value := getattr(wanted, name)) not in (None, getattr(own, name))}


def told(summary: dict[str, Any], left_s: float = 0.0) -> str:
    """What is told of a fold that is finished."""
    part = summary["evaluated_on"]
    dice = summary[part]["mean"]["dice"]["mean"]
    scored = "no structure" if dice is None else f"Dice {dice:.4f}"
    left = f"; about {told_duration(left_s)} to go" if left_s >= 30 else ""
    return f"{scored} on {counted(summary[part]['cases'], f'{part} case')}{left}"


def _summarise(folder: Path, runs: Sequence[Path], recipe: Recipe, data: Path) -> dict[str, Any]:
    """`cases.csv` and `summary.json` of all folds: every case scored by the network of the fold that kept it aside."""
    check_alike(folder, runs)
    summaries = [read_json_object(run / SUMMARY) for run in runs]
    plan = from_yaml(Plan, runs[0] / PLAN_FILE)
    agreed = Agreed.of(summaries)
    scores = Scores(plan.labels, recipe.evaluation.empty_score, by=recipe.evaluation.by, choice=agreed.choice)
    for run, of_fold in zip(runs, summaries, strict=True):
        rows = [agreed.kept(row["class"], row) for row in _read_rows(run / CASES)]
        scores.add_rows(rows, of_fold[of_fold["evaluated_on"]]["unit"], plan.image_dims)
    evaluation, lesions = scores.evaluation(), merged_lesions(summaries)
    parts = sorted({of_fold["evaluated_on"] for of_fold in summaries})
    chose = ", which also chose its epoch by them" if parts == ["val"] else ""
    if agreed.words:
        words = printable(", ".join(agreed.words))
        partly = f"left out, for not all folds have them: {words}; evaluation.metrics names measures for all"
        log.info("note: %s", partly)
        chose += f"; {partly}"
    summary = {
        **{name: summaries[0][name] for name in SHARED if name in summaries[0]},
        "folds": [
            {
                "run": run.name,
                "epochs": of_fold["epochs"],
                "best_epoch": of_fold["best_epoch"],
                "val_dice": of_fold["val_dice"],
                "evaluated_on": of_fold["evaluated_on"],
                "cases": of_fold[of_fold["evaluated_on"]]["cases"],
                "dice": of_fold[of_fold["evaluated_on"]]["mean"]["dice"]["mean"],
                "split_hash": of_fold["split_hash"],
                **({"trust": of_fold["trust"]} if "trust" in of_fold else {}),
            }
            for run, of_fold in zip(runs, summaries, strict=True)
        ],
        "evaluated_on": ALL,
        ALL: {**evaluation.summary, **({"lesions": lesions} if lesions else {})},
        "note": f"every case is scored by the network of the fold that did not train on it{chose}",
        **{name: round(sum(one[name] for one in summaries), 3) for name in ("wall_seconds", "training_seconds")},
        "peak_memory_mb": max(of_fold["peak_memory_mb"] for of_fold in summaries),
        "command": stored_command(
            ["train", data, "--recipe", folder / FOLDS_FILE, "--folds", len(runs), "--out", "NEW_FOLDER"]
        ),
    }
    evaluation.write_rows(folder / CASES)
    write_text(folder / SUMMARY, json.dumps(summary, indent=1, allow_nan=False))
    cases = extremes_shown([case for run in runs for case in read_shown(run / SHOWN_FILE)])
    write_report(
        folder / PAGE_FILE, evaluation, cases, of_folds(folder),
        verb="train", title=data.resolve().name, table=CASES, synthetic=is_synthetic(data),
    )  # fmt: skip
    return summary


def _read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a fold's `cases.csv`, as they were measured."""
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
        return [{name: _value(name, text) for name, text in row.items()} for row in rows]
    except (OSError, UnicodeDecodeError, ValueError, TypeError) as error:
        raise UsageError(
            f"{printable(path)}: cannot be read ({error}); remove {printable(path.parent / SUMMARY)}, and --resume scores "
            "the fold again"
        ) from None


def _value(name: str, text: str) -> Any:
    if name in ("case", "class"):
        return from_cell(text)
    if text in ("True", "False"):
        return text == "True"
    number = float(text)
    return int(number) if math.isfinite(number) and name in ("tp", "fp", "fn", "slice") else number
