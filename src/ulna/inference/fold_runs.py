"""A cross-validation is a folder of run folders, fold_0, fold_1, ...; where a run is asked for, it stands for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ulna.errors import UsageError, counted, printable
from ulna.recipe import Recipe, from_yaml
from ulna.system.outputs import FOLDS_FILE


def is_cross_validation(folder: Path) -> bool:
    """Whether `ulna train --folds` wrote this folder."""
    return (folder / FOLDS_FILE).exists()


def fold_runs(folder: Path) -> list[Path]:
    """The run folders of a cross-validation, in the order of the folds, whether they exist or not.

    Raises:
        UsageError: if the file that says how many there are is damaged.
    """
    path = folder / FOLDS_FILE
    count = from_yaml(Recipe, path).training.folds
    if count is None:
        raise UsageError(f"{printable(path)}: does not say how many folds there are (training.folds); restore it")
    return [folder / f"fold_{number}" for number in range(count)]


def each_run(runs: Sequence[Path]) -> list[Path]:
    """The runs that are named, with all folds in place of a cross-validation.

    Raises:
        UsageError: if a fold has no weights yet.
    """
    found: list[Path] = []
    for run in runs:
        if not is_cross_validation(run):
            found.append(run)
            continue
        folds = fold_runs(run)
        missing = [fold.name for fold in folds if not (fold / "weights.safetensors").exists()]
        if missing:
            raise UsageError(
                f"{printable(run)}: {', '.join(missing)} of its {counted(len(folds), 'fold')} without weights; go on with "
                "ulna train --resume, or name the folds that are to predict"
            )
        found += folds
    return found


def run_name(run: Path) -> str:
    """A run as it is told: its folder's name, and that of the cross-validation that it is a fold of."""
    place = run.resolve()
    return f"{place.parent.name}/{place.name}" if is_cross_validation(place.parent) else place.name
