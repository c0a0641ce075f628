"""The verb `compare`: several networks on the same data, alike in everything else, with statistics."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ulna.data.layout.dataset import Dataset, split_hash
from ulna.data.layout.dataset import split as split_cases
from ulna.data.layout.pseudonyms import Pseudonyms, named, opened
from ulna.data.quality.check import Report, check_dataset
from ulna.errors import PartialFailure, UsageError, counted, printable
from ulna.executors.choosing import On
from ulna.executors.choosing import dry_run as would_do
from ulna.executors.handing import stoppable
from ulna.executors.job import Need
from ulna.executors.places import need_of, unknown_need
from ulna.networks.foreign import permit_named
from ulna.planning.choosing import check_division
from ulna.planning.length import STATED, check_budget
from ulna.planning.plan import check_split_is_made, division, training_data, unused_shares
from ulna.recipe import Protocol, Recipe, Split, parse, set_value, stated
from ulna.study.budget import Budget
from ulna.study.costs import ELSEWHERE, Costs, measure_costs, pick_case
from ulna.study.jobs import Job, make_jobs, processes, run_jobs
from ulna.study.nnunet_rows import leave_for_processes, nnunet_rows, not_there, settings_of_rows, split_names
from ulna.study.outcome import OUTCOME_FILE, Outcome, analyse, read_beside
from ulna.study.published import published_for
from ulna.study.publishing import write_outputs
from ulna.study.same_study import STUDY_FILE, check_format, check_same, settings_of_study, stored_study, study_threads
from ulna.study.scores import read_scores
from ulna.study.tracking import TrackedStudy
from ulna.study.variants import Settled, Variant, make_variants, plan_variants
from ulna.system.files import write_text
from ulna.system.outputs import check_folder
from ulna.system.passed_on import stored_command
from ulna.system.threads import check_threads
from ulna.system.trackers import open_tracker
from ulna.training.duration import hours_in_words
from ulna.verbs import command, to_argv

log = logging.getLogger("ulna")

IMAGES = 10  # over which a paper prints the time of an image


@dataclass(frozen=True)
class Study:
    """What `compare` found.

    Args:
        folder: results.csv, table.md, table.tex, figures/, report.html, and runs/ with a run folder a training.
        outcome: every figure.
        failed: trainings that failed, with the reason.
    """

    folder: Path
    outcome: Outcome
    failed: dict[str, str]

    def __repr__(self) -> str:
        found = self.outcome
        each = ", ".join(f"{name} {found.described[name]['dice'].mean:.3f}" for name in found.models)
        failed = f"; {counted(len(self.failed), 'training')} failed" if self.failed else ""
        cases = counted(found.cases, f"{found.part} case")
        return printable(f"Study {self.folder}: Dice {each} over {cases}, {counted(found.seeds, 'seed')}{failed}")

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"folder": str(self.folder), **self.outcome.to_json(), "failed": self.failed}


def compare(
    data: Path | str,
    /,
    *,
    models: str | Sequence[str] | None = None,
    out: Path | str,
    seeds: int | None = None,
    folds: int | None = None,
    split: str | None = None,
    match: str | None = None,
    vary: Sequence[str] = (),
    one_at_a_time: bool = False,
    epochs: int | None = None,
    max_hours: float | None = None,
    budget: str | None = None,
    recipe: Path | str | None = None,
    set: Sequence[str] = (),
    margin: float = 0.01,
    jobs: str | int | None = None,
    on: str = "local",
    slurm: Sequence[str] = (),
    dry_run: bool = False,
    threads: int | None = None,
    beside: Sequence[str] = (),
    pseudonymise: Path | str | None = None,
    track: str | None = None,
) -> Study:
    """Train several networks alike, and say with statistics which is better.

    One split, one grid, one patch, one batch, one schedule and one stopping rule hold for all; what differs beside the
    architecture stands in footnotes. A study that was stopped, or killed, does what is missing when it is called again.

    Args:
        data: a data set in any known layout: a folder, or an .npz file.
        models: names of networks, A,B,C, see `ulna models`; left out, those of the recipe's study, or its one network.
            nnunetv2:2d and nnunetv2:3d_fullres are nnU-Net itself, where it is installed (ULNA_NNUNET names its python).
        out: the study folder.
        seeds: trainings of every network, 1 where no recipe says more; one says nothing about the architecture.
        folds: train on so many of the data set's folds, of five where splits.json gives none.
        split: shares of train, val and test where the data set brings no split, as in `ulna train`: 80/10/10.
        match: a size to scale every network to: params=8.5M or gmacs=3G.
        vary: KEY=V1,V2,...: one row for each value, such as loss.kind=dice,cross_entropy; several: every combination.
        one_at_a_time: with several --vary, change one field at a time; the unchanged network stands beside them.
        epochs: at most so many a training.
        max_hours: at most so long a training.
        budget: how long a training is: quick, standard or full, as in `ulna train`; in place of the two before.
        recipe: everything else, the same for all: a YAML file, or the name of one that comes with ulna, see `ulna recipes`;
            its section `study` says which networks, seeds, folds and variations are meant where they are not given here.
        set: changes of single fields for all, KEY=VALUE.
        margin: the smallest difference of mean Dice that matters.
        jobs: trainings at once, as far as cores and memory allow; auto: as many as they carry. What was killed beside others
            is tried once more alone. Left out: one, or one a GPU; on Ray and SLURM as many as these begin. SLURM holds
            every array to it by itself: trainings that ask for the same are one array.
        on: where trainings run: local, as processes of this machine; ray or ray:ADDRESS, as tasks of a Ray cluster; slurm, as
            arrays that outlive this command: the same one waits for them again. All nodes must see the same files.
        slurm: an option of sbatch, KEY=VALUE, such as partition=gpu; may be repeated.
        dry_run: write, begin and submit nothing; print the scripts of SLURM as they would be submitted, or the commands.
        threads: of each training; left out, as many as are free when the study begins, shared among trainings at once; on Ray
            and SLURM four. The study keeps the number.
        beside: finished studies of the same networks on other data, for the ranking.
        pseudonymise: a file of yours, made where there is none: ids of cases and patients are hashes under the key in it, as
            in `ulna train`; give the same file each time the study goes on.
        track: mlflow: tell every training that is done, and the means of the networks, to MLflow, too, as in `ulna train`.

    Raises:
        UsageError: if anything about the data, a network or the folder is wrong; nothing is lost then.
        PartialFailure: if some trainings failed; the others are in the tables.
        DryRun: in place of everything, where that was asked for.

    Example:
        ulna compare data/nuclei --models unet,unetpp,nnunet --seeds 3 --max-hours 0.5 --out studies/nuclei
    """
    data, out = Path(data), Path(out)
    names = [part.strip() for text in _listed(models or ()) for part in text.split(",") if part.strip()]
    where, tracker = On.read(on, jobs, slurm), open_tracker(track)
    check_threads(threads)
    check_division(split=split, fold=None, folds=folds)
    base = _base(recipe, epochs, max_hours, budget, split)
    meant = _study(base, _listed(set))
    # its variations are of its own networks
    names, vary = (names, vary) if names else (list(meant.models), vary or meant.vary)
    folds, seeds = meant.folds if folds is None else folds, (meant.seeds or 1) if seeds is None else seeds
    _check_numbers(seeds, folds, margin)
    typed = [part for text in _listed(models or ()) for part in text.split(",")]
    for name in typed:
        permit_named(name.strip())
    own, asked = split_names(names, varied=bool(_listed(vary)))
    variants = make_variants(own, base, _listed(vary), _listed(set), one_at_a_time=one_at_a_time)
    size = None if match is None else Budget.read(match)
    for folder in _listed(beside):
        if (Path(folder) / STUDY_FILE).exists():
            check_format(Path(folder), stored_study(Path(folder)), "leave it out of --beside, or compare again there")
    others = read_beside([Path(one) for one in _listed(beside)], [*(variant.name for variant in variants), *asked])
    before = stored_study(out)
    if before is None:
        check_folder(out, [data])
    pseudonyms = opened(pseudonymise, out, dry_run=dry_run)
    dataset, report = _read(data, split, variants[0].recipe, folds, pseudonyms)
    splits = _splits(dataset, report, variants[0].recipe, folds)
    settled = plan_variants(
        variants,
        training_data(dataset, report, splits[0]),
        match=size,
        fixed=before.get("plan") if before else None,
    )
    rows = nnunet_rows(asked, settled)
    settings = settings_of_study(settled, splits, report, size, variants, folds)
    for kind, of_rows in settings_of_rows(rows).items():
        settings[kind] |= of_rows
    if before is not None:
        check_same(out, before, settings)
    everything = [*settled.variants, *rows.variants]
    todo = make_jobs(everything, seeds, folds, out / "runs")
    kept = threads or (before or {}).get("threads")
    needs = _needs(settled) | {row.name: unknown_need(settled.planned[0].device) for row in rows.variants}
    places = where.places(settled.planned[0].device, kept)
    fit = places.at_once([needs[job.network] for job in todo])
    settings["threads"] = each = study_threads(out, before, threads if where.here else kept or where.threads(), fit)
    key = None if pseudonyms is None else pseudonyms.path
    seconds = {variant.name: limit for variant in everything if (limit := _longest_s(variant)) is not None}
    executor = where.executor(out, places)
    if dry_run:
        raise would_do(processes(todo, data, needs=needs, seconds=seconds, threads=each, pseudonyms=key), executor)
    write_text(out / STUDY_FILE, json.dumps(settings, indent=1))
    leave_for_processes(out, settled.plan, splits, rows)

    flags = {
        "--models": ",".join(names) or None, "--seeds": seeds, "--folds": folds, "--split": split,
        "--match": match, "--vary": vary, "--one-at-a-time": one_at_a_time,
        "--epochs": epochs, "--max-hours": max_hours, "--budget": budget, "--recipe": recipe, "--set": set,
        "--margin": None if margin == 0.01 else margin, **where.flags(jobs, on, slurm), "--threads": threads,
        "--beside": beside, "--pseudonymise": pseudonymise, "--track": track,
    }  # fmt: skip
    words = ["compare", data, *to_argv(flags), "--out", out]
    again = command(words)
    told = counted(len(everything), "network"), counted(len(todo), "training")
    log.info("%s, %s; split %s", *told, ", ".join(map(split_hash, splits)))
    for variant, planned in zip(variants, settled.planned, strict=True):
        if before is None and variant.recipe.training.budget == "full" and not planned.device.gpu:
            log.info(
                "note: --budget full on a CPU: each training of %s takes %s", variant.name, hours_in_words(planned)
            )
    for note in not_there(rows.absent):
        log.info("note: %s", note)
    for note in unused_shares(dataset, todo[0].recipe.training):
        log.info("note: %s", note)
    if where.here and where.jobs is not None and fit < min(where.jobs, len(todo)):
        log.info("note: %s at once: cores and memory carry no more", counted(fit, "training"))
    log.info("%s a training", counted(each, "thread"))
    tracked = TrackedStudy(tracker, out)
    failed = run_jobs(
        todo, data, executor=executor, needs=needs, seconds=seconds, resume_command=again, threads=each, pseudonyms=key,
        on_done=tracked.training,
    )  # fmt: skip

    with stoppable(again):
        complete = _complete(everything, todo)
        if not complete:
            raise UsageError(
                "no network has all its trainings:\n" + "\n".join(f"  {job}: {why}" for job, why in failed.items())
            )
        groups = {case.id: case.group for case in dataset.grouped(report.copies).cases if case.group is not None}
        by_patient = any(case.group is not None for case in dataset.cases)
        done = [job for job in todo if job.variant.name in complete]
        ours = [job for job in done if not job.external]
        if not ours:
            raise UsageError(
                "no network of ulna's has all its trainings: "
                + "; ".join(f"{job}: {why}" for job, why in failed.items())
            )
        costs = _costs(ours, data, dataset, splits[0], out)
        costs.models.update({job.variant.name: ELSEWHERE for job in done if job.external})
        outcome = analyse(
            read_scores(done, groups),
            done,
            costs,
            margin=margin,
            unit="patient" if by_patient else "image" if groups else "case",
            footnotes=[*_footnotes(settled, everything, size, failed), *not_there(rows.absent)],
            data=printable(data.resolve().name),
            command=stored_command(words),
            beside=others,
            fields={case.id: dict(case.fields) for case in dataset.cases if case.fields},
            absent=rows.absent,
        )
        write_text(out / OUTCOME_FILE, json.dumps(outcome.to_json(), indent=1))
        write_outputs(outcome, ours, dataset, out)
        tracked.study(todo, outcome)
    study = Study(out, outcome, failed)
    if failed:
        raise PartialFailure(failed, len(todo) - len(failed), "trainings", study)
    return study


def _listed(values: str | Sequence[str]) -> list[str]:
    return [values] if isinstance(values, str) else list(values)


def _check_numbers(seeds: int, folds: int | None, margin: float) -> None:
    wrong = []
    if seeds < 1:
        wrong.append(f"--seeds {seeds}: train every network at least once")
    if folds is not None and folds < 2:
        wrong.append(f"--folds {folds}: two or more, or leave it out")
    if not 0 < margin < 1:
        wrong.append(f"--margin {margin:g}: a difference of Dice between 0 and 1, such as 0.01")
    if wrong:
        raise UsageError("\n".join(wrong))


def _base(
    recipe: Path | str | None, epochs: int | None, max_hours: float | None, budget: str | None, split: str | None
) -> dict[str, Any]:
    """What is stated for all: the recipe file and the flags."""
    check_budget(budget)
    if budget is not None and (epochs, max_hours) != (None, None):
        raise UsageError(f"--budget {budget}: says the length of a study alone; leave --epochs and --max-hours out")
    fields = stated(recipe)
    parse(Recipe, fields, source=str(recipe or ""))
    own = fields.get("training", {})
    if own.get("fold") is not None:
        raise UsageError(f"{recipe}: training.fold: the study sets it itself; use --folds")
    seed = own.get("seed", 0) if own.get("split_seed") is None else own["split_seed"]
    if budget is not None:  # it takes the place of what the file says of the length
        own = {**{name: value for name, value in own.items() if name not in STATED}, "budget": budget}
    if epochs is not None:
        own = {name: value for name, value in own.items() if name != "steps"}  # epochs in place of the steps of a file
    flags = {"epochs": epochs, "max_hours": max_hours, "split_seed": seed, "split": split}
    training = {**own, **{k: v for k, v in flags.items() if v is not None}}
    return {**fields, "training": training}


def _study(base: Mapping[str, Any], changes: Sequence[str]) -> Protocol:
    """What the recipe says of the study itself, and --set of that."""
    recipe = parse(Recipe, base)
    for change in changes:
        if change.strip().startswith("study."):
            recipe = set_value(recipe, change)
    return recipe.study


def _read(
    data: Path, asked_split: str | None, recipe: Recipe, folds: int | None, pseudonyms: Pseudonyms | None
) -> tuple[Dataset, Report]:
    dataset = named(pseudonyms, Dataset.from_folder(data)).declaring(recipe.classes)
    check_split_is_made(dataset, asked_split)
    if folds is None:
        dataset.check_divisible(division(recipe.training))
    report = check_dataset(dataset)
    report.raise_if_bad()
    return dataset.of_dims(report.spatial_dims), report


def _splits(dataset: Dataset, report: Report, recipe: Recipe, folds: int | None) -> list[Split]:
    """The split, or all folds. No group is ever in two sets: the data set sees to it."""
    grouped, seed = dataset.grouped(report.copies), recipe.training.split_seed or 0
    numbers: list[int | None] = [recipe.training.fold] if folds is None else list(range(folds))
    return [split_cases(grouped, seed, number, division(recipe.training)) for number in numbers]


def _needs(settled: Settled) -> dict[str, Need]:
    """What a training of each network takes.

    Raises:
        UsageError: if this machine cannot hold one of them.
    """
    needs = {}
    for variant, planned in zip(settled.variants, settled.planned, strict=True):
        taken = planned.memory_elsewhere
        taken.check(f"{variant.name}: a training", "set planning.batch=1 or a smaller planning.patch")
        needs[variant.name] = need_of(taken, planned.device)
    return needs


def _longest_s(variant: Variant) -> float | None:
    """How long a training is at most, where its recipe says so."""
    hours = variant.recipe.training.max_hours
    return None if hours is None else 3600 * hours


def _complete(variants: Sequence[Variant], jobs: Sequence[Job]) -> list[str]:
    """The networks of which every training is done."""
    return [v.name for v in variants if all(job.done for job in jobs if job.variant.name == v.name)]


def _costs(jobs: Sequence[Job], data: Path, dataset: Dataset, split: Split, out: Path) -> Costs:
    # the first training of each network, of those whose weights are there
    kept = sorted(jobs, key=lambda job: not job.has_weights)
    first = {job.variant.name: job.run for job in reversed(kept)}
    order = list(dict.fromkeys(job.variant.name for job in jobs))
    wanted = {*(split.test or split.val)}
    scored = sorted((case for case in dataset.cases if case.id in wanted), key=lambda case: case.id)
    printed = any(table.with_costs for table in published_for(data.resolve().name, order))
    runs = {name: first[name] for name in order}
    images = scored[:IMAGES] if printed else ()
    return measure_costs(runs, data, pick_case(scored), out / "costs.json", as_printed=images)


def _footnotes(
    settled: Settled, everything: Sequence[Variant], size: Budget | None, failed: Mapping[str, str]
) -> list[str]:
    notes = list(settled.footnotes)
    if size is not None:
        notes.append(
            f"every network is scaled to {size} by one factor on the widths of its levels; "
            "published figures hold for the unscaled ones"
        )
    notes += [f"{variant.name}: {note}" for variant in everything for note in variant.footnotes]
    notes += [f"{job} failed ({why}); its network is left out" for job, why in failed.items()]
    return notes
