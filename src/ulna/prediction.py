"""The verb `predict`: every case of an input through one run or several, each case for itself.

What stands in the output folder already is skipped where run, options and image are the same, redone with `overwrite`
where ulna wrote it otherwise, and never touched where ulna did not write it.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ulna.allocation import keep_freed_memory
from ulna.data.case import Case
from ulna.data.dataset import Dataset
from ulna.data.limits import is_memory_error
from ulna.data.pending import find_pending, input_digest
from ulna.data.read import (
    Source,
    case_name,
    mask_suffix,
    probabilities_suffix,
    read_labels,
    write_labels,
    write_npz_masks,
    write_probabilities,
)
from ulna.data.read_npz import npz_contents
from ulna.data.record import JOURNAL, PREDICT_FILE, Entry, Record
from ulna.errors import Interrupted, PartialFailure, UsageError, unknown
from ulna.files import Unwritable
from ulna.inference.predict import to_labels
from ulna.levels import levels_of, named_level, pruned
from ulna.outputs import check_folder, file_digest
from ulna.progress import track
from ulna.recipe import Split
from ulna.segmenter import Ensemble, Segmenter, load, read_split
from ulna.signals import Interruption, Stopped
from ulna.verbs import command, to_argv

log = logging.getLogger(__name__)

TOO_LARGE = "predict without --probabilities, cut the image, or use a machine with more memory"
VERSION = version("ulna")
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
) -> Predictions:
    """Segment images with a trained run; masks come back in the input's own format, geometry and name.

    Called again, it does what is missing. A mask of another run, of other options or of an image that has changed is
    redone with `overwrite` only. Nothing that ulna did not write is ever replaced.

    Args:
        run: a run folder of `ulna train`; several make an ensemble, whose probabilities are averaged.
        data: an image, a folder of images, a data set, or an .npz file.
        out: folder for the masks and predict.json.
        split: only the cases of this part of the run's own split: train, val or test.
        level: predict with the smaller network of this pruning level, counted from 1; see `ulna prune`.
        tta: average over mirrored copies of every image: slower, sometimes better.
        probabilities: also write the probabilities.
        overwrite: predict again what ulna wrote with another run, other options or of another image.

    Raises:
        UsageError: if the run, the input or the folder cannot be used.
        PartialFailure: if some cases failed; the others are written.
        Interrupted: after Ctrl-C or SIGTERM; what is done is listed in predict.json.

    Example:
        ulna predict runs/nuclei-unetpp data/new --out masks
    """
    keep_freed_memory()
    runs, data, out = [Path(one) for one in ([run] if isinstance(run, str | Path) else run)], Path(data), Path(out)
    segmenter, digest = _loaded(runs, level)
    if tta:
        segmenter = segmenter.mirrored()
    dataset = Dataset.from_folder(data, need_labels=False, channels=segmenter.plan.in_channels)
    dataset = dataset.of_dims(segmenter.plan.spatial_dims)
    for note in dataset.notes:
        log.info("note: %s", note)
    cases = dataset.cases if split is None else _part(dataset, _common_split(runs), split)
    sources = [source.path for case in cases for source in (*case.images, case.label) if source is not None]
    check_folder(out, [data, *dict.fromkeys(sources)])
    options = {"level": level, "tta": tta, "probabilities": probabilities}
    work = _Work(segmenter, out, probabilities, Record.read(out), digest, options)
    work.find_pending(cases, overwrite)
    facts = {
        "model": segmenter.recipe.model,
        "runs": [one.resolve().name for one in runs],
        "digest": digest,
        "options": {**options, "split": split},
        "level": level,
        "labels": segmenter.plan.labels.model_dump(mode="json"),
        "tta": tta,
        "empty_score": segmenter.recipe.evaluation.empty_score,
        "asked": [case.id for case in cases],
        "notes": list(dataset.notes),
    }
    flags = {
        "--split": split,
        "--level": level,
        "--tta": tta,
        "--probabilities": probabilities,
        "--overwrite": overwrite,
    }
    number = work.run(cases, facts)
    if number:
        again = command(["predict", *runs, data, "--out", out, *to_argv(flags)])
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


class _Work:
    """The cases of one call: which are done, which are to be done, and which failed.

    Args:
        segmenter: ready to predict.
        out: the output folder.
        probabilities: whether they are written too.
        record: what is known of the folder.
        run_digest: of all runs.
        options: what changes the answer.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        out: Path,
        probabilities: bool,
        record: Record,
        run_digest: str,
        options: dict[str, Any],
    ) -> None:
        self.segmenter, self.out, self.probabilities, self.record = segmenter, out, probabilities, record
        self.run_digest, self.options = run_digest, options
        self.done: dict[str, Entry] = {}
        self.skipped: list[str] = []
        self.failed: dict[str, str] = {}
        self.unwritten = ""  # why predict.json could not be written
        self._wanted: dict[str, Entry] = {}
        self._kept: dict[str, list[Entry]] = {}
        self._inputs: dict[tuple[Path, ...], str] = {}
        self._arrays: dict[Path, list[tuple[Entry, NDArray[Any]]]] = {}  # npz input -> masks that wait for the others

    def find_pending(self, cases: Sequence[Case], overwrite: bool) -> None:
        """Find what is done already, and refuse what stands in the way, before any work.

        Raises:
            UsageError: with every file that is in the way.
        """
        wanted = {case.id: self._entry(case) for case in cases}
        self.done, self._wanted, self._kept = find_pending(self.record, cases, wanted, overwrite=overwrite)
        self.skipped = list(self.done)
        others = {entry.version for entry in self.done.values()} - {VERSION}
        if others:
            text = "masks that stand there were made by ulna %s; this is %s: move them away to have them made again"
            log.warning(text, ", ".join(sorted(others)), VERSION)

    def run(self, cases: Sequence[Case], facts: Mapping[str, Any]) -> int:
        """Predict what is to be done, and write predict.json; the number of the signal that stopped it, or 0."""
        todo = [case for case in cases if case.id in self._wanted]
        if not todo and self._is_recorded(facts):
            return 0
        try:
            with self.record.writing() as staging, Interruption() as interruption:
                try:
                    self._predict_all(todo, staging, interruption)
                finally:  # what is done is kept, also when a person stops the rest
                    with interruption.held():
                        self._finish(staging, cases, facts)
        except Stopped as stopped:
            return stopped.number
        return 0

    def _is_recorded(self, facts: Mapping[str, Any]) -> bool:
        """Whether predict.json says already what this call would write."""
        before = self.record.facts
        same = all(before.get(name) == facts[name] for name in ("asked", "digest", "options"))
        return same and not before.get("failed") and not (self.out / JOURNAL).exists()

    def rows(self, cases: Sequence[Case]) -> list[dict[str, Any]]:
        """The rows of predict.json."""
        return [self.done[case.id].to_json(whole=False) for case in cases if case.id in self.done]

    def _predict_all(self, todo: Sequence[Case], staging: Path, interruption: Interruption) -> None:
        for number, case in enumerate(track(todo, "predicting"), start=1):
            try:
                self._segment(case, staging, interruption)
            except Unwritable as error:
                self.failed[case.id] = str(error)
                if error.everything:  # the others would be computed in vain
                    self.failed |= {one.id: f"not begun: {self.out} cannot be written to" for one in todo[number:]}
                    return
            except Exception as error:  # whatever it is, the other cases are written
                self.failed[case.id] = _reason(error)

    def _segment(self, case: Case, staging: Path, interruption: Interruption) -> None:
        """Write one mask, or keep it for the npz that its image came from."""
        start = time.perf_counter()
        entry = self._wanted[case.id]
        if not entry.input:  # before the image is read: if it changes in between, the next call sees another image
            entry = replace(entry, input=self._input(case))
        volume, source, segmenter = case.read_image(), case.images[0], self.segmenter
        need = segmenter.forecast(volume, probabilities=self.probabilities)
        need.check(f"an image of {' x '.join(map(str, volume.size))}", TOO_LARGE)
        log.debug("%s: about %s of memory", case.id, need)
        if self.probabilities:
            maps = segmenter.probabilities(volume)
            mask = to_labels(maps, segmenter.plan.labels, segmenter.recipe.inference.threshold)
            written = [write_probabilities(staging / f"{case.id}_probabilities", maps.numpy(), volume)]
        else:
            mask, written = segmenter.mask(volume), []
        in_npz = source.row is not None
        if not in_npz:
            written.insert(0, write_labels(staging / case.id, mask, volume))
        files = {path.name: "" for path in written}
        file = entry.file if in_npz else written[0].name
        seconds = round(time.perf_counter() - start, 3)
        entry = replace(entry, file=file, files={file: ""} | files, size=volume.size, seconds=seconds)
        if in_npz:
            self._arrays.setdefault(source.path, []).append((entry, mask))
            return
        with interruption.held():
            (self.done[case.id],) = self.record.put([entry], staging, free=self._free(entry))

    def _input(self, case: Case) -> str:
        """The digest of a case's files, taken once: the rows of an npz share theirs."""
        paths = tuple(source.path for source in case.images)
        if paths not in self._inputs:
            self._inputs[paths] = input_digest(paths)
        return self._inputs[paths]

    def _finish(self, staging: Path, cases: Sequence[Case], facts: Mapping[str, Any]) -> None:
        """Write the masks that wait for their npz file, and predict.json."""
        for source, masks in self._arrays.items():
            try:
                self._put_npz(source, masks, staging)
            except Exception as error:  # whatever it is, the other files are written
                self.failed |= {entry.case: _reason(error) for entry, _ in masks}
        facts = {**facts, "failed": self.failed}
        tally = self.segmenter.tally
        if tally.voxels:
            facts["points"] = asdict(tally)
        try:
            self.record.write(facts, [self.done[case.id] for case in cases if case.id in self.done])
        except Unwritable as error:
            self.unwritten = str(error)

    def _put_npz(self, source: Path, masks: list[tuple[Entry, NDArray[Any]]], staging: Path) -> None:
        """One npz of the masks that it holds already and the new ones, in the order of the images."""
        name = masks[0][0].file
        new = {entry.case for entry, _ in masks}
        kept = [entry for entry in self._kept.get(name, []) if entry.case not in new]
        multilabel = self.segmenter.plan.labels.multilabel
        both = [(entry, _row_of(self.out / name, entry.case, multilabel)) for entry in kept] + masks
        place = {case: row for row, case in enumerate(npz_contents(source).ids)}
        both.sort(key=lambda row: place.get(row[0].case, len(place)))
        stacked, ids = np.stack([mask for _, mask in both]), [entry.case for entry, _ in both]
        write_npz_masks(staging / name, stacked, ids, multilabel=multilabel)
        entries = [entry for entry, _ in both]
        free = {free for entry in entries for free in self._free(entry)}
        for entry in self.record.put(entries, staging, free=tuple(free)):
            if entry.case in new or entry.case in self.done:
                self.done[entry.case] = entry

    def _entry(self, case: Case) -> Entry:
        """What is to be made of a case: the names of its files, and what they are made with."""
        source = case.images[0]
        mask = case.id + mask_suffix(source, multilabel=self.segmenter.plan.labels.multilabel)
        file = mask if source.row is None else f"{case_name(source.path)}.npz"
        names = [file, *([f"{case.id}_probabilities{probabilities_suffix(source)}"] if self.probabilities else [])]
        return Entry(case.id, file, dict.fromkeys(names, ""), (), 0.0, "", self.run_digest, self.options, VERSION)

    def _free(self, entry: Entry) -> tuple[str, ...]:
        """The names that may be taken: what is ulna's own was looked at before the work."""
        return tuple(name for name in entry.files if self.record.owns(name) or self.record.undigested(name))


def _row_of(path: Path, case: str, multilabel: bool) -> NDArray[Any]:
    """The mask of a case in an npz that `predict` wrote: (*S), or (K, *S) if multilabel."""
    array = read_labels(Source(path, npz_contents(path).ids.index(case))).array
    return array if multilabel else array[0]


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


def _reason(error: Exception) -> str:
    """Why a case failed. What is not the user's doing is a defect, unless it is the memory that ran out."""
    text = str(error)
    if isinstance(error, UsageError):
        return text
    if is_memory_error(error):
        return "out of memory; predict on a machine with more, or train with a smaller planning.patch"
    log.error("%s", traceback.format_exc())
    return f"a defect of ulna, please report it ({type(error).__name__}: {text})"
