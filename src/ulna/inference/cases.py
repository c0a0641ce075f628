"""The cases of one `predict`: which are done, which are to be done, and predict.json, which says what became of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ulna.data.formats.npz import npz_contents
from ulna.data.formats.source import DICOM_SUFFIX, case_name, suffix_of
from ulna.data.formats.write import mask_suffix, probabilities_suffix, write_npz_masks
from ulna.data.layout.case import Case
from ulna.data.layout.record import Entry
from ulna.errors import UsageError
from ulna.inference.batches import Pace
from ulna.inference.making import Making
from ulna.inference.outcomes import reason, row_of
from ulna.inference.pending import find_pending
from ulna.inference.result import NO_DICOM
from ulna.inference.share_jobs import Sharing
from ulna.system.files import Unwritable
from ulna.system.outputs import JOURNAL, SHARES
from ulna.system.signals import Interruption, Stopped
from ulna.trust.page import retire_page
from ulna.version import version

log = logging.getLogger(__name__)

VERSION = version("ulna")


class Work:
    """The cases of one call: which are done, which are to be done, and which failed.

    Args:
        making: what makes their masks.
        run_digest: of all runs.
        options: what changes the answer.
    """

    def __init__(self, making: Making, run_digest: str, options: dict[str, Any]) -> None:
        self.making, self.record, self.out = making, making.record, making.out
        self.run_digest, self.options = run_digest, options
        self.skipped: list[str] = []
        self.unwritten = ""  # why predict.json could not be written
        self._kept: dict[str, list[Entry]] = {}

    @property
    def done(self) -> dict[str, Entry]:
        """Case -> its mask, made by this call or an earlier one."""
        return self.making.done

    @property
    def failed(self) -> dict[str, str]:
        """Case, or folder, -> why it was not predicted."""
        return self.making.failed

    def find_pending(self, cases: Sequence[Case], overwrite: bool) -> None:
        """Find what is done already, and refuse what stands in the way, before any work.

        Raises:
            UsageError: with every file that is in the way.
        """
        wanted = {case.id: self._entry(case) for case in cases}
        found = find_pending(self.record, cases, wanted, overwrite=overwrite)
        self.making.done, self.making.wanted, self._kept = found
        self.skipped = list(self.done)
        others = {entry.version for entry in self.done.values()} - {VERSION}
        if others:
            text = "masks that stand there were made by ulna %s; this is %s: move them away to have them made again"
            log.warning(text, ", ".join(sorted(others)), VERSION)

    def todo(self, cases: Sequence[Case]) -> list[Case]:
        """Those whose masks are to be made."""
        return [case for case in cases if case.id in self.making.wanted]

    def run(self, cases: Sequence[Case], facts: Mapping[str, Any], sharing: Sharing | None = None) -> int:
        """Predict what is to be done, and write predict.json; the number of the signal that stopped it, or 0.

        Args:
            cases: of this call.
            facts: for predict.json.
            sharing: hands the cases out to processes; None: this one predicts them all.
        """
        todo = self.todo(cases)
        if not todo and self._is_recorded(facts):
            return 0
        pace = Pace(len(todo), every=any(case.images[0].series is not None for case in todo))
        try:
            with (
                self.record.writing(beside=sharing is not None and sharing.goes_on) as staging,
                Interruption() as interruption,
            ):
                if sharing is None:
                    retire_page(self.out)
                try:
                    if sharing is None:
                        self.making.make_all(todo, len(todo), staging, interruption, pace.done)
                    else:
                        sharing.predict(partial(retire_page, self.out), pace.done)
                finally:  # what is done is kept, also when a person stops the rest
                    if sharing is None or sharing.begun:
                        with interruption.held():
                            self._finish(staging, cases, facts, beside=sharing is not None and not sharing.settled)
        except Stopped as stopped:
            return stopped.number
        return 0

    def _is_recorded(self, facts: Mapping[str, Any]) -> bool:
        """Whether predict.json says already what this call would write."""
        before = self.record.facts
        same = all(before.get(name) == facts[name] for name in ("asked", "digest", "options"))
        return same and not before.get("failed") and not any((self.out / name).exists() for name in (JOURNAL, SHARES))

    def rows(self, cases: Sequence[Case]) -> list[dict[str, Any]]:
        """The rows of predict.json."""
        return [self.done[case.id].to_json(whole=False) for case in cases if case.id in self.done]

    def _finish(self, staging: Path, cases: Sequence[Case], facts: Mapping[str, Any], *, beside: bool) -> None:
        """Write the masks that wait for their npz file, and predict.json."""
        for source, masks in self.making.arrays.items():
            try:
                self._put_npz(source, masks, staging)
            except Exception as error:  # whatever it is, the other files are written
                self.making.failed |= {entry.case: reason(error) for entry, _ in masks}
        order = [case.id for case in cases if case.id in self.failed]
        self.making.failed = {case: self.failed[case] for case in order} | self.failed
        facts = {**facts, "failed": {case: self.making.shown(why) for case, why in self.failed.items()}}
        tally = self.making.segmenter.tally
        if tally.voxels:
            facts["points"] = asdict(tally)
        try:
            current = [self.done[case.id] for case in cases if case.id in self.done]
            self.record.write(facts, current, beside=beside)
        except Unwritable as error:
            self.unwritten = str(error)

    def _put_npz(self, source: Path, masks: list[tuple[Entry, NDArray[Any]]], staging: Path) -> None:
        """One npz of the masks that it holds already and the new ones, in the order of the images."""
        name = masks[0][0].file
        new = {entry.case for entry, _ in masks}
        kept = [entry for entry in self._kept.get(name, []) if entry.case not in new]
        multilabel = self.making.segmenter.plan.labels.stacked
        both = [(entry, row_of(self.out / name, entry.case, multilabel)) for entry in kept] + masks
        place = {case: row for row, case in enumerate(npz_contents(source).ids)}
        both.sort(key=lambda row: place.get(row[0].case, len(place)))
        stacked, ids = np.stack([mask for _, mask in both]), [entry.case for entry, _ in both]
        write_npz_masks(staging / name, stacked, ids, multilabel=multilabel)
        entries = [entry for entry, _ in both]
        free = {free for entry in entries for free in self.making.free(entry)}
        for entry in self.record.put(entries, staging, free=tuple(free)):
            if entry.case in new or entry.case in self.done:
                self.done[entry.case] = entry

    def _entry(self, case: Case) -> Entry:
        """What is to be made of a case: the names of its files, and what they are made with."""
        source = case.images[0]
        stacked = self.making.segmenter.plan.labels.stacked
        masks = [
            case.id + mask_suffix(source, multilabel=stacked, format=one) for one in self.making.formats or (None,)
        ]
        if source.row is not None and self.making.formats:
            raise UsageError(f"--format: {source.path} is an .npz, whose masks are written as one .npz; leave it out")
        if self.making.segmenter.instances is not None and any(suffix_of(name) == DICOM_SUFFIX for name in masks):
            raise UsageError(f"{source.path}: {NO_DICOM}")
        file = masks[0] if source.row is None else f"{case_name(source.path)}.npz"
        names = [
            file,
            *masks[1:],
            *([f"{case.id}_probabilities{probabilities_suffix(source)}"] if self.making.probabilities else []),
        ]
        return Entry(case.id, file, dict.fromkeys(names, ""), (), 0.0, "", self.run_digest, self.options, VERSION)
