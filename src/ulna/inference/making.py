"""Cases one after the other, each for itself: from its image to a mask in place, and what became of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from numpy.typing import NDArray

from ulna.data.as_format import check_formats
from ulna.data.formats.write import write_probabilities
from ulna.data.layout.case import Case
from ulna.data.layout.record import Entry, Record
from ulna.data.quality.intensity import Shape
from ulna.data.volume import Volume
from ulna.errors import UsageError
from ulna.inference.bounded import check_whole, fit, opened_within, segment_within, why_whole
from ulna.inference.outcomes import bytes_of, file_bytes, reason, verified
from ulna.inference.pending import input_digest
from ulna.inference.pipeline import OneByOne, Pipeline, overlaps
from ulna.inference.result import Result
from ulna.inference.segmenter import Segmenter
from ulna.planning.memory import MemoryEstimate
from ulna.system.files import Unwritable
from ulna.system.passed_on import Shown, as_it_is
from ulna.system.progress import bar
from ulna.system.signals import Interruption
from ulna.trust.comparing import Comparison, Finding, in_one_line

log = logging.getLogger(__name__)

TOO_LARGE = "predict without --probabilities, cut the image, or use a machine with more memory"


class Read(NamedTuple):
    """A case before it is computed: what is to be made of it, its image, and how long that took."""

    entry: Entry
    volume: Volume
    seconds: float


class Making:
    """What makes the masks of cases.

    Args:
        segmenter: ready to predict.
        record: of the output folder, where masks are put in place.
        probabilities: whether they are written too.
        formats: of the masks; none: the input's own.
        failed: case, or folder, -> why it cannot be predicted, known before any work.
        shown: how texts are written into predict.json.
        strict: whether a case that is unlike the training data fails.
        limit: bytes of memory that this process may take; None for what the machine has.

    Attributes:
        done: case -> its mask.
        wanted: case -> what is to be made of it.
        arrays: npz input -> masks that wait for the others of it.
        reads_ahead: whether the next case is read while one is computed.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        record: Record,
        probabilities: bool,
        formats: tuple[str, ...] = (),
        failed: Mapping[str, str] = MappingProxyType({}),
        shown: Shown = as_it_is,
        *,
        strict: bool = False,
        limit: float | None = None,
    ) -> None:
        self.segmenter, self.record, self.out = segmenter, record, record.folder
        self.probabilities, self.formats, self.shown = probabilities, formats, shown
        self.strict, self.limit = strict, limit
        self.done: dict[str, Entry] = {}
        self.failed = dict(failed)
        self.wanted: dict[str, Entry] = {}
        self.arrays: dict[Path, list[tuple[Entry, NDArray[Any]]]] = {}
        self.reads_ahead = overlaps(segmenter.device) and limit is None
        self._ended: Callable[[str, str], None] = lambda case, said: None
        self._blocked = False  # nothing at all can be written
        self._last = 0  # bytes of the result that is being written
        self._inputs: dict[tuple[Path, ...], str] = {}

    def make_all(
        self,
        todo: Iterable[Case],
        total: int,
        staging: Path,
        interruption: Interruption,
        ended: Callable[[str, str], None],
    ) -> None:
        """Make the masks of cases.

        Args:
            todo: asked for one when it is begun, for the one after it too where that is read ahead.
            total: of them, for a bar; 0 where nobody knows.
            staging: a folder for files that are not yet in place.
            interruption: signals wait while a mask is put in place.
            ended: called with a case that is done or has failed, and what is said of it; maybe in another thread.
        """
        self._ended = ended
        form, upcoming = Pipeline if self.reads_ahead else OneByOne, iter(todo)
        with form(self._read, interruption) as pipeline, bar("predicting", total) as advance:
            case = next(upcoming, None)
            while case is not None:
                following = next(upcoming, None) if self.reads_ahead else None
                if self.limit is not None:
                    work = partial(self._segment_within, case, staging, self.limit, pipeline.held)
                else:
                    work = partial(self._segment, case, [following] if following else [], pipeline, staging)
                self._attempt(case, work)
                advance()
                case = following if self.reads_ahead else next(upcoming, None)

    def _attempt(self, case: Case, work: Callable[[], None]) -> None:
        """Do it, and note why a case failed, whatever it is: the other cases are written, unless none can be."""
        if self._blocked:  # it would be computed in vain
            self._fail(case, f"not begun: {self.out} cannot be written to")
            return
        try:
            work()
        except Unwritable as error:
            self._blocked = self._blocked or error.everything
            self._fail(case, str(error))
        except Exception as error:
            self._fail(case, reason(error))

    def _fail(self, case: Case, why: str) -> None:
        self.failed[case.id] = why
        self._ended(case.id, "failed")

    def _begin(self, case: Case) -> Entry:
        entry = self.wanted[case.id]
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
            self.arrays.setdefault(source.path, []).append((entry, result.in_file()))
            self._ended(case.id, f"{entry.seconds:.1f} s")
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
            (self.done[case.id],) = self.record.put([entry], staging, free=self.free(entry))
        self._ended(case.id, f"{entry.seconds:.1f} s")

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

    def free(self, entry: Entry) -> tuple[str, ...]:
        """The names that may be taken: what is ulna's own was looked at before the work."""
        return tuple(name for name in entry.files if self.record.owns(name) or self.record.undigested(name))
