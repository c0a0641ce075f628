"""The trainings of a study, each a job of its own: what is done stays done, what failed is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ulna.executors.handing import Executor, hand_out
from ulna.executors.job import NOTHING, Need
from ulna.executors.job import Job as Handed
from ulna.executors.local import Local
from ulna.executors.places import Places
from ulna.executors.working import python_module, standing_file
from ulna.networks.foreign import is_permitted
from ulna.recipe import Recipe, to_yaml
from ulna.study.nnunet import is_nnunet
from ulna.study.variants import Variant
from ulna.study.worker import ALLOW, is_done
from ulna.system.files import write_text
from ulna.system.outputs import RUN_FILE, make_folder
from ulna.system.reading import read_json_object
from ulna.training.limit import told_duration

# What a training writes last but for its pictures: then its figures are there to be read.
DONE = "summary.json"


@dataclass(frozen=True)
class Job:
    """One training of a study.

    Args:
        variant: what is trained.
        seed: of weights and random changes.
        fold: of the data set's folds; None for its one split.
        run: its run folder.
    """

    variant: Variant
    seed: int
    fold: int | None
    run: Path

    @property
    def name(self) -> str:
        """In words."""
        return f"{self.variant.name} seed {self.seed}" + ("" if self.fold is None else f" fold {self.fold}")

    @property
    def recipe(self) -> Recipe:
        """Of the training, whole."""
        recipe = self.variant.recipe
        return recipe.replaced(training=recipe.training.replaced(seed=self.seed, fold=self.fold))

    @property
    def network(self) -> str:
        """The name of what is trained."""
        return self.variant.name

    @property
    def external(self) -> bool:
        """Whether it is a row of nnU-Net's, which trains in an environment of its own."""
        return is_nnunet(self.variant.recipe.model)

    @property
    def begun(self) -> bool:
        """Whether it goes on where it was stopped."""
        return (self.run / RUN_FILE).exists()

    @property
    def done(self) -> bool:
        """Whether it has its figures."""
        return is_done(self.run)

    @property
    def has_weights(self) -> bool:
        """Whether its network can still predict: figures may be kept without it."""
        return (self.run / "weights.safetensors").exists()

    def summary(self) -> dict[str, Any]:
        """What the run says about itself."""
        return read_json_object(self.run / DONE)


def make_jobs(variants: Sequence[Variant], seeds: int, folds: int | None, runs: Path) -> list[Job]:
    """All trainings, so that every seed of all variants is complete before the next one begins."""
    parts: list[int | None] = [None] if folds is None else list(range(folds))
    return [
        Job(variant, seed, fold, runs / variant.folder / (f"seed{seed}" + ("" if fold is None else f"-fold{fold}")))
        for seed in range(seeds)
        for fold in parts
        for variant in variants
    ]


def run_jobs(
    jobs: Sequence[Job],
    data: Path,
    *,
    resume_command: str,
    executor: Executor | None = None,
    needs: Mapping[str, Need] | None = None,
    seconds: Mapping[str, float] | None = None,
    threads: int | None = None,
    pseudonyms: Path | None = None,
    on_done: Callable[[Job], None] = lambda job: None,
) -> dict[str, str]:
    """Train what is not done yet; returns the reasons of those that failed.

    Args:
        jobs: in the order to begin them.
        data: the data set.
        resume_command: what a person types to go on.
        executor: where they run; left out, one after the other on this machine.
        needs: network -> what a training of it takes; one that is not in it takes nothing.
        seconds: network -> how long a training of it takes, as far as anybody knows.
        threads: of each; left out, those of this process.
        pseudonyms: the file that gives the ids of cases other names.
        on_done: called with every training that has its figures.

    Raises:
        UsageError: if the executor cannot run them.
        Interrupted: after a signal, when every training has left a checkpoint.
    """
    threads = torch.get_num_threads() if threads is None else threads
    of = {job.name: job for job in jobs}
    return hand_out(
        processes(jobs, data, needs=needs, seconds=seconds, threads=threads, pseudonyms=pseudonyms),
        executor or Local(Places()),
        resume_command=resume_command,
        on_done=lambda one: on_done(of[one.name]),
        told_duration=told_duration,
    )


def processes(
    jobs: Sequence[Job],
    data: Path,
    *,
    needs: Mapping[str, Need] | None = None,
    seconds: Mapping[str, float] | None = None,
    threads: int = 1,
    pseudonyms: Path | None = None,
) -> list[Handed]:
    """The trainings as processes; the arguments are those of `run_jobs`."""
    return [
        _handed(
            job,
            data,
            pseudonyms,
            threads=threads,
            need=(needs or {}).get(job.network, NOTHING),
            seconds=(seconds or {}).get(job.network),
        )
        for job in jobs
    ]


def _handed(
    job: Job, data: Path, pseudonyms: Path | None, *, threads: int, need: Need, seconds: float | None
) -> Handed:
    """A training as a process."""
    recipe = job.run.with_name(job.run.name + ".yaml")

    def prepare() -> None:
        make_folder(job.run.parent)
        write_text(recipe, to_yaml(job.recipe))

    words: list[object] = [data, recipe, job.run, *([pseudonyms] if pseudonyms else [])]
    words += [ALLOW] if is_permitted(job.recipe.architecture.foreign) else []
    return Handed(
        job.name,
        python_module(f"ulna.study.{'nnunet_worker' if job.external else 'worker'}", *words),
        folder=job.run,
        output=job.run.with_name(job.run.name + ".txt"),
        done=lambda: job.done,
        begun=lambda: job.begun,
        prepare=prepare,
        result=lambda: _score(job.summary()),
        need=need,
        threads=threads,  # a training that goes on keeps the number it began with
        seconds=seconds,
        standing=standing_file(job.run),
    )


def _score(summary: Mapping[str, Any]) -> str:
    part = summary["evaluated_on"]
    dice = summary[part]["mean"]["dice"]["mean"]
    return f"{'no structure' if dice is None else f'Dice {dice:.4f}'} on {part}"
