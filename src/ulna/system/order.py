"""Folders that stand in each other's place in a command, such as `predict IMAGES RUN`: what they are, and the command that
is meant. Only names are looked at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ulna.errors import UsageError
from ulna.system.exported import is_exported, no_masks, not_taken, refuse_exported
from ulna.system.names import FOLDS_FILE, PLAN_FILE, PREDICT_FILE, RUN_FILE
from ulna.verbs import command

_IMAGES = ("images", "imagesTr", "imagesTs")
_LABELS = ("labels", "labelsTr", "labelsTs")


def is_run(path: Path) -> bool:
    """Whether `ulna train` wrote this folder."""
    return (path / FOLDS_FILE).is_file() or all((path / name).is_file() for name in (RUN_FILE, PLAN_FILE))


def check_words(verb: str, words: Sequence[str], flags: Sequence[str]) -> None:
    """Refuse what the words of a command line cannot be, before the verb is imported, which takes seconds.

    Args:
        verb: its name.
        words: those that follow no flag.
        flags: all others.

    Raises:
        UsageError: with what is wrong.
    """
    paths = [Path(word) for word in words]
    if verb == "evaluate" and len(paths) == 2:
        predictions, labels = paths
        check_masks_first(predictions, labels, flags)
    runs = paths if verb == "prune" else paths[:-1] if verb in ("predict", "explain") else []
    if verb in ("prune", "explain"):
        refuse_exported(runs, "run")
    if runs and verb != "prune":
        check_run_first(verb, runs, paths[-1], flags)
    for path in runs:
        if path.is_dir() and not any((path / name).exists() for name in (RUN_FILE, FOLDS_FILE)):
            raise not_a_run(path)


def not_a_run(path: Path) -> UsageError:
    """The error for a folder that `ulna train` did not write, or an exported file."""
    if is_exported(path):
        return not_taken(path, "run")
    return UsageError(f"{path}: not a run folder (no {RUN_FILE}); give the folder that `ulna train` wrote")


def check_run_first(verb: str, runs: Sequence[Path], image: Path, flags: Sequence[str]) -> None:
    """Refuse a run where the images are wanted, for `predict` and `explain`.

    Raises:
        UsageError: with the command that is meant.
    """
    if not _predicts(image):
        return
    what = "a run folder" if is_run(image) else "an exported file"
    words = [*runs, image]
    others = [path for path in words if not _predicts(path)]
    if len(others) == 1:
        meant = command([verb, *filter(_predicts, words), *others, *flags])
        raise UsageError(f"{image}: is {what}, where the image is wanted; the run comes first: {meant}")
    meant = command([verb, *words, "INPUT", *flags])
    raise UsageError(f"{image}: is {what}, where the image is wanted; the image comes last: {meant}")


def _predicts(path: Path) -> bool:
    return is_run(path) or is_exported(path)


def check_masks_first(predictions: Path, labels: Path, flags: Sequence[str]) -> None:
    """Refuse runs and images where masks are wanted, and masks of `predict` where the references are, for `evaluate`.

    Raises:
        UsageError: with the command that is meant.
    """
    for path in (predictions, labels):
        if is_exported(path):
            raise no_masks(path, labels if path is predictions else "LABELS")
        if is_run(path):
            first = command(["predict", path, "INPUT", "--out", "MASKS"])
            then = _evaluate("MASKS", labels if path is predictions else "LABELS", flags)
            raise UsageError(f"{path}: is a run folder, where masks are wanted; predict first: {first}; then: {then}")
    if (
        (labels / PREDICT_FILE).is_file()
        and not (predictions / PREDICT_FILE).is_file()
        and _holds_references(predictions)
    ):
        meant = _evaluate(labels, predictions, flags)
        raise UsageError(f"{labels}: holds masks of ulna predict, which come before the references: {meant}")
    if images := _images_in(predictions):
        raise UsageError(f"{images}: holds images, where masks are wanted: {_evaluate('MASKS', labels, flags)}")
    if images := _images_in(labels):
        beside = next((labels.with_name(name) for name in _LABELS if labels.with_name(name).is_dir()), None)
        meant = _evaluate(predictions, "LABELS" if beside is None else beside, flags)
        raise UsageError(f"{images}: holds images, where the references are wanted: {meant}")


def _evaluate(predictions: Path | str, labels: Path | str, flags: Sequence[str]) -> str:
    return command(["evaluate", predictions, labels, *flags])


def _holds_references(path: Path) -> bool:
    """Whether a folder is a data set, or the label maps of one."""
    inside = any((path / name).is_dir() for name in _LABELS) or (path / "dataset.json").is_file()
    return inside or (path.name in _LABELS and any(path.with_name(name).is_dir() for name in _IMAGES))


def _images_in(path: Path) -> Path | None:
    """The folder of images that this is, or that lies in it with no label map beside it."""
    if path.name in _IMAGES and any(path.with_name(name).is_dir() for name in _LABELS):
        return path
    if any((path / name).exists() for name in (*_LABELS, "dataset.json", PREDICT_FILE)):
        return None
    return next((path / name for name in _IMAGES if (path / name).is_dir()), None)
