"""The verb `predict`: every case of an input through one run or several, each case for itself.

What stands in the output folder already is skipped where run, options and image are the same, redone with `overwrite`
where ulna wrote it otherwise, and never touched where ulna did not write it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ulna.data.formats.dicom.choosing import parse_wishes
from ulna.data.formats.source import RASTER_SUFFIXES, TIFF_SUFFIXES, suffix_of
from ulna.data.formats.write import FORMATS
from ulna.data.layout.case import Case
from ulna.data.layout.dataset import Dataset
from ulna.data.layout.journals import end_shares
from ulna.data.layout.pseudonyms import check_key, opened, texts_of
from ulna.data.layout.pseudonyms import named as under
from ulna.data.layout.record import Record
from ulna.errors import Interrupted, PartialFailure, UsageError, counted, printable, unknown
from ulna.evaluation.units import Across
from ulna.executors.choosing import SLURM, On
from ulna.inference.batches import usable
from ulna.inference.cases import Work
from ulna.inference.fold_runs import each_run, run_name
from ulna.inference.inputs import channels_of
from ulna.inference.making import Making
from ulna.inference.runs import Asked, common_split, part_of
from ulna.inference.segmenter import Segmenter
from ulna.inference.share_jobs import Sharing, nothing_to_share
from ulna.inference.shares import Task
from ulna.inference.zoo import located
from ulna.kernels.allocator import give_back_memory
from ulna.pages.sealing import PAGE_FILE
from ulna.system.extras import need
from ulna.system.order import check_run_first
from ulna.system.outputs import PREDICT_FILE, check_folder
from ulna.system.threads import check_threads, choose_threads, computing_with
from ulna.trust.page import check_page, write_page
from ulna.trust.report import TRUST_FORMAT
from ulna.verbs import command, to_argv

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Predictions:
    """What `predict` wrote or found written: the folder, and a row for every case.

    Args:
        folder: holds the masks and predict.json.
        cases: a row for every mask of this call.
        skipped: cases whose masks stood there already, made by this run, with these options, of this image.
        failed: case -> reason.
        report: the page, where one was asked for.
    """

    folder: Path
    cases: list[dict[str, Any]]
    skipped: tuple[str, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)
    report: Path | None = None

    def __repr__(self) -> str:
        there = f", {len(self.skipped)} of them there already" if self.skipped else ""
        failed = f"; {counted(len(self.failed), 'case')} failed" if self.failed else ""
        return printable(f"Predictions {self.folder}: {counted(len(self.cases), 'mask')}{there}{failed}")

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "folder": str(self.folder),
            "cases": self.cases,
            "skipped": list(self.skipped),
            "failed": dict(self.failed),
            "report": None if self.report is None else str(self.report),
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
    threads: int | None = None,
    strict: bool = False,
    no_post_processing: bool = False,
    instances: bool = False,
    pseudonymise: Path | str | None = None,
    report: bool = False,
    allow_code: bool = False,
    max_ram: float | None = None,
    jobs: str | int | None = None,
    on: str = "local",
    slurm: Sequence[str] = (),
    dry_run: bool = False,
) -> Predictions:
    """Segment images with a trained run; masks come back in the input's own format, geometry and name.

    Called again, it does what is missing. A mask of another run, of other options or of an image that has changed is
    redone with `overwrite` only. Nothing that ulna did not write is ever replaced. A DICOM series gives a DICOM SEG, which is
    read again and compared with the mask before it is put in place. How far each mask can be trusted stands in
    predict.json (docs/trust.md): what is unlike the training data in image or mask, volumes, and, where a run can tell, the
    Dice to expect. In a tree of studies, a folder
    that cannot be used fails alone.

    Args:
        run: a run folder of `ulna train`, a file of `ulna export`, or zoo:NAME, see `ulna zoo`; several make an ensemble,
            whose probabilities are averaged, as do the folds of a cross-validation.
        data: an image, a folder of images, a data set, an .npz file, or a folder with DICOM series.
        out: folder for the masks and predict.json.
        split: only the cases of this part of the run's own split: train, val or test.
        level: predict with the smaller network of this pruning level, counted from 1; see `ulna prune`.
        tta: average over mirrored copies of every image: slower, sometimes better.
        probabilities: also write the probabilities.
        overwrite: predict again what ulna wrote with another run, other options or of another image.
        format: what masks are written as in place of the input's own format: seg, rtstruct (both for DICOM), nifti, tiff (in
            packed tiles), zarr (OME-Zarr of several resolutions); several are written side by side.
        series: of DICOM: the UID or the description of the series to take; given several times, those that are the channels.
        dicom: what is done about odd slices: tilt=resample|refuse, duplicates=refuse|first, gaps=refuse|interpolate,
            mixed=refuse|largest; the first of each is the default.
        threads: that compute, of each of --jobs; left out, those of OMP_NUM_THREADS, else no more than processors are free
            now, which --jobs share.
        strict: refuse a case that is unlike the training data, before it is predicted; it counts as failed. Else that is
            said, and stands in predict.json.
        no_post_processing: write masks as the network says them, also where the validation cases chose to clean them.
        instances: masks hold the numbers of objects of the one structure: those that touch are divided where they are thin
            (docs/instances.md). A run whose recipe has inference.instances does so by itself.
        pseudonymise: a file of yours, made where there is none: masks and predict.json name cases by hashes under the key in
            it. A SEG or RTSTRUCT says whose it is all the same; --format nifti does not.
        report: also write report.html: all cases, the least to be trusted first, with pictures. Of a run that is calibrated
            for it, the Dice to expect is told from mirrored copies: 4 times as long in 2D, 8 in 3D. Where all masks are
            there already, only the page is made.
        allow_code: execute the code of a network of one's own, which lies in the run as network.py: read it before.
        max_ram: GB of memory that the process may take: images are read, answered and written by slabs, and an image that
            needs more is refused with the least that works (docs/large-images.md). Masks are the same; it takes longer the
            closer the limit is. Of --jobs here, all together.
        jobs: processes that share the cases, each with a network of its own, as far as cores and memory allow; auto: as many
            as these carry, one a GPU. The masks are the same, and of a process that is killed the others take over
            (docs/predicting.md). Left out: this process alone; on Ray and SLURM one for 50 cases.
        on: where these processes run: local, ray, ray:ADDRESS or slurm, as in `ulna compare`.
        slurm: an option of sbatch, KEY=VALUE, such as partition=gpu; may be repeated.
        dry_run: write, begin and submit nothing; print what would be begun or submitted.

    Raises:
        UsageError: if the run, the input or the folder cannot be used.
        DryRun: in place of everything, where that was asked for.
        PartialFailure: if some cases failed; the others are written.
        Interrupted: after Ctrl-C or SIGTERM; what is done is listed in predict.json.

    Example:
        ulna predict runs/nuclei-unetpp data/new --out masks
    """
    check_threads(threads)
    where = On.read(on, jobs, slurm)
    if dry_run and where == On():
        raise UsageError("--dry-run: prints what --jobs or --on would hand out; name one of them")
    if max_ram is not None:
        if not 0 < max_ram < math.inf:
            raise UsageError(f"--max-ram {max_ram:g}: must be above 0")
        if report:
            raise UsageError(
                "--report reads images whole: leave it out with --max-ram; a second call without that adds it"
            )
        give_back_memory()
    named, data, out = [Path(one) for one in ([run] if isinstance(run, str | Path) else run)], Path(data), Path(out)
    formats, wishes = _formats(format), parse_wishes(series, dicom)
    flags = {
        "--split": split,
        "--level": level,
        "--tta": tta,
        "--probabilities": probabilities,
        "--overwrite": overwrite,
        "--format": list(format),
        "--series": list(series),
        "--dicom": list(dicom),
        "--threads": threads,
        "--strict": strict,
        "--no-post-processing": no_post_processing,
        "--instances": instances,
        "--pseudonymise": pseudonymise,
        "--report": report,
        "--allow-code": allow_code,
        "--max-ram": max_ram,
        **where.flags(jobs, on, slurm),
    }
    check_run_first("predict", named, data, to_argv({"--out": out, **flags}))
    runs = each_run([located(one) for one in named])
    asked = Asked(tuple(runs), level, tta, not no_post_processing, instances, allow_code)
    segmenter, digest = asked.load()
    found, problems = Dataset.scan(
        data,
        need_labels=False,
        channels=segmenter.plan.in_channels,
        wishes=wishes._replace(channels=channels_of(segmenter.plan)),
    )
    sound, broken = usable(found, problems)
    names = opened(pseudonymise, out, *named, dry_run=dry_run)
    dataset = under(names, sound).of_dims(segmenter.plan.image_dims)
    if names is not None:
        broken = {names.remembered(name): why for name, why in broken.items()}
    for one in runs if split is not None else ():
        check_key(one, names)
    cases = dataset.cases if split is None else part_of(dataset, common_split(runs), split)
    notes = [*dataset.notes, *_values_note(segmenter, cases, formats)]
    for note in notes:
        log.info("note: %s", note)
    sources = [source for case in cases for source in (*case.images, case.label) if source is not None]
    check_folder(out, [data, *dict.fromkeys(place for source in sources for place in source.places)])
    if dataset.layout == "dicom" and out.resolve().is_relative_to(data.resolve()):
        raise UsageError(
            f"{out}: lies in {data}, where its masks would pass for labels of the series; choose another --out"
        )
    options: dict[str, Any] = {"level": level, "tta": tta, "probabilities": probabilities}
    if no_post_processing and segmenter.calibration is not None and segmenter.calibration.post_processing:
        options["post_processing"] = False
    if segmenter.instances is not None:
        options["instances"] = segmenter.instances.model_dump()
    odd = {"format": list(formats), "series": list(series), "dicom": sorted(dicom)}
    options |= {name: value for name, value in odd.items() if value}  # masks of earlier versions have the rest alone
    shown = texts_of(names, data, out)
    if where.kind != SLURM and not dry_run:  # whose jobs outlive a command
        end_shares(out)
    limit = None if max_ram is None else 1e9 * max_ram
    making = Making(segmenter, Record.read(out), probabilities, formats, broken, shown, strict=strict, limit=limit)
    work = Work(making, digest, options)
    if report:
        check_page(out)
    work.find_pending(cases, overwrite)
    copies = report and len(work.done) < len(cases)
    if copies and (times := segmenter.with_copies()) > 1:
        text = (
            "note: --report predicts every image %d times, mirrored, to tell the Dice to expect; masks stay as they are"
        )
        log.info(text, times)
    across = Across.of(segmenter.plan)
    ids = [*(case.id for case in cases), *broken]
    facts = {
        "model": segmenter.recipe.model,
        "runs": [run_name(one) for one in runs],
        "digest": digest,
        "options": {**options, "split": split},
        "level": level,
        "labels": segmenter.plan.labels.model_dump(mode="json"),
        "mask_values": segmenter.plan.mask_values,
        "instances": segmenter.instances is not None,
        "tta": tta,
        "trust": {"format": TRUST_FORMAT, "calibrated": segmenter.calibration is not None, "strict": strict},
        "empty_score": segmenter.recipe.evaluation.empty_score,
        "scored_by": segmenter.recipe.evaluation.by,
        "measured": list(segmenter.recipe.evaluation.metrics),
        "slices": None if across is None else across._asdict(),
        "asked": ids,
        "notes": list(map(shown, notes)),
    }
    again = command(["predict", *named, data, "--out", out, *to_argv(flags)])
    key = None if pseudonymise is None else Path(pseudonymise)
    task = Task(asked, digest, data, out, probabilities, formats, strict, copies, making.limit, key)
    task = task.about_cases(ids, {**options, "on": [where.kind, where.jobs]})
    sharing = _sharing(where, threads, task, making, work.todo(cases), again)
    if dry_run:
        raise nothing_to_share() if sharing is None else sharing.dry_run()
    with computing_with(choose_threads(threads)):
        number = work.run(cases, facts, sharing)
        if report and not number and not work.unwritten:
            number = write_page(out, cases)
    if number:
        done = f"{len(work.done)} of {counted(len(cases), 'case')} {'is' if len(cases) == 1 else 'are'} done"
        if work.unwritten or (out / PREDICT_FILE).exists():  # it is not there where nothing was begun
            done += f"; {work.unwritten}" if work.unwritten else f", as {out / PREDICT_FILE} says"
        done += f"; {sharing.beside}" if sharing is not None and sharing.beside else ""
        raise Interrupted(number, again, done)
    made = Predictions(
        out,
        work.rows(cases),
        tuple(work.skipped),
        work.failed,
        out / PAGE_FILE if report and not work.unwritten else None,
    )
    if work.failed and not work.done:
        reasons = "\n".join(f"  {case}: {why}" for case, why in work.failed.items())
        raise UsageError(f"no case could be predicted\n{reasons}")
    if work.unwritten:
        raise UsageError(
            f"{work.unwritten}; {counted(len(work.done), 'mask')} written, the same command goes on from them"
        )
    if work.failed:
        raise PartialFailure(work.failed, len(work.done), result=made)
    return made


def _sharing(
    on: On, threads: int | None, task: Task, making: Making, todo: Sequence[Case], again: str
) -> Sharing | None:
    """What hands the cases out, where several processes are asked for, or one elsewhere; None: this one predicts them.

    Raises:
        UsageError: if an .npz, whose masks are one file, is to be predicted elsewhere.
    """
    if on == On() or not todo:
        return None
    arrays = next((case.images[0].path for case in todo if case.images[0].row is not None), None)
    if arrays is not None and not on.here:
        raise UsageError(
            f"--on: {arrays} is an .npz, whose masks are written as one .npz by one process; leave --on out"
        )
    if arrays is not None:
        log.info("note: %s: the masks of an .npz are one .npz, so that one process predicts all cases", arrays)
        return None
    sharing = Sharing(on, threads, task, making, todo, again)
    return sharing if sharing.needed else None


def _formats(given: Sequence[str]) -> tuple[str, ...]:
    """The formats of masks, each once; none: the input's own."""
    for one in given:
        if one not in FORMATS:
            raise UsageError(f"--format: {unknown('format', one, FORMATS)}")
    if "zarr" in given:
        need("zarr", "--format zarr needs", "zarr")
    return tuple(dict.fromkeys(given))


def _values_note(segmenter: Segmenter, cases: Sequence[Case], formats: Sequence[str]) -> list[str]:
    """What pictures of masks hold, where it is not what the training labels held; masks of 0 and 1 look black."""
    plan, pictures = segmenter.plan, (*RASTER_SUFFIXES, *TIFF_SUFFIXES)
    if segmenter.instances is not None:
        return [f"mask files hold the numbers of objects of {plan.labels.foreground[0]}, from 1"]
    if (
        (formats and "tiff" not in formats)
        or plan.image_dims != 2
        or plan.mask_values is not None
        or plan.labels.order is not None
    ):
        return []
    if not any(suffix_of(case.images[0].path) in pictures for case in cases):
        return []
    unknown = "class indices, which may look black: this run is of an ulna that kept no values of the training labels"
    return [f"mask files hold {plan.reasons.get('mask_values', unknown)}"]
