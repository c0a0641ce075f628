"""One training of nnU-Net's in a process: `python -m ulna.study.nnunet_worker DATA RECIPE RUN [KEY]`.

It converts the data, calls nnU-Net's own commands one after the other, and scores its masks as all are scored. What is done
stays done: a training that was stopped goes on from nnU-Net's own checkpoint.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ulna.data.layout.case import read_reference
from ulna.data.layout.dataset import Dataset, split_hash
from ulna.data.layout.pseudonyms import named, opened
from ulna.errors import Interrupted, UsageError, printable
from ulna.evaluation.known import known_alone
from ulna.evaluation.pair import Pair
from ulna.evaluation.scores import Evaluation
from ulna.inference.scoring import scores_of
from ulna.recipe import Plan, Recipe, Split, from_yaml, parse
from ulna.study.nnunet import COMMANDS, SHARED, STEPS, TRAINERS, Environment, clean, find, read_row
from ulna.study.nnunet_data import ENDING, names_of, read_mask, splits_of, write_dataset
from ulna.study.worker import work
from ulna.system.device import default_device, device_name
from ulna.system.files import write_text
from ulna.system.locking import locked
from ulna.system.outputs import make_folder
from ulna.system.passed_on import without_places
from ulna.system.progress import track
from ulna.system.reading import read_json, read_json_object
from ulna.system.signals import Stopped, on_first_signal
from ulna.version import version

log = logging.getLogger("ulna")

LOG_FILE = "nnunet.log"  # what nnU-Net says
TRAINER = "trainer"  # a folder of the run, where nnU-Net finds one that it does not have
ITS_WORDS = "predict_from_raw_data_args.json"  # that it leaves beside the masks, with folders of this machine
ENDS_S = 20.0  # a command has to end after it was asked to
PLAN, TRAIN, PREDICT = COMMANDS


class Training:
    """One training of nnU-Net's.

    Args:
        data: the data set.
        recipe: what it is called, how many epochs, and how cases are scored.
        run: its folder: nnU-Net's results, its masks, and the figures.
        key: the file of pseudonyms.
    """

    def __init__(self, data: Path, recipe: Recipe, run: Path, key: Path | None) -> None:
        self.recipe, self.run, self.shared = recipe, run, run.parent.parent.parent / SHARED
        self.plan = from_yaml(Plan, self.shared / "plan.yaml")
        splits = [parse(Split, one, source=str(self.shared)) for one in read_json(self.shared / "splits.json")]
        fold = recipe.training.fold or 0
        self.split = splits[fold if len(splits) > 1 else 0]
        names = opened(key, run)
        self.dataset = named(names, Dataset.from_folder(data)).declaring(recipe.classes).of_dims(self.plan.image_dims)
        found = find()
        if isinstance(found, str):
            raise UsageError(f"nnU-Net is not there any more: {found}")
        self.environment: Environment = found
        # a log is passed on with its study; tracebacks name what is installed beside the commands
        self.shown = without_places(data, self.shared.parent, found.folder, found.folder.parent)
        self.number = fold + 1
        self.name = f"Dataset{self.number:03d}_ulna"
        self.configuration, _, self.steps = read_row(recipe.model)
        short = self.steps < STEPS
        self.trainer = f"ulna_{self.steps}_steps" if short else TRAINERS[recipe.training.most_epochs]
        device = default_device().type
        self.device = device if device in ("cuda", "mps") else "cpu"

    def run_all(self) -> None:
        """Whatever is left to do, to the figures."""
        if self.steps < STEPS:
            make_folder(self.run / TRAINER)
            write_text(self.run / TRAINER / f"{self.trainer}.py", less_than_an_epoch(self.trainer, self.steps))
        raw, prepared = self.shared / "raw", self.shared / "preprocessed" / self.name
        done = prepared / f"{self.configuration}.done"
        with locked(self.shared, wait=True):  # for all trainings of the study
            write_dataset(raw / self.name, self.dataset, self.plan, self.split)
            if not done.exists():
                few = str(self._processes())
                self._call(PLAN, "-d", self.number, "-c", self.configuration, "-npfp", few, "-np", few)
                write_text(prepared / "splits_final.json", json.dumps(splits_of(self.split, self.dataset), indent=1))
                write_text(done, "")
        if not self._trained():
            began, before = time.monotonic(), self._spent()
            try:
                goes_on = ["--c"] if any(self.run.glob("results/*/*/fold_0/checkpoint_*.pth")) else []
                which = (self.number, self.configuration, 0, "-tr", self.trainer, "-device", self.device)
                self._call(TRAIN, *which, *goes_on)
            finally:
                seconds = before["training_seconds"] + time.monotonic() - began
                peak = max(before["peak_memory_mb"], _peak_of_children_mb())
                told = {"training_seconds": round(seconds, 3), "peak_memory_mb": round(peak, 1)}
                write_text(self.run / "spent.json", json.dumps(told))
            if not self._trained():
                raise UsageError(
                    f"nnU-Net ended without its last checkpoint; what it said stands in {LOG_FILE} of the run"
                )
        make_folder(self.run / "masks")
        self._call(
            PREDICT, "-i", raw / self.name / "imagesTs", "-o", self.run / "masks", "-d", self.number,
            "-c", self.configuration, "-f", 0, "-tr", self.trainer, "-device", self.device, "-npp", 1, "-nps", 1,
        )  # fmt: skip
        (self.run / "masks" / ITS_WORDS).unlink(missing_ok=True)
        self._summarise(self._scored())

    def _scored(self) -> Evaluation:
        cases, labels = self.dataset.cases_of(self.split.test or self.split.val), self.plan.labels
        scores = scores_of(self.recipe.evaluation, self.plan, cases)
        names = names_of(self.dataset.cases)
        for case in track(cases, "evaluating"):
            volume = case.read_image()
            reference = read_reference(case, volume, self.plan)
            mask = read_mask(self.run / "masks" / f"{names[case.id]}{ENDING}", reference)
            scores.add(Pair(case.id, *known_alone(mask, reference, labels), volume))
        return scores.evaluation()

    def _summarise(self, evaluation: Evaluation) -> None:
        part, epochs = "test" if self.split.test else "val", self.recipe.training.most_epochs
        summary = {
            "model": self.recipe.model,
            "external": "nnU-Net",
            "epochs": epochs,
            "best_epoch": epochs,  # it takes the last one
            "trainer": self.trainer,
            "steps_per_epoch": self.steps,
            "evaluated_on": part,
            part: evaluation.summary,
            **self._spent(),
            "device": device_name(),
            "seed": self.recipe.training.seed,
            "split_hash": split_hash(self.split),
            "data_fingerprint": self.plan.fingerprint.digest,
            "versions": {
                "nnunetv2": self.environment.version(),
                "ulna": version("ulna"),
                "python": platform.python_version(),
            },
        }
        evaluation.write_rows(self.run / "cases.csv")
        write_text(self.run / "summary.json", json.dumps(summary, indent=1, allow_nan=False))

    def _trained(self) -> bool:
        return any(self.run.glob("results/*/*/fold_0/checkpoint_final.pth"))

    def _spent(self) -> dict[str, float]:
        """Of all processes that trained so far."""
        stored = read_json_object(self.run / "spent.json") if (self.run / "spent.json").exists() else {}
        return {name: float(stored.get(name, 0.0)) for name in ("training_seconds", "peak_memory_mb")}

    def _processes(self) -> int:
        return max(1, int(os.environ.get("OMP_NUM_THREADS", "1")))

    def _call(self, command: str, *words: object) -> None:
        """Run a command of nnU-Net's to its end.

        Raises:
            UsageError: if it fails, with the last thing that it said.
        """
        folders = {
            "raw": self.shared / "raw",
            "preprocessed": self.shared / "preprocessed",
            "results": self.run / "results",
        }
        environment = clean() | {f"nnUNet_{name}": str(folder.resolve()) for name, folder in folders.items()}
        if self.steps < STEPS:
            theirs = environment.get("nnUNet_extTrainer")  # which other trainers may lie in
            environment["nnUNet_extTrainer"] = os.pathsep.join(
                filter(None, (str((self.run / TRAINER).resolve()), theirs))
            )
        # of augmentation, and of the validation and the prediction, each of which loads torch anew
        for name in ("nnUNet_n_proc_DA", "nnUNet_def_n_proc"):
            environment.setdefault(name, str(self._processes()))
        for folder in folders.values():
            make_folder(folder)
        log.info("%s %s", command, " ".join(str(word) for word in words if not isinstance(word, Path)))
        told = self.run / LOG_FILE
        with told.open("ab") as file:
            process = subprocess.Popen(
                [self.environment.command(command), *map(str, words)],
                stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment, start_new_session=True,
            )  # fmt: skip
            try:
                code = process.wait()
            finally:
                _end(process)
        text = self.shown(told.read_text(encoding="utf-8", errors="replace"))
        write_text(told, text)
        if code:
            said = text.strip().splitlines() or ["it said nothing"]
            raise UsageError(f"{command} ended with exit code {code}: {printable(said[-1])[:300]}")


def less_than_an_epoch(name: str, steps: int) -> str:
    """A trainer for nnU-Net's environment that is its own but for the steps of its one epoch."""
    return f"""from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class {name}(nnUNetTrainer):
    def initialize(self):
        self.num_epochs = 1
        self.num_iterations_per_epoch = {steps}
        self.num_val_iterations_per_epoch = {max(1, steps // 5)}
        super().initialize()
"""


def _peak_of_children_mb() -> float:
    """0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # not on Windows
        return 0.0
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a command, and what it began, where it still runs."""
    if process.poll() is not None:
        return
    for forced in (False, True):
        with suppress(ProcessLookupError):
            if hasattr(os, "killpg"):
                os.killpg(process.pid, signal.SIGKILL if forced else signal.SIGTERM)
            elif forced:  # no groups of processes: what the command began may go on
                process.kill()
            else:
                process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(ENDS_S)
            return


def train(data: Path, recipe: Path, run: Path, key: Path | None) -> None:
    """Train, or go on.

    Raises:
        Interrupted: after a signal; nnU-Net goes on from its last checkpoint.
    """

    def stop(number: int) -> None:
        raise Stopped(number)

    try:
        with on_first_signal(stop):
            Training(data, from_yaml(Recipe, recipe), run, key).run_all()
    except Stopped as stopped:
        raise Interrupted(stopped.number, "the command of the study") from None


def main(words: Sequence[str]) -> int:
    """The words of the command line; returns an exit code as `ulna` has them."""
    data, recipe, run, *key = map(Path, words)
    which: Any = key[0] if key else None
    return work(data, run, lambda: train(data, recipe, run, which))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
