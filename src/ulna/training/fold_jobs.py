"""The folds of a cross-validation as jobs, each a process of its own, on this machine or elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ulna.data.layout.dataset import Dataset
from ulna.data.layout.pseudonyms import Pseudonyms, named
from ulna.errors import DryRun, UsageError, counted, printable
from ulna.executors.choosing import On, dry_run
from ulna.executors.handing import hand_out
from ulna.executors.job import Job
from ulna.executors.places import need_of
from ulna.executors.working import python_module, standing_file
from ulna.networks.foreign import is_permitted
from ulna.planning.bounded import LIBRARIES
from ulna.planning.memory import program_bytes
from ulna.planning.plan import read_training_data
from ulna.recipe import Recipe
from ulna.system.device import find_device, gpus_here
from ulna.system.outputs import RUN_FILE
from ulna.system.reading import read_json_object
from ulna.system.threads import choose_threads
from ulna.system.trackers import Tracker
from ulna.training.folds import SUMMARY, check_folds, finished, told
from ulna.training.limit import told_duration
from ulna.training.tracking import begin_folds
from ulna.training.within import look_through, plan_within, reading_within, splits_of, within

FOLD = "fold"


class Together(NamedTuple):
    """How the folds of a command are trained as processes.

    Args:
        on: where.
        threads: of each, where a person or an earlier call said how many.
        because: why the network was chosen.
        names: the pseudonyms.
        tracker: that they tell.
        limit: bytes of memory that this process and theirs keep to; elsewhere, each of theirs.
    """

    on: On
    threads: int | None
    because: str
    names: Pseudonyms | None
    tracker: Tracker | None
    limit: float | None = None

    @property
    def needed(self) -> bool:
        """Whether folds run beside each other or elsewhere: else this process trains one after the other."""
        if not self.on.here:
            return True
        return self.on.jobs != 1 if self.on.given else gpus_here() > 1

    def jobs(self, data: Path, folder: Path, runs: Sequence[Path], recipe: Recipe) -> tuple[list[Job], Any]:
        """A job for every fold, and what hands them out; the first of them that is not finished is planned for its memory."""
        todo = [number for number, run in enumerate(runs) if not finished(run, recipe)] or [0]
        first = todo[0]
        own = recipe.replaced(training=recipe.training.replaced(fold=first))
        dataset = named(self.names, Dataset.from_folder(data)).declaring(recipe.classes)
        device = find_device()
        places = self.on.places(device, self.threads)
        with reading_within(self.limit, folder):
            look_through(dataset, self.limit)
            found = read_training_data(dataset, own.training)
            share = self._share(len(runs))
            planned = plan_within(found, own, share)
            taken = planned.memory_elsewhere
            taken.check("a fold", "set planning.batch=1 or a smaller planning.patch")
            need = need_of(taken, device)
            if share is not None:
                peak = within(planned, found.dataset, share, splits_of(found.dataset, recipe, todo[1:])).peak
                if self.on.here and self.on.jobs is None:
                    places = replace(places, most=max(1, min(places.most, int(share / peak))))
                    share /= min(places.most, len(runs))
                need = need._replace(machine=0.0 if self.on.here else share)  # of the limit each has its part
        if self.on.here:
            threads = self.threads or max(1, choose_threads() // places.at_once([need] * len(runs)))
        else:
            threads = self.threads or self.on.threads()
        options = json.dumps(
            {
                "because": self.because,
                "pseudonymise": None if self.names is None else str(self.names.path),
                "track": None if self.tracker is None else self.tracker.name,
                "allow_code": is_permitted(recipe.architecture.foreign),
                "limit": share,
            }
        )
        hours = planned.recipe.training.max_hours  # that of a budget, too
        made = [
            Job(
                run.name,
                python_module("ulna.training.fold_worker", data, folder, number, options),
                folder=run,
                output=run.with_name(run.name + ".txt"),
                done=lambda run=run: finished(run, recipe),  # type: ignore[misc]
                begun=(run / RUN_FILE).exists,
                result=lambda run=run: told(read_json_object(run / SUMMARY)),  # type: ignore[misc]
                need=need,
                threads=threads,
                seconds=None if hours is None else 3600 * hours,
                standing=standing_file(run),
            )
            for number, run in enumerate(runs)
        ]
        return made, self.on.executor(folder, places, FOLD)

    def _share(self, folds: int) -> float | None:
        """Bytes of one of the processes; of `auto` all that are left beside this one, as they are divided later.

        Raises:
            UsageError: if nothing is left of the limit.
        """
        if self.limit is None or not self.on.here:
            return self.limit
        count, program = min(self.on.jobs or 1, folds), program_bytes()
        if self.limit - program <= count * (program + LIBRARIES):
            least = (program + count * (program + LIBRARIES)) / 1e9
            raise UsageError(
                f"--max-ram {self.limit / 1e9:g}: the command and {counted(count, 'process')} take {least:.2f} GB "
                "before they hold any image; raise it, or take fewer --jobs"
            )
        return (self.limit - program) / count

    def train(
        self,
        data: Path,
        folder: Path,
        runs: Sequence[Path],
        recipe: Recipe,
        again: str,
        on_begin: Callable[[], None],
    ) -> None:
        """Train the folds that are not finished; `on_begin` is called before the first of them is handed out.

        Raises:
            UsageError: if some of them failed; the others are finished.
            Interrupted: after a signal.
        """

        def begins() -> None:
            on_begin()
            begin_folds(self.tracker, folder, data)

        jobs, executor = self.jobs(data, folder, runs, recipe)
        failed = hand_out(jobs, executor, resume_command=again, what=FOLD, on_begin=begins, told_duration=told_duration)
        if failed:
            lines = "\n".join(f"  {name}: {why}" for name, why in failed.items())
            raise UsageError(
                f"{printable(folder)}: {counted(len(failed), FOLD)} failed, the others are trained; go on with: {again}\n"
                + lines
            )

    def dry_run(self, data: Path, folder: Path, recipe: Recipe) -> DryRun:
        """What would be begun or submitted."""
        check_folds(Dataset.from_folder(data), recipe)
        runs = [folder / f"fold_{number}" for number in range(recipe.training.folds or 0)]
        return dry_run(*self.jobs(data, folder, runs, recipe))
