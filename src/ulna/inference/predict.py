"""The verb `predict`: every case of an input through one run or several, each case for itself.

What stands in the output folder already is skipped where run, options and image are the same, redone with `overwrite`
where ulna wrote it otherwise, and never touched where ulna did not write it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ulna.data.formats.dicom.choosing import parse_wishes
from ulna.data.formats.write import FORMATS
from ulna.data.layout.case import Case
from ulna.data.layout.dataset import Dataset
from ulna.data.layout.record import Record
from ulna.errors import Interrupted, PartialFailure, UsageError, unknown
from ulna.evaluation.units import Across
from ulna.inference.cases import Work
from ulna.inference.fold_runs import each_run, run_name
from ulna.inference.inputs import channels_of
from ulna.inference.levels import levels_of, named_level, pruned
from ulna.inference.segmenter import Ensemble, Segmenter, load, read_split
from ulna.recipe import Split
from ulna.system.outputs import PREDICT_FILE, check_folder, file_digest
from ulna.verbs import command, to_argv

log = logging.getLogger(__name__)

MOST_LOADS = 3  # of a run whose training writes between two reads
OF_A_RUN = ("weights.safetensors", "plan.yaml", "recipe.yaml")


@dataclass(frozen=True)
class Predictions:
    """What `predict` wrote or found written: the folder, and a row for every case.

    Args:
        folder: holds the masks and predict.json.
        cases: a row for every mask of this call.
        skipped: cases whose masks stood there already, made by this run, with these options, of this image.
        failed: case -> reason.
    """

    folder: Path
    cases: list[dict[str, Any]]
    skipped: tuple[str, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "folder": str(self.folder),
            "cases": self.cases,
            "skipped": list(self.skipped),
            "failed": dict(self.failed),
        }


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
    overwrite: bool = False,
    format: Sequence[str] = (),
    series: Sequence[str] = (),
    dicom: Sequence[str] = (),
) -> Predictions:
    """Segment images with a trained run; masks come back in the input's own format, geometry and name.

    Called again, it does what is missing. A mask of another run, of other options or of an image that has changed is
    redone with `overwrite` only. Nothing that ulna did not write is ever replaced. A DICOM series gives a DICOM SEG, which is
    read again and compared with the mask before it is put in place.

    Args:
        run: a run folder of `ulna train`; several make an ensemble, whose probabilities are averaged, as do the folds of a
            cross-validation.
        data: an image, a folder of images, a data set, an .npz file, or a folder with DICOM series.
        out: folder for the masks and predict.json.
        split: only the cases of this part of the run's own split: train, val or test.
        level: predict with the smaller network of this pruning level, counted from 1; see `ulna prune`.
        tta: average over mirrored copies of every image: slower, sometimes better.
        probabilities: also write the probabilities.
        overwrite: predict again what ulna wrote with another run, other options or of another image.
        format: what masks are written as in place of the input's own format: seg, rtstruct (both for DICOM), nifti; several
            are written side by side.
        series: of DICOM: the UID or the description of the series to take; given several times, those that are the channels.
        dicom: what is done about odd slices: tilt=resample|refuse, duplicates=refuse|first, gaps=refuse|interpolate,
            mixed=refuse|largest; the first of each is the default.

    Raises:
        UsageError: if the run, the input or the folder cannot be used.
        PartialFailure: if some cases failed; the others are written.
        Interrupted: after Ctrl-C or SIGTERM; what is done is listed in predict.json.

    Example:
        ulna predict runs/nuclei-unetpp data/new --out masks
    """
    named, data, out = [Path(one) for one in ([run] if isinstance(run, str | Path) else run)], Path(data), Path(out)
    formats, wishes = _formats(format), parse_wishes(series, dicom)
    runs = each_run(named)
    segmenter, digest = _loaded(runs, level)
    if tta:
        segmenter = segmenter.mirrored()
    dataset = Dataset.from_folder(
        data,
        need_labels=False,
        channels=segmenter.plan.in_channels,
        wishes=wishes._replace(channels=channels_of(segmenter.plan)),
    )
    dataset = dataset.of_dims(segmenter.plan.image_dims)
    for note in dataset.notes:
        log.info("note: %s", note)
    cases = dataset.cases if split is None else _part(dataset, _common_split(runs), split)
    sources = [source for case in cases for source in (*case.images, case.label) if source is not None]
    check_folder(out, [data, *dict.fromkeys(place for source in sources for place in source.places)])
    if dataset.layout == "dicom" and out.resolve().is_relative_to(data.resolve()):
        raise UsageError(
            f"{out}: lies in {data}, where its masks would pass for labels of the series; choose another --out"
        )
    options: dict[str, Any] = {"level": level, "tta": tta, "probabilities": probabilities}
    odd = {"format": list(formats), "series": list(series), "dicom": sorted(dicom)}
    options |= {name: value for name, value in odd.items() if value}  # masks of earlier versions have the rest alone
    work = Work(segmenter, out, probabilities, Record.read(out), digest, options, formats)
    work.find_pending(cases, overwrite)
    across = Across.of(segmenter.plan)
    facts = {
        "model": segmenter.recipe.model,
        "runs": [run_name(one) for one in runs],
        "digest": digest,
        "options": {**options, "split": split},
        "level": level,
        "labels": segmenter.plan.labels.model_dump(mode="json"),
        "tta": tta,
        "empty_score": segmenter.recipe.evaluation.empty_score,
        "scored_by": segmenter.recipe.evaluation.by,
        "measured": list(segmenter.recipe.evaluation.metrics),
        "slices": None if across is None else across._asdict(),
        "asked": [case.id for case in cases],
        "notes": list(dataset.notes),
    }
    flags = {
        "--split": split,
        "--level": level,
        "--tta": tta,
        "--probabilities": probabilities,
        "--overwrite": overwrite,
        "--format": list(format),
        "--series": list(series),
        "--dicom": list(dicom),
    }
    number = work.run(cases, facts)
    if number:
        again = command(["predict", *named, data, "--out", out, *to_argv(flags)])
        done = f"{len(work.done)} of {len(cases)} cases are done"
        done += f"; {work.unwritten}" if work.unwritten else f", as {out / PREDICT_FILE} says"
        raise Interrupted(number, again, done)
    made = Predictions(out, work.rows(cases), tuple(work.skipped), work.failed)
    if work.failed and not work.done:
        reasons = "\n".join(f"  {case}: {why}" for case, why in work.failed.items())
        raise UsageError(f"no case could be predicted\n{reasons}")
    if work.unwritten:
        raise UsageError(f"{work.unwritten}; {len(work.done)} masks are written, the same command goes on from them")
    if work.failed:
        raise PartialFailure(work.failed, len(work.done), result=made)
    return made


def _formats(given: Sequence[str]) -> tuple[str, ...]:
    """The formats of masks, each once; none: the input's own."""
    for one in given:
        if one not in FORMATS:
            raise UsageError(f"--format: {unknown('format', one, FORMATS)}")
    return tuple(dict.fromkeys(given))


def _loaded(runs: Sequence[Path], level: int | None) -> tuple[Segmenter, str]:
    """The network of the runs and the digest of just these weights, also while a training goes on.

    Raises:
        UsageError: if a run cannot be read, or is written to again and again.
    """
    for _ in range(MOST_LOADS):
        before = _run_digest(runs)
        segmenter = load(runs) if level is None else _at_level(runs, level)
        if before and before == _run_digest(runs):
            return segmenter, before
    raise UsageError(f"{', '.join(map(str, runs))}: changed while it was read; predict when its training has ended")


def _run_digest(runs: Sequence[Path]) -> str:
    """Of the weights, the plan and the recipe of all runs, in their order; empty text where one cannot be read."""
    try:
        return file_digest(*(run / name for run in dict.fromkeys(runs) for name in OF_A_RUN))
    except OSError:  # what is missing is told where it is loaded
        return ""


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


def _common_split(runs: Sequence[Path]) -> Split:
    splits = {run: read_split(run) for run in runs}
    first, *others = splits
    for other in others:
        if splits[other] != splits[first]:
            raise UsageError(f"--split: {other} was trained on another split than {first}; leave --split out")
    return splits[first]
