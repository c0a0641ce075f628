"""The verb `train`: one network, one split, one seed, from a folder of images to a run folder."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ulna.data.layout.pseudonyms import opened
from ulna.errors import UsageError, printable
from ulna.executors.choosing import On
from ulna.inference.fold_runs import is_cross_validation
from ulna.planning.choosing import check_words, choose
from ulna.planning.default_network import choose_network
from ulna.planning.fitting import recipe_of
from ulna.recipe import Plan, Recipe, from_yaml
from ulna.system.device import default_device
from ulna.system.exported import refuse_exported
from ulna.system.outputs import FOLDS_FILE
from ulna.system.ranks import check_devices
from ulna.system.threads import check_threads, choose_threads, computing_with
from ulna.system.trackers import open_tracker
from ulna.training.compiling import compiles
from ulna.training.fold_jobs import Together
from ulna.training.folds import cross_validate
from ulna.training.init import read_start
from ulna.training.run_folder import existing_folder, new_folder
from ulna.training.same_command import check_same_command, permit_code, same_threads
from ulna.training.single import Run, train_into, words_again
from ulna.training.tracking import tell_folds
from ulna.training.within import bytes_of, reading_within
from ulna.verbs import to_argv

log = logging.getLogger("ulna")


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
    max_ram: float | None = None,
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
            out: one after the other, or one a GPU; on Ray and SLURM as many as these begin. SLURM holds every array to it by
            itself: folds that ask for the same are one array, and one that is tried again is in another.
        on: of --folds: where they are trained: local, ray, ray:ADDRESS or slurm, as in `ulna compare`.
        slurm: an option of sbatch, KEY=VALUE, such as partition=gpu; may be repeated.
        dry_run: of --folds: write, begin and submit nothing; print what would be begun or submitted.
        devices: that share every batch and the validation cases: processes of a CPU, or GPUs, one each. The training is the
            same within rounding however many they are, and --resume takes any number.
        threads: that compute, kept by the run; left out, those of OMP_NUM_THREADS, else no more than processors are free.
        max_ram: GB of memory that the process may take, torch included: the step is planned by it, cases that do not fit lie
            on the disk, large images are prepared by slabs, and what cannot keep to it is refused beforehand, with the least
            that works. Of --folds --jobs it is of all processes together; on Ray and SLURM of each. The weights do not depend
            on it where the plan is the same, and --resume may be given another.
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
    limit = bytes_of(max_ram)
    if limit is not None and devices > 1:
        raise UsageError(
            f"--max-ram and --devices {devices}: no limit is kept by processes that share batches; leave one of them out"
        )
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
        check_same_command(folder, flags, limited=limit is not None)
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
            with reading_within(limit, out):
                model, why = choose_network(
                    data, model=model, recipe=recipe, set=set, planned=given is not None, by_headers=limit is not None
                )
        else:
            model, why = theirs.model, f"{theirs.model}, the network of --init {printable(begins)}"
        chosen = choose(
            model=model, recipe=recipe, epochs=epochs, max_hours=max_hours, budget=budget, seed=seed, fold=fold,
            folds=folds, split=split, init=begins, max_ram=max_ram, set=set,
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
    names = opened(pseudonymise, folder, dry_run=dry_run)
    if dry_run:
        of_all = chosen or from_yaml(Recipe, folder / FOLDS_FILE)
        raise Together(where, threads, why, names, tracker, limit).dry_run(data, folder, of_all)
    with computing_with(choose_threads(threads)):
        if folds is None:
            return train_into(
                data, folder, chosen, given=given, source=str(plan), asked_split=split, model_because=why, names=names,
                tracker=tracker, devices=devices, limit=limit, **limits,
            )  # fmt: skip

        def one_fold(run: Path, own: Recipe | None, limits: dict[str, Any], to_come: Sequence[int]) -> dict[str, Any]:
            return train_into(
                data, run, own, model_because=why, names=names, tracker=tracker, devices=devices, shared=True,
                limit=limit, to_come=to_come, **limits,
            ).summary  # fmt: skip

        together = Together(where, threads, why, names, tracker, limit)
        words = [*words_again(names, tracker, devices, limit), *to_argv(where.flags(jobs, on, slurm))]
        summary = cross_validate(
            data, folder, chosen, one_fold, limits,
            key=words, all_folds=together.train if together.needed and devices == 1 else None,
        )  # fmt: skip
        tell_folds(tracker, folder, data)
        return Run(folder, summary)


def _read_plan(path: Path, *, named: bool) -> Plan:
    """A plan to train by; it names the network, unless that is named beside it."""
    refuse_exported([path], "plan")
    plan = from_yaml(Plan, path)
    if plan.recipe is None and not named:
        raise UsageError(
            f"{printable(path)}: does not say for which network it was made; name that with --model, or give its --recipe"
        )
    return plan
