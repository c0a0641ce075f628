"""One training into a run folder: what `ulna train` does for a split or a fold, and the process of a job."""

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
from ulna.data.layout.pseudonyms import Pseudonyms, check_key, named, texts_of
from ulna.data.prepared.contents import Contents
from ulna.data.prepared.store import CaseStore
from ulna.errors import Interrupted, UsageError, counted, printable
from ulna.evaluation.intervals import told_mean
from ulna.inference.segmenter import network_for, read_split
from ulna.networks.foreign import CODE_FILE, allow_flag, file_of, is_permitted, load_encoder
from ulna.networks.network import Network
from ulna.planning.default_network import with_reason
from ulna.planning.fitting import check_plan, other_cases
from ulna.planning.plan import Planned, check_split_is_made, planned_by, read_training_data
from ulna.recipe import PLAN_FORMAT, Plan, Recipe, from_yaml, to_yaml
from ulna.system.device import choose_precision, default_device
from ulna.system.files import remove_leftovers, write_text, write_whole
from ulna.system.locking import locked
from ulna.system.ranks import check_batch
from ulna.system.threads import computing_with
from ulna.system.trackers import Tracker
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
from ulna.training.init import Start, begin_with, check_dims, check_start, start_of, started
from ulna.training.log_file import logged_to
from ulna.training.loop import Loop
from ulna.training.needs import has_trained
from ulna.training.run_folder import LOG_FILE, START, refuse_taken
from ulna.training.same_data import check_same, describe
from ulna.training.samples import PreparedCases, device_room
from ulna.training.slices import training_samples
from ulna.training.state import State
from ulna.training.stopping import Stop
from ulna.training.summary import Parts, final_predictions, summarise, with_limits
from ulna.training.taken import encoder_parts, uses
from ulna.training.tracking import Curves, Tracked, record_epoch
from ulna.training.within import Within, look_through, plan_within, reading_within, splits_of, within
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
    limit: float | None = None,
    to_come: Sequence[int] = (),
) -> Run:
    """One training into a folder: by the recipe that was chosen, or without one where it stopped.

    Args:
        shared: whether others of the same data follow, which find the cases that this one has prepared.
        limit: bytes of memory that the process keeps to.
        to_come: folds that it trains afterwards, within the same limit.
    """
    resume = chosen is None
    before: Recipe | None = None  # of a run that goes on
    notes: tuple[str, ...] = ()
    contents = Contents()
    start = None if chosen is None else start_of(chosen)
    with locked(folder), reading_within(limit, folder):
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
            look_through(dataset, limit)
            found = read_training_data(dataset, chosen.training)
            if start is not None:
                check_dims(start, found.fingerprint.spatial_dims)
            planned = plan_within(found, chosen, limit, given=given, source=source)
            planned = with_reason(planned, model_because)
            dataset, notes = found.dataset, (*found.notes, *other_cases(planned.plan, found.fingerprint))
        if planned.recipe.training.frozen_epochs:
            encoder_parts(planned.network)
        if start is not None:
            left = check_start(start, planned.recipe, planned.plan)
            notes = (*notes, started(start, left))
        check_batch(devices, planned.plan.batch)
        bound = None
        if limit is not None:
            bound = within(planned, dataset, limit, splits_of(dataset, planned.recipe, to_come))
            bound.check_disk(folder)
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
        again = [*words_again(names, tracker, devices, limit), *allow_flag(planned.recipe.architecture.foreign)]
        stop = Stop(shlex.join(["ulna", "train", str(data), "--out", str(folder), "--resume", *again]))
        with stop.listening(), logged_to(folder / LOG_FILE, texts_of(names, data, folder)):
            if not resume:
                _start(folder, planned, described)
            for note in notes:
                log.info("note: %s", note)
            if bound is None:
                log.info("memory: about %s", memory)
            else:
                log.info("memory: %s", bound.words(len(planned.split.train) + len(planned.split.val)))
            log.info("length: %s", planned.length)
            began = ", as this run began" if resume and stored_threads(folder / CHECKPOINTS) else ""
            log.info("threads: %d%s", torch.get_num_threads(), began)
            if devices > 1:
                log.info("devices: %d, which share each batch", devices)
            if model_because:
                log.info("network: %s", model_because)
            with (tracked := Tracked.training(tracker, folder, data)).active():
                has_trained()
                network, state = _train(
                    folder, dataset, planned, stop, tracked, store,
                    before=before, start=start, devices=devices, bound=bound,
                )  # fmt: skip
                stop.everything_is_saved()
                parts = Parts.of(dataset, planned.split, () if bound is None else bound.apart)
                summary = summarise(folder, data, parts, planned, network, state, devices=devices)
                keep_last(folder / CHECKPOINTS)
                tracked.figures()
    return Run(folder, summary)


def words_again(
    names: Pseudonyms | None, tracker: Tracker | None, devices: int, limit: float | None = None
) -> list[str]:
    """The words of a command that goes on under the same pseudonyms, told to the same tracker, on as many devices, and within
    the same limit."""
    many, gb = devices if devices > 1 else None, None if limit is None else f"{limit / 1e9:g}"
    return to_argv(
        {
            "--pseudonymise": names and names.path,
            "--track": tracker and tracker.name,
            "--devices": many,
            "--max-ram": gb,
        }
    )


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
    before: Recipe | None, start: Start | None, devices: int, bound: Within | None,
) -> tuple[Network, State]:  # fmt: skip
    recipe, plan, split = planned.recipe, planned.plan, planned.split
    own = recipe if bound is None else recipe.replaced(training=recipe.training.replaced(workers=bound.readers))
    of_val: dict[str, Any] = {} if bound is None else bound.of_val(folder)
    torch.manual_seed(recipe.training.seed)  # dropout draws from torch's own stream
    generator = torch.Generator().manual_seed(recipe.training.seed)
    network = network_for(recipe, plan, generator)
    taken: list[str] = []
    curves = Curves(folder)
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
            own,
            val=PreparedCases(val, plan, on_grid=False, store=store, sharing=devices, **of_val),
            samples=training_samples(
                train,
                plan,
                recipe,
                folder=folder,
                device=device,
                device_bytes=room,
                store=store,
                sharing=devices,
                within=bound,
            ),
            folder=folder,
            stop=stop,
            on_epoch=lambda state: record_epoch(folder, state, tracked, curves),
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
        try:
            state = loop.run()
        except Interrupted:
            curves.draw(loop.state, ended=True)
            raise
        curves.draw(state, ended=True)
        return network, state
