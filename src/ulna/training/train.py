"""The verb `train`: one network, one split, one seed, from a folder of images to a run folder."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ulna.data.layout.dataset import Dataset
from ulna.data.layout.pseudonyms import Pseudonyms, check_key, named, opened, texts_of
from ulna.data.prepared.contents import Contents
from ulna.data.prepared.store import CaseStore
from ulna.errors import UsageError, counted, printable
from ulna.evaluation.intervals import told_mean
from ulna.executors.choosing import On
from ulna.inference.fold_runs import is_cross_validation
from ulna.inference.segmenter import network_for, read_split
from ulna.networks.foreign import CODE_FILE, allow_flag, file_of, is_permitted, load_encoder
from ulna.networks.network import Network
from ulna.planning.choosing import check_words, choose
from ulna.planning.default_network import choose_network, with_reason
from ulna.planning.fitting import check_plan, other_cases, recipe_of
from ulna.planning.plan import Planned, check_split_is_made, plan_training, planned_by, read_training_data
from ulna.recipe import PLAN_FORMAT, Plan, Recipe, from_yaml, to_yaml
from ulna.system.device import choose_precision, default_device
from ulna.system.exported import refuse_exported
from ulna.system.files import remove_leftovers, write_text, write_whole
from ulna.system.locking import locked
from ulna.system.outputs import FOLDS_FILE
from ulna.system.ranks import check_batch, check_devices
from ulna.system.threads import check_threads, choose_threads, computing_with
from ulna.system.trackers import Tracker, open_tracker
from ulna.training.calibrating import calibrating_predictions
from ulna.training.checkpoint import (
    CHECKPOINTS,
    TRAINING_FORMAT,
    begun_format,
    check_unfinished,
    keep_last,
    stored_taken,
    stored_threads,
)
from ulna.training.compiling import compiles
from ulna.training.crew import Task, crew_of
from ulna.training.duration import hours_in_words
from ulna.training.extending import extend
from ulna.training.fold_jobs import Together
from ulna.training.folds import cross_validate
from ulna.training.init import Start, begin_with, check_dims, check_start, read_start, start_of, started
from ulna.training.log_file import logged_to
from ulna.training.loop import Loop
from ulna.training.run_folder import LOG_FILE, START, existing_folder, new_folder, refuse_taken
from ulna.training.same_command import check_same_command, permit_code, same_threads
from ulna.training.same_data import check_same, describe
from ulna.training.samples import PreparedCases, device_room
from ulna.training.slices import training_samples
from ulna.training.state import State
from ulna.training.stopping import Stop
from ulna.training.summary import Parts, final_predictions, summarise, with_limits
from ulna.training.taken import encoder_parts, uses
from ulna.training.tracking import Tracked, record_epoch, tell_folds
from ulna.verbs import to_argv

log = logging.getLogger("ulna")


@dataclass(frozen=True)
class Run:
    """A finished training: its folder and what stands in its summary."""

    folder: Path
    summary: dict[str, Any]

    def __repr__(self) -> str:
        told, part = self.summary, self.summary["evaluated_on"]
        cases = counted(told[part]["cases"], "case" if part == "all" else f"{part} case")
        parts = [f"{told['model']} on {told['data']}: Dice {told_mean(told[part]['mean']['dice'])} over {cases}"]
        parts += [f"{counted(len(told['folds']), 'fold')}"] if "folds" in told else []
        parts += [f"best epoch {told['best_epoch']} of {told['epochs']}"] if "best_epoch" in told else []
        return printable(f"Run {self.folder}: {', '.join(parts)}")

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"run": str(self.folder), **self.summary}


def train(
    data: Path | str,
    /,
    *,
    model: str | None = None,
    out: Path | str | None = None,
    epochs: int | None = None,
    max_hours: float | None = None,
    budget: str | None = None,
    seed: int | None = None,
    fold: int | None = None,
    folds: int | None = None,
    split: str | None = None,
    recipe: Path | str | None = None,
    plan: Path | str | None = None,
    init: Path | str | None = None,
    set: Sequence[str] = (),
    jobs: str | int | None = None,
    on: str = "local",
    slurm: Sequence[str] = (),
    dry_run: bool = False,
    devices: int = 1,
    threads: int | None = None,
    resume: bool = False,
    pseudonymise: Path | str | None = None,
    track: str | None = None,
    allow_code: bool = False,
) -> Run:
    """Train a network on a folder of images and evaluate it on the cases kept aside.

    Args:
        data: a data set in any known layout: a folder, or an .npz file.
        model: name of a network, see `ulna models`; left out, chosen by the images, and plan.yaml says why.
        out: the run folder; runs/DATA-MODEL by default. At the end, report.html in it is a page about the training.
        epochs: at most so many.
        max_hours: at most so long, from the reading of the cases to the final evaluation; the learning rate falls over
            this time. Where it ends before the first epoch, that is told after the first steps, and the weights of then are
            validated and kept.
        budget: how long: quick (minutes), standard (two hours at most) or full (250,000 steps, as nnU-Net); --epochs and
            --max-hours change a part of it. Without any of the three: standard on a GPU, 100 epochs on a CPU.
        seed: of the weights, the split where none is given, and every random change.
        fold: which fold of the data set's folds; of five where it brings none.
        folds: cross-validate: train all of so many folds, each a run folder fold_0, fold_1, ... of `out`, and score every
            case by the network that did not train on it. All limits hold for each fold. `out` then stands for all folds
            wherever a run is asked for.
        split: shares of train, val and test where the data set brings no split, such as 80/10/10, or 80/20 without test
            cases; by group where groups.json says so.
        recipe: everything else: a YAML file, or the name of one that comes with ulna, see `ulna recipes`.
        plan: a file of `ulna plan --out`: train by exactly this plan, and by the recipe in it; what is given beside it must
            agree with it.
        init: weights to begin with: a run, an exported file that holds them, a .safetensors file, or zoo:NAME, see
            `ulna zoo`. Their network is trained where none is named; what depends on other channels or classes is begun anew.
        set: changes of single fields, KEY=VALUE, such as optimizer.lr=3e-4.
        jobs: of --folds: folds at once, as processes, as far as cores and memory allow; auto: as many as they carry. Left
            out: one after the other, or one a GPU; on Ray and SLURM as many as these begin.
        on: of --folds: where they are trained: local, ray, ray:ADDRESS or slurm, as in `ulna compare`.
        slurm: an option of sbatch, KEY=VALUE, such as partition=gpu; may be repeated.
        dry_run: of --folds: write, begin and submit nothing; print what would be begun or submitted.
        devices: that share every batch and the validation cases: processes of a CPU, or GPUs, one each. The training is the
            same within rounding however many they are, and --resume takes any number.
        threads: that compute, kept by the run; left out, those of OMP_NUM_THREADS, else no more than processors are free.
        resume: go on with the run in `out` after a stop, or for more epochs or hours; other flags must be those that it began
            with.
        pseudonymise: a file of yours, made where there is none: in all that is written, ids of cases and patients are hashes
            under the key in it, and it says which is which. Keep it apart from the run; --resume needs it.
        track: mlflow: tell settings and scores to MLflow, too, as they come; on this machine unless MLFLOW_TRACKING_URI names
            a server. With --resume it goes on where it was.
        allow_code: execute the code of a network of one's own where the run in `out`, a recipe or a plan names it: read it
            before. Who names it as the model needs no more.

    Raises:
        UsageError: if anything about the data, the model or the folder is wrong; nothing is written then.
        DryRun: in place of everything, where that was asked for.

    Example:
        ulna train data/nuclei --model unetpp --max-hours 1
    """
    data, out = Path(data), None if out is None else Path(out)
    check_threads(threads)
    check_devices(devices, default_device())
    tracker, where = open_tracker(track), On.read(on, jobs, slurm)
    given, why, begins = None, "", None if init is None else str(init)
    if resume:
        folder, chosen = existing_folder(out, data), None
        flags = {
            "model": model, "epochs": epochs, "max_hours": max_hours, "budget": budget, "seed": seed, "fold": fold,
            "folds": folds, "split": split, "recipe": recipe, "plan": plan, "init": begins,
            "set": [set] if isinstance(set, str) else [*set],
        }  # fmt: skip
        folds = 2 if is_cross_validation(folder) else None  # any number: it says it itself
        permit_code(folder, model=model, allow_code=allow_code)
        check_same_command(folder, flags)
        threads = same_threads(folder, threads)
    else:
        if plan is not None and folds is not None:
            raise UsageError(
                f"--plan and --folds {folds}: a plan is for one split, and every fold is planned by its own training cases; "
                "leave --plan out, or train one fold with --fold"
            )
        given = None if plan is None else _read_plan(Path(plan), named=model is not None or recipe is not None)
        theirs = None if begins is None or {model, recipe, plan} != {None} else read_start(begins).recipe
        if theirs is None:
            model, why = choose_network(data, model=model, recipe=recipe, set=set, planned=given is not None)
        else:
            model, why = theirs.model, f"{theirs.model}, the network of --init {printable(begins)}"
        chosen = choose(
            model=model, recipe=recipe, epochs=epochs, max_hours=max_hours, budget=budget, seed=seed, fold=fold,
            folds=folds, split=split, init=begins, set=set,
            architecture=None if theirs is None else theirs.architecture, planned=None if given is None else recipe_of(given),
            allow_code=allow_code,
        )  # fmt: skip
        folder = new_folder(data, chosen.model, out)
        check_words(chosen)
        compiles(chosen.training, default_device())  # says what is missing before data are read
    if folds is None and (dry_run or where != On()):
        raise UsageError(
            "--on, --jobs, --slurm and --dry-run: hand out the folds of --folds; one training is one process"
        )
    if devices > 1 and (dry_run or where != On()):
        raise UsageError("--devices: all devices train one fold after the other; leave out --on, --jobs and --dry-run")
    limits: dict[str, Any] = {"epochs": epochs, "max_hours": max_hours} if resume else {}
    if dry_run:
        of_all = chosen or from_yaml(Recipe, folder / FOLDS_FILE)
        raise Together(where, threads, why, None, tracker).dry_run(data, folder, of_all)
    names = opened(pseudonymise, folder)
    with computing_with(choose_threads(threads)):
        if folds is None:
            return train_into(
                data, folder, chosen, given=given, source=str(plan), asked_split=split, model_because=why, names=names,
                tracker=tracker, devices=devices, **limits,
            )  # fmt: skip

        def one_fold(run: Path, own: Recipe | None, limits: dict[str, Any]) -> dict[str, Any]:
            return train_into(
                data, run, own, model_because=why, names=names, tracker=tracker, devices=devices, shared=True, **limits
            ).summary

        together = Together(where, threads, why, names, tracker)
        words = [*_words_again(names, tracker, devices), *to_argv(where.flags(jobs, on, slurm))]
        summary = cross_validate(
            data, folder, chosen, one_fold, limits,
            key=words, all_folds=together.train if together.needed and devices == 1 else None,
        )  # fmt: skip
        tell_folds(tracker, folder, data)
        return Run(folder, summary)


def train_into(
    data: Path,
    folder: Path,
    chosen: Recipe | None,
    *,
    given: Plan | None = None,
    source: str = "",
    asked_split: str | None = None,
    model_because: str = "",
    epochs: int | None = None,
    max_hours: float | None = None,
    names: Pseudonyms | None = None,
    tracker: Tracker | None = None,
    shared: bool = False,
    devices: int = 1,
) -> Run:
    """One training into a folder: by the recipe that was chosen, or without one where it stopped.

    Args:
        shared: whether others of the same data follow, which find the cases that this one has prepared.
    """
    resume = chosen is None
    before: Recipe | None = None  # of a run that goes on
    notes: tuple[str, ...] = ()
    contents = Contents()
    start = None if chosen is None else start_of(chosen)
    with locked(folder):
        if chosen is None:
            remove_leftovers(folder)
            check_key(folder, names)
            before, planned = _stored(folder, data, epochs=epochs, max_hours=max_hours)
            dataset = named(names, Dataset.from_folder(data)).declaring(planned.recipe.classes)
            dataset = dataset.of_dims(planned.plan.image_dims)
            if not any((folder / CHECKPOINTS).glob("*.safetensors")):
                check_unfinished(folder)  # before data are read, and anything is written
                start = start_of(planned.recipe)
            check_same(folder, data, dataset, planned.plan.labels, contents)
        else:
            refuse_taken(folder)  # once more: what wrote into it may have ended since
            dataset = named(names, Dataset.from_folder(data)).declaring(chosen.classes)
            check_split_is_made(dataset, asked_split)
            if given is not None:  # before all is read
                check_plan(given, chosen, source, labels=dataset.labels, channel_names=dataset.channel_names)
            found = read_training_data(dataset, chosen.training)
            if start is not None:
                check_dims(start, found.fingerprint.spatial_dims)
            planned = with_reason(plan_training(found, chosen, given=given, source=source), model_because)
            dataset, notes = found.dataset, (*found.notes, *other_cases(planned.plan, found.fingerprint))
        if planned.recipe.training.frozen_epochs:
            encoder_parts(planned.network)
        if start is not None:
            left = check_start(start, planned.recipe, planned.plan)
            notes = (*notes, started(start, left))
        check_batch(devices, planned.plan.batch)
        if devices > 1 and compiles(planned.recipe.training, default_device()):
            raise UsageError(
                f"--devices {devices}: steps that devices share are not compiled; leave training.compile to auto"
            )
        memory = planned.memory_on(devices)
        memory.check("this training", "set planning.batch=1, a smaller planning.patch, or a smaller network")
        if chosen is not None and chosen.training.budget == "full" and not planned.device.gpu:
            notes = (*notes, f"--budget full on a CPU takes {hours_in_words(planned)}")
        # what takes long comes before there is something to stop: a signal here ends it at once, and leaves nothing
        key = None if names is None else names.digest
        described = "" if resume else describe(dataset, planned.plan.labels, contents, key)
        # pseudonyms are for what others may see, and prepared images are kept where it is not decided who does
        cached = planned.recipe.training.cache if names is None else False
        store = CaseStore.of(planned.plan, contents, data, cached, shared=shared)
        again = [*_words_again(names, tracker, devices), *allow_flag(planned.recipe.architecture.foreign)]
        stop = Stop(shlex.join(["ulna", "train", str(data), "--out", str(folder), "--resume", *again]))
        with stop.listening(), logged_to(folder / LOG_FILE, texts_of(names, data, folder)):
            if not resume:
                _start(folder, planned, described)
            for note in notes:
                log.info("note: %s", note)
            log.info("memory: about %s", memory)
            log.info("length: %s", planned.length)
            began = ", as this run began" if resume and stored_threads(folder / CHECKPOINTS) else ""
            log.info("threads: %d%s", torch.get_num_threads(), began)
            if devices > 1:
                log.info("devices: %d, which share each batch", devices)
            if model_because:
                log.info("network: %s", model_because)
            with (tracked := Tracked.training(tracker, folder, data)).active():
                network, state = _train(
                    folder, dataset, planned, stop, tracked, store, before=before, start=start, devices=devices
                )
                stop.everything_is_saved()
                summary = summarise(
                    folder, data, Parts.of(dataset, planned.split), planned, network, state, devices=devices
                )
                keep_last(folder / CHECKPOINTS)
                tracked.figures()
    return Run(folder, summary)


def _words_again(names: Pseudonyms | None, tracker: Tracker | None, devices: int) -> list[str]:
    """The words of a command that goes on under the same pseudonyms, told to the same tracker, on as many devices."""
    many = devices if devices > 1 else None
    return to_argv({"--pseudonymise": names and names.path, "--track": tracker and tracker.name, "--devices": many})


def _read_plan(path: Path, *, named: bool) -> Plan:
    """A plan to train by; it names the network, unless that is named beside it."""
    refuse_exported([path], "plan")
    plan = from_yaml(Plan, path)
    if plan.recipe is None and not named:
        raise UsageError(
            f"{printable(path)}: does not say for which network it was made; name that with --model, or give its --recipe"
        )
    return plan


def _start(folder: Path, planned: Planned, data: str) -> None:
    code = file_of(planned.recipe.architecture.foreign)
    if code is not None:  # the run needs nothing beside its folder
        write_whole(folder / CODE_FILE, lambda part: part.write_bytes(code))
    split = json.dumps(planned.split.model_dump(mode="json"), indent=1)
    texts = (to_yaml(planned.plan), split, data, to_yaml(planned.recipe))
    for name, text in zip(START, texts, strict=True):
        write_text(folder / name, text)
    remove_leftovers(folder)


def _stored(folder: Path, data: Path, *, epochs: int | None, max_hours: float | None) -> tuple[Recipe, Planned]:
    """The recipe of a run as it stands in its folder, and the training with other limits where they are given."""
    before, plan = from_yaml(Recipe, folder / "recipe.yaml"), from_yaml(Plan, folder / "plan.yaml")
    anew = shlex.join(["ulna", "train", str(data), "--model", before.model, "--out", "NEW_FOLDER"])
    remedy = f"it predicts as it did, but cannot go on; train anew: {anew} (what you set stands in recipe.yaml)"
    if plan.format != PLAN_FORMAT:
        raise UsageError(
            f"{folder}: begun by an earlier ulna (plan format {plan.format}), which saw images along the axes of "
            f"their files; {remedy}"
        )
    begun = begun_format(folder / CHECKPOINTS)
    if begun is not None and begun != TRAINING_FORMAT:
        raise UsageError(
            f"{folder}: begun by {'an earlier' if begun < TRAINING_FORMAT else 'a later'} ulna (training format {begun}, now "
            f"{TRAINING_FORMAT}), which draws other samples from the same seed; {remedy}"
        )
    recipe = before.replaced(training=with_limits(before.training, epochs=epochs, max_hours=max_hours))
    return before, planned_by(plan, recipe, read_split(folder))


def _train(
    folder: Path, dataset: Dataset, planned: Planned, stop: Stop, tracked: Tracked, store: CaseStore | None, *,
    before: Recipe | None, start: Start | None, devices: int,
) -> tuple[Network, State]:  # fmt: skip
    recipe, plan, split = planned.recipe, planned.plan, planned.split
    torch.manual_seed(recipe.training.seed)  # dropout draws from torch's own stream
    generator = torch.Generator().manual_seed(recipe.training.seed)
    network = network_for(recipe, plan, generator)
    taken: list[str] = []
    if before is None or not any((folder / CHECKPOINTS).glob("*.safetensors")):
        taken += load_encoder(network, recipe.architecture.foreign)
    elif uses(recipe.training):
        taken += stored_taken(folder / CHECKPOINTS)
    if start is not None:
        taken += begin_with(network, start)
    log.info(
        "%s: %s parameters, %dD, patch %s, batch %d, %s; %d train, %d val, %d test cases; seed %d",
        recipe.model, f"{planned.parameters:,}", plan.spatial_dims, "x".join(map(str, plan.patch)), plan.batch,
        choose_precision(recipe.training.precision, default_device()),
        len(split.train), len(split.val), len(split.test), recipe.training.seed,
    )  # fmt: skip
    device = default_device()
    held = planned.memory_on(devices).on_the_gpu if device.type == "cuda" else 0
    room = device_room(held)
    train, val = dataset.cases_of(split.train), dataset.cases_of(split.val)
    threads = torch.get_num_threads()
    each = threads if device.type == "cuda" else max(1, threads // devices)
    task = Task(
        plan, recipe, train, val,
        folder=folder, taken=taken, threads=each, device_bytes=room,
        allow_code=is_permitted(recipe.architecture.foreign),
    )  # fmt: skip
    with crew_of(task, devices, device, stop.resume_command) as crew, computing_with(each):
        crew.threads = threads if devices > 1 else None
        loop = Loop(
            network,
            plan,
            recipe,
            val=PreparedCases(val, plan, on_grid=False, store=store, sharing=devices),
            samples=training_samples(
                train,
                plan,
                recipe,
                folder=folder,
                device=device,
                device_bytes=room,
                store=store,
                sharing=devices,
            ),
            folder=folder,
            stop=stop,
            on_epoch=lambda state: record_epoch(folder, state, tracked),
            final_cases=final_predictions(plan, recipe, split),
            calibrating_cases=calibrating_predictions(plan, recipe, len(split.val)),
            taken=taken,
            crew=crew,
        )
        loop.taken.tell()
        if before is not None:
            if loop.resume():
                extend(loop.state, folder, before, recipe)
            else:
                log.info("no checkpoint yet: starting from the first epoch")
            write_text(folder / "recipe.yaml", to_yaml(recipe))  # only now: with it the run goes on
        return network, loop.run()
