"""The verb `predict`: every case of an input through one run or several, each case for itself."""

from __future__ import annotations

import json
import logging
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ulna.allocation import keep_freed_memory
from ulna.data.case import Case
from ulna.data.dataset import Dataset
from ulna.data.read import write_labels, write_npz_masks, write_probabilities
from ulna.errors import PartialFailure, UsageError, unknown
from ulna.files import write_text
from ulna.inference.predict import to_labels
from ulna.levels import levels_of, named_level, pruned
from ulna.progress import track
from ulna.recipe import Split
from ulna.segmenter import Ensemble, Segmenter, load, read_split

log = logging.getLogger(__name__)

PREDICT_FILE = "predict.json"
TOO_LARGE = "predict without --probabilities, cut the image, or use a machine with more memory"


@dataclass(frozen=True)
class Predictions:
    """What `predict` wrote: the folder, and a row for every case."""

    folder: Path
    cases: list[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"folder": str(self.folder), "cases": self.cases}


def predict(
    run: Path | str | Sequence[Path | str],
    data: Path | str,
    /,
    *,
    out: Path | str,
    split: str | None = None,
    level: int | None = None,
    tta: bool = False,
    probabilities: bool = False,
) -> Predictions:
    """Segment images with a trained run; masks come back in the input's own format, geometry and name.

    Args:
        run: a run folder of `ulna train`; several make an ensemble, whose probabilities are averaged.
        data: an image, a folder of images, a data set, or an .npz file.
        out: folder for the masks and predict.json.
        split: only the cases of this part of the run's own split: train, val or test.
        level: predict with the smaller network of this pruning level, counted from 1; see `ulna prune`.
        tta: average over mirrored copies of every image: slower, sometimes better.
        probabilities: also write the probabilities.

    Raises:
        UsageError: if the run or the input cannot be used.
        PartialFailure: if some cases failed; the others are written.

    Example:
        ulna predict runs/nuclei-unetpp data/new --out masks
    """
    keep_freed_memory()
    runs, data, out = [Path(one) for one in ([run] if isinstance(run, str | Path) else run)], Path(data), Path(out)
    segmenter = load(runs) if level is None else _at_level(runs, level)
    if tta:
        segmenter = segmenter.mirrored()
    dataset = Dataset.from_folder(data, need_labels=False, channels=segmenter.plan.in_channels)
    dataset = dataset.of_dims(segmenter.plan.spatial_dims)
    cases = dataset.cases if split is None else _part(dataset, _common_split(runs), split)
    _make_folder(out, cases)

    rows: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    arrays: dict[Path, list[tuple[str, NDArray[Any]]]] = {}
    try:
        for case in track(cases, "predicting"):
            start = time.perf_counter()
            try:
                file, size = _segment(segmenter, case, out, arrays, probabilities)
            except Exception as error:  # whatever it is, the other cases are written
                failed[case.id] = _reason(error)
                continue
            seconds = round(time.perf_counter() - start, 3)
            rows.append({"case": case.id, "file": file, "size": list(size), "seconds": seconds})
    finally:  # what is done is kept, also when a person stops the rest
        for source, masks in arrays.items():
            ids, stacked = [name for name, _ in masks], np.stack([mask for _, mask in masks])
            write_npz_masks(out / source.name, stacked, ids, multilabel=segmenter.plan.labels.multilabel)
        facts = {
            "model": segmenter.recipe.model,
            "runs": [one.resolve().name for one in runs],
            "level": level,
            "labels": segmenter.plan.labels.model_dump(mode="json"),
            "tta": tta,
            "asked": [case.id for case in cases],
            "cases": rows,
            "failed": failed,
        }
        if segmenter.tally.voxels:
            facts["points"] = asdict(segmenter.tally)
        write_text(out / PREDICT_FILE, json.dumps(facts, indent=1))
    if failed and not rows:
        raise UsageError("no case could be predicted\n" + "\n".join(f"  {c}: {why}" for c, why in failed.items()))
    if failed:
        raise PartialFailure(failed, len(rows))
    return Predictions(out, rows)


def _at_level(runs: Sequence[Path], level: int) -> Segmenter:
    """The smaller network of every run."""
    members: dict[str, Segmenter] = {}
    for run in runs:
        segmenter = Segmenter.load(run)
        chosen = named_level(levels_of(run, segmenter.recipe), level=level, head=None)
        members[str(run)] = pruned(segmenter, chosen.head if chosen else None)
    return next(iter(members.values())) if len(members) == 1 else Ensemble(members)


def _part(dataset: Dataset, split: Split, part: str) -> tuple[Case, ...]:
    if part not in Split.model_fields:
        raise UsageError(f"--split: {unknown('part of a split', part, Split.model_fields)}")
    wanted = set(getattr(split, part))
    cases = tuple(case for case in dataset.cases if case.id in wanted)
    if not cases:
        raise UsageError(f"--split {part}: none of the run's {len(wanted)} {part} cases stand in {dataset.root}")
    return cases


def _make_folder(out: Path, cases: Sequence[Case]) -> None:
    """Make the folder for the masks; never one that holds the images, the references or a run."""
    taken = {source.path.resolve().parent for case in cases for source in (*case.images, case.label) if source}
    if out.resolve() in taken or (out / "recipe.yaml").exists():
        raise UsageError(
            f"{out}: holds the images, the references or a run, which masks could replace; choose another --out"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{out}: cannot be made ({error.strerror}); choose another --out") from None


def _common_split(runs: Sequence[Path]) -> Split:
    splits = {run: read_split(run) for run in runs}
    first, *others = splits
    for other in others:
        if splits[other] != splits[first]:
            raise UsageError(f"--split: {other} was trained on another split than {first}; leave --split out")
    return splits[first]


def _reason(error: Exception) -> str:
    """Why a case failed. What is not the user's doing is a defect, unless it is the memory that ran out."""
    text = str(error)
    if isinstance(error, UsageError):
        return text
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "memory" in text.lower()):
        return "out of memory; predict on a machine with more, or train with a smaller planning.patch"
    log.error("%s", traceback.format_exc())
    return f"a defect of ulna, please report it ({type(error).__name__}: {text})"


def _segment(
    segmenter: Segmenter,
    case: Case,
    out: Path,
    arrays: dict[Path, list[tuple[str, NDArray[Any]]]],
    probabilities: bool,
) -> tuple[str, tuple[int, ...]]:
    """Write one mask, or keep it for the npz that its image came from; the file's name and the image's size."""
    volume, source = case.read_image(), case.images[0]
    need = segmenter.forecast(volume, probabilities=probabilities)
    need.check(f"an image of {' x '.join(map(str, volume.size))}", TOO_LARGE)
    log.debug("%s: about %s of memory", case.id, need)
    if probabilities:
        maps = segmenter.probabilities(volume)
        mask = to_labels(maps, segmenter.plan.labels, segmenter.recipe.inference.threshold)
        write_probabilities(out / f"{case.id}_probabilities", maps.numpy(), volume)
    else:
        mask = segmenter.mask(volume)
    if source.row is not None:
        arrays.setdefault(source.path, []).append((case.id, mask))
        return source.path.name, volume.size
    return write_labels(out / case.id, mask, volume).name, volume.size
