"""The cases of one `predict`: each for itself, from its image to a mask in place, and what became of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ulna.data.as_format import check_formats
from ulna.data.formats.npz import npz_contents
from ulna.data.formats.source import DICOM_SUFFIX, case_name, suffix_of
from ulna.data.formats.write import (
    mask_suffix,
    probabilities_suffix,
    write_npz_masks,
    write_probabilities,
)
from ulna.data.layout.case import Case
from ulna.data.layout.record import Entry, Record
from ulna.data.quality.intensity import Shape
from ulna.data.volume import Volume
from ulna.errors import UsageError
from ulna.inference.batches import Pace
from ulna.inference.bounded import check_whole, fit, opened_within, segment_within, why_whole
from ulna.inference.outcomes import bytes_of, file_bytes, reason, row_of, verified
from ulna.inference.pending import find_pending, input_digest
from ulna.inference.pipeline import OneByOne, Pipeline, overlaps
from ulna.inference.result import NO_DICOM, Result
from ulna.inference.segmenter import Segmenter
from ulna.planning.memory import MemoryEstimate
from ulna.system.files import Unwritable
from ulna.system.outputs import JOURNAL
from ulna.system.passed_on import Shown, as_it_is
from ulna.system.progress import track
from ulna.system.signals import Interruption, Stopped
from ulna.trust.comparing import Comparison, Finding, in_one_line
from ulna.trust.page import retire_page
from ulna.version import version

log = logging.getLogger(__name__)

TOO_LARGE = "predict without --probabilities, cut the image, or use a machine with more memory"
VERSION = version("ulna")


class Read(NamedTuple):
    """A case before it is computed: what is to be made of it, its image, and how long that took."""

    entry: Entry
    volume: Volume
    seconds: float


class Work:
    """The cases of one call: which are done, which are to be done, and which failed.

    Args:
        segmenter: ready to predict.
        out: the output folder.
        probabilities: whether they are written too.
        record: what is known of the folder.
        run_digest: of all runs.
        options: what changes the answer.
        formats: of the masks; none: the input's own.
        failed: case, or folder, -> why it cannot be predicted, known before any work.
        shown: how texts are written into predict.json.
        strict: whether a case that is unlike the training data fails.
        limit: bytes of memory that this process may take; None for what the machine has.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        out: Path,
        probabilities: bool,
        record: Record,
        run_digest: str,
        options: dict[str, Any],
        formats: tuple[str, ...] = (),
        failed: Mapping[str, str] = MappingProxyType({}),
        shown: Shown = as_it_is,
        *,
        strict: bool = False,
        limit: float | None = None,
    ) -> None:
        self.strict, self.limit = strict, limit
        self.segmenter, self.out, self.probabilities, self.record = segmenter, out, probabilities, record
        self.run_digest, self.options, self.formats = run_digest, options, formats
        self.done: dict[str, Entry] = {}
        self.skipped: list[str] = []
        self.failed, self.shown, self._pace = dict(failed), shown, Pace(0, every=False)
        self._blocked = False  # nothing at all can be written
        self._last = 0  # bytes of the result that is being written
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
                retire_page(self.out)
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
        dicom = any(case.images[0].series is not None for case in todo)
        self._pace = Pace(len(todo), every=dicom)
        form = Pipeline if overlaps(self.segmenter.device) and self.limit is None else OneByOne
        with form(self._read, interruption) as pipeline:
            for number, case in enumerate(track(todo, "predicting"), start=1):
                if self.limit is not None:
                    work = partial(self._segment_within, case, staging, self.limit, pipeline.held)
                else:
                    work = partial(self._segment, case, todo[number : number + 1], pipeline, staging)
                self._attempt(case, work)

    def _attempt(self, case: Case, work: Callable[[], None]) -> None:
        """Do it, and note why a case failed, whatever it is: the other cases are written, unless none can be."""
        if self._blocked:  # it would be computed in vain
            self.failed[case.id] = f"not begun: {self.out} cannot be written to"
            return
        try:
            work()
        except Unwritable as error:
            self.failed[case.id] = str(error)
            self._blocked = self._blocked or error.everything
        except Exception as error:
            self.failed[case.id] = reason(error)
            self._pace.done(case.id, "failed")

    def _begin(self, case: Case) -> Entry:
        entry = self._wanted[case.id]
        if not entry.input:  # before the image is read: if it changes in between, the next call sees another image
            entry = replace(entry, input=self._input(case))
        return entry

    def _read(self, case: Case) -> Read:
        start = time.perf_counter()
        entry = self._begin(case)
        volume = self.segmenter.as_trained(case.read_image())
        return Read(self._noted(entry, case, volume), volume, time.perf_counter() - start)

    def _noted(self, entry: Entry, case: Case, volume: Volume) -> Entry:
        """With what a reader of DICOM had to change, which the log says, too."""
        if volume.meta.format != "dicom":
            return entry
        for note in volume.meta.notes:
            log.info("note: %s: %s", case.id, note)
        return replace(entry, notes=tuple(map(self.shown, volume.meta.notes)))

    def _segment(
        self,
        case: Case,
        following: Sequence[Case],
        pipeline: Pipeline[Case, Read],
        staging: Path,
    ) -> None:
        """Make one mask, and have it written, while the next image is read."""
        entry, volume, seconds = pipeline.take(case)
        start, segmenter = time.perf_counter(), self.segmenter
        need = segmenter.forecast(volume, probabilities=self.probabilities)
        need.check(f"an image of {' x '.join(map(str, volume.size))}", TOO_LARGE)
        log.debug("%s: about %s of memory", case.id, need)
        check_formats(volume, self.formats)
        compared = self._compared(case, volume)  # of one that fits the run
        if pipeline.side_by_side:
            if self._fits_beside(need, volume, [case, *following]):
                for one in following:
                    pipeline.begin(one)
            else:
                pipeline.wait()
        result = segmenter.segment(volume, probabilities=self.probabilities)
        seconds += time.perf_counter() - start

        entry = replace(entry, seconds=seconds)
        write = partial(self._write, case, entry, result, compared, staging, pipeline.held)
        pipeline.put(partial(self._attempt, case, write))
        self._last = bytes_of(result)

    def _write(
        self,
        case: Case,
        entry: Entry,
        result: Result,
        compared: Comparison,
        staging: Path,
        held: Callable[[], AbstractContextManager[None]],
    ) -> None:
        """Write one mask, or keep it for the npz that its image came from."""
        start, source, volume = time.perf_counter(), case.images[0], result.volume
        entry = replace(entry, trust=self._trust(case, result, compared))
        written = []
        if result.probabilities is not None:
            written = [write_probabilities(staging / f"{case.id}_probabilities", result.probabilities, volume)]
        if source.row is not None:
            entry = replace(entry, files={entry.file: ""} | {path.name: "" for path in written}, size=volume.size)
            entry = replace(entry, seconds=round(entry.seconds + time.perf_counter() - start, 3))
            self._arrays.setdefault(source.path, []).append((entry, result.in_file()))
            self._pace.done(case.id, f"{entry.seconds:.1f} s")
            return
        masks = {format: result.write(staging / case.id, format) for format in self.formats or (None,)}
        entry = replace(entry, verified=verified(masks, volume), seconds=entry.seconds + time.perf_counter() - start)
        self._put(case, entry, [*masks.values(), *written], volume, staging, held)

    def _put(
        self,
        case: Case,
        entry: Entry,
        written: Sequence[Path],
        volume: Volume,
        staging: Path,
        held: Callable[[], AbstractContextManager[None]],
    ) -> None:
        """Put the files of a case in place, its mask first."""
        entry = replace(
            entry,
            file=written[0].name,
            files={path.name: "" for path in written},
            size=volume.size,
            seconds=round(entry.seconds, 3),
        )
        with held():
            (self.done[case.id],) = self.record.put([entry], staging, free=self._free(entry))
        self._pace.done(case.id, f"{entry.seconds:.1f} s")

    def _segment_within(
        self, case: Case, staging: Path, limit: float, held: Callable[[], AbstractContextManager[None]]
    ) -> None:
        """Make one mask within so many bytes of memory, and write it."""
        start, segmenter = time.perf_counter(), self.segmenter
        entry = self._begin(case)
        why = why_whole(segmenter, case, self.formats, probabilities=self.probabilities)
        with opened_within(segmenter, case, limit, staging, whole=bool(why)) as image:
            entry = self._noted(entry, case, image if isinstance(image, Volume) else image.volume)
            check_formats(image if isinstance(image, Volume) else image.volume, self.formats)
            if isinstance(image, Volume):
                check_whole(segmenter, image, limit, why, probabilities=self.probabilities)
                compared = self._compared(case, image)
                result = segmenter.segment(image, probabilities=self.probabilities)
                entry = replace(entry, seconds=time.perf_counter() - start)
                self._write(case, entry, result, compared, staging, held)
                return
            columns = fit(segmenter, image, limit, self.formats)
            if columns.cost > 1.005:
                text = "%s: within --max-ram %g it is answered in %d columns, which takes %.2f times as long"
                log.info(text, case.id, limit / 1e9, len(columns.ends), columns.cost)
            made = segment_within(segmenter, image, columns, staging, partial(self._compared, case, image.volume))
            with closing(made.mask):
                entry = replace(entry, trust=self._told(case, made.trust(segmenter)))
                written = [made.write(segmenter, staging / case.id, format) for format in self.formats or (None,)]
        entry = replace(entry, seconds=time.perf_counter() - start)
        self._put(case, entry, written, made.volume, staging, held)

    def _compared(self, case: Case, volume: Volume, shapes: Sequence[Shape | None] | None = None) -> Comparison:
        """The case against the training data; what is far outside is said, and refused where it is to be."""
        compared = self.segmenter.compare(volume, shapes)
        if compared.findings:
            said = f"unlike the training data: {in_one_line(compared.findings)}"
            if self.strict:
                raise UsageError(f"{case.images[0]}: {said}; leave --strict out to have it predicted all the same")
            log.warning("note: %s: %s", case.id, said)
        return compared

    def _trust(self, case: Case, result: Result, compared: Comparison) -> dict[str, Any]:
        return self._told(case, self.segmenter.trust(result, compared))

    def _told(self, case: Case, told: dict[str, Any]) -> dict[str, Any]:
        """What is written of the trust in a mask, after what is odd about it was said."""
        flags = [Finding(**flag) for flag in told["flags"] if flag["about"] == "mask"]
        if flags:
            log.info("note: %s: the mask is unlike the training references: %s", case.id, in_one_line(flags))
        return told

    def _fits_beside(self, need: MemoryEstimate, volume: Volume, cases: Sequence[Case]) -> bool:
        """Whether the memory holds the last result and the next image beside a case; images are as large as their files."""
        here, *others = [file_bytes(case) for case in cases]
        following = sum(max(1.0, there / max(1, here)) for there in others) * volume.array.nbytes
        beside = {"next image": 2 * following, "last result": self._last}  # it may be held twice while it is decoded
        try:
            MemoryEstimate({**need.parts, **beside}).check("two cases", "one after the other")
        except UsageError as error:
            log.debug("%s", error)
            return False
        return True

    def _input(self, case: Case) -> str:
        """The digest of a case's files, taken once: the rows of an npz share theirs."""
        paths = tuple(file for source in case.images for file in source.files)
        if paths not in self._inputs:
            self._inputs[paths] = input_digest(paths)
        return self._inputs[paths]

    def _finish(self, staging: Path, cases: Sequence[Case], facts: Mapping[str, Any]) -> None:
        """Write the masks that wait for their npz file, and predict.json."""
        for source, masks in self._arrays.items():
            try:
                self._put_npz(source, masks, staging)
            except Exception as error:  # whatever it is, the other files are written
                self.failed |= {entry.case: reason(error) for entry, _ in masks}
        order = [case.id for case in cases if case.id in self.failed]
        self.failed = {case: self.failed[case] for case in order} | self.failed
        facts = {**facts, "failed": {case: self.shown(why) for case, why in self.failed.items()}}
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
        multilabel = self.segmenter.plan.labels.stacked
        both = [(entry, row_of(self.out / name, entry.case, multilabel)) for entry in kept] + masks
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
        stacked = self.segmenter.plan.labels.stacked
        masks = [case.id + mask_suffix(source, multilabel=stacked, format=one) for one in self.formats or (None,)]
        if source.row is not None and self.formats:
            raise UsageError(f"--format: {source.path} is an .npz, whose masks are written as one .npz; leave it out")
        if self.segmenter.instances is not None and any(suffix_of(name) == DICOM_SUFFIX for name in masks):
            raise UsageError(f"{source.path}: {NO_DICOM}")
        file = masks[0] if source.row is None else f"{case_name(source.path)}.npz"
        names = [
            file,
            *masks[1:],
            *([f"{case.id}_probabilities{probabilities_suffix(source)}"] if self.probabilities else []),
        ]
        return Entry(case.id, file, dict.fromkeys(names, ""), (), 0.0, "", self.run_digest, self.options, VERSION)

    def _free(self, entry: Entry) -> tuple[str, ...]:
        """The names that may be taken: what is ulna's own was looked at before the work."""
        return tuple(name for name in entry.files if self.record.owns(name) or self.record.undigested(name))
