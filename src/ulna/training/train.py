"""The verb `train`: one network, one split, one seed, from a folder of images to a run folder."""

from __future__ import annotations

import json
import logging
import platform
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ulna import figures
from ulna.data.augment import Augment
from ulna.data.case import Case
from ulna.data.checking import inspect
from ulna.data.dataset import Dataset
from ulna.data.dataset import split as split_cases
from ulna.data.read import encode_labels
from ulna.data.splitting import split_hash
from ulna.errors import UsageError
from ulna.evaluation import Evaluation, evaluate_pairs
from ulna.files import read_tensors, write_text
from ulna.inference.arithmetic import choose_precision, default_device
from ulna.losses import make_loss
from ulna.networks.build import count_parameters, validate
from ulna.planning import fingerprint, make_plan, recommended, resolve
from ulna.progress import track
from ulna.recipe import Labels, Plan, Recipe, Split, from_yaml, merged, parse, read_yaml, set_value, to_yaml
from ulna.segmenter import Segmenter, network_for, read_split
from ulna.training.loop import Loop, State
from ulna.training.samples import PreparedCases, Samples, worker_count

log = logging.getLogger("ulna")

METRICS = ("epoch", "lr", "train_loss", "val_dice", "val_iou", "seconds")


@dataclass(frozen=True)
class Run:
    """A finished training: its folder and what stands in its summary."""

    folder: Path
    summary: dict[str, Any]

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
    seed: int | None = None,
    fold: int | None = None,
    recipe: Path | str | None = None,
    set: Sequence[str] = (),
    resume: bool = False,
) -> Run:
    """Train a network on a folder of images and evaluate it on the cases kept aside.

    Args:
        data: a data set in any known layout: a folder, or an .npz file.
        model: name of a network, see `ulna models`; unetpp by default.
        out: the run folder; runs/DATA-MODEL by default.
        epochs: at most so many.
        max_hours: at most so long; the learning rate falls over this time.
        seed: of the weights, the split where none is given, and every random change.
        fold: which fold of the data set's folds.
        recipe: a YAML file with everything else.
        set: changes of single fields, KEY=VALUE, such as optimizer.lr=3e-4.
        resume: go on with the run in `out` after a stop, or for more epochs.

    Raises:
        UsageError: if anything about the data, the model or the folder is wrong; nothing is written then.

    Example:
        ulna train data/nuclei --model unetpp --max-hours 1
    """
    data, out = Path(data), None if out is None else Path(out)
    notes: tuple[str, ...] = ()
    if resume:
        fixed = {"--model": model, "--seed": seed, "--fold": fold, "--recipe": recipe, "--set": tuple(set) or None}
        given = [flag for flag, value in fixed.items() if value is not None]
        if given:
            raise UsageError(
                f"{', '.join(given)}: a run goes on as it began; with --resume only --epochs and --max-hours change"
            )
        folder = _existing(out)
        chosen, plan, split = _stored(folder, epochs=epochs, max_hours=max_hours)
        dataset = Dataset.from_folder(data)
    else:
        chosen = choose(model=model, recipe=recipe, epochs=epochs, max_hours=max_hours, seed=seed, fold=fold, set=set)
        folder = _new(data, chosen.model, out)
        _validate(chosen)
        dataset, plan, split, notes = _prepare(data, chosen)
        chosen = chosen.replaced(architecture=resolve(chosen, plan))
        _start(folder, chosen, plan, split)
    with _logged_to(folder / "log.txt"):
        for note in notes:
            log.info("note: %s", note)
        state, parameters = _train(
            folder, data, dataset, split, chosen, plan, go_on=resume, extended=epochs is not None
        )
        summary = _summarise(folder, data, dataset, split, chosen, plan, state, parameters)
    return Run(folder, summary)


def choose(
    *,
    model: str | None,
    recipe: Path | str | None,
    epochs: int | None = None,
    max_hours: float | None = None,
    seed: int | None = None,
    fold: int | None = None,
    set: Sequence[str] = (),
) -> Recipe:
    """The recipe of a command: what the model recommends, then the file, then the flags, then --set.

    Raises:
        UsageError: for a name, key or value that does not exist, with the nearest.
    """
    stated = read_yaml(Path(recipe)) if recipe is not None else {}
    if model is not None:
        stated.pop("architecture", None)  # a model named in the command replaces the file's network
    name = model or stated.get("model", "unetpp")
    base = recommended(str(name)).model_dump()
    chosen = parse(Recipe, merged(base, {**stated, "model": name}), source=str(recipe or ""))
    flags = {"epochs": epochs, "max_hours": max_hours, "seed": seed, "fold": fold}
    changes = {flag: value for flag, value in flags.items() if value is not None}
    if changes:
        chosen = chosen.replaced(training=chosen.training.replaced(**changes))
    for assignment in [set] if isinstance(set, str) else set:
        if assignment.partition("=")[0].strip() == "model":
            raise UsageError(f"--set {assignment}: choose the network with --model")
        chosen = set_value(chosen, assignment)
    return chosen


def _validate(recipe: Recipe) -> None:
    """Build the network and the loss once without memory, so that a wrong name costs no reading of data."""
    strides = recipe.architecture.strides or ()
    dims = 3 if any(len(step) == 3 for step in strides) else 2
    network = validate(recipe.architecture, in_channels=1, classes=1, spatial_dims=dims)
    loss = make_loss(recipe.loss.kind, options=recipe.loss.options, heads=recipe.loss.heads, multilabel=False)
    with torch.device("meta"), torch.no_grad():
        loss.weights_for(network.eval().outputs(torch.zeros(1, 1, *network.divisor)))


def _existing(out: Path | None) -> Path:
    if out is None or not (out / "recipe.yaml").exists():
        raise UsageError(f"--resume needs --out with the folder of a run; {out or 'none'} is not one")
    return out


def _new(data: Path, model: str, out: Path | None) -> Path:
    if out is not None:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            run = (out / "recipe.yaml").exists()
            what = "holds a run already; add --resume to go on with it" if run else "is not empty"
            raise UsageError(f"{out}: {what}, or choose another --out")
        return _writable(out)
    name = f"{data.resolve().name.removesuffix('.npz')}-{model.replace('/', '_')}"
    numbers = ("", *(f"-{n}" for n in range(2, 10_000)))
    free = (Path("runs") / (name + number) for number in numbers)
    return _writable(next(folder for folder in free if not folder.exists()))


def _writable(folder: Path) -> Path:
    """Refuse a folder that cannot be made before hours of work; leaves nothing behind."""
    nearest = folder
    while not nearest.exists():
        nearest = nearest.parent
    probe = nearest / f".ulna-{time.time_ns()}"
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written ({error.strerror}); choose another --out") from None
    return folder


def _prepare(data: Path, recipe: Recipe) -> tuple[Dataset, Plan, Split, tuple[str, ...]]:
    dataset = Dataset.from_folder(data)
    split_cases(dataset, recipe.training.seed, recipe.training.fold)  # what is impossible is told before all is read
    report = inspect(dataset)
    report.raise_if_bad()
    split = split_cases(dataset.grouped(report.copies), recipe.training.seed, recipe.training.fold)
    labels = report.labels or Labels()
    plan = make_plan(fingerprint(report, split.train, dataset.channel_names), recipe, labels)
    return dataset, plan, split, report.notes


def _start(folder: Path, recipe: Recipe, plan: Plan, split: Split) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "plan.yaml", to_yaml(plan))
    write_text(folder / "splits.json", json.dumps(split.model_dump(mode="json"), indent=1))
    write_text(folder / "recipe.yaml", to_yaml(recipe))


def _stored(folder: Path, *, epochs: int | None, max_hours: float | None) -> tuple[Recipe, Plan, Split]:
    recipe, plan = from_yaml(Recipe, folder / "recipe.yaml"), from_yaml(Plan, folder / "plan.yaml")
    split = read_split(folder)
    changes = {k: v for k, v in {"epochs": epochs, "max_hours": max_hours}.items() if v is not None}
    if changes:
        recipe = recipe.replaced(training=recipe.training.replaced(**changes))
        write_text(folder / "recipe.yaml", to_yaml(recipe))
    return recipe, plan, split


def _train(
    folder: Path,
    data: Path,
    dataset: Dataset,
    split: Split,
    recipe: Recipe,
    plan: Plan,
    *,
    go_on: bool,
    extended: bool,
) -> tuple[State, int]:
    torch.manual_seed(recipe.training.seed)  # dropout draws from torch's own stream
    generator = torch.Generator().manual_seed(recipe.training.seed)
    network = network_for(recipe, plan, generator)
    parameters = count_parameters(network)
    log.info(
        "%s: %s parameters, %dD, patch %s, batch %d; %d train, %d val, %d test cases; seed %d",
        recipe.model, f"{parameters:,}", plan.spatial_dims, "x".join(map(str, plan.patch)), plan.batch,
        len(split.train), len(split.val), len(split.test), recipe.training.seed,
    )  # fmt: skip
    workers = worker_count(recipe.training.workers, default_device().type)
    train_cases = PreparedCases(_cases(dataset, split.train), plan, copies=workers)
    samples = Samples(
        train_cases,
        augment=Augment(recipe.augmentation, plan),
        foreground=recipe.training.foreground,
        seed=recipe.training.seed,
    )
    loop = Loop(
        network,
        plan,
        recipe,
        val=PreparedCases(_cases(dataset, split.val), plan, on_grid=False),
        samples=samples,
        folder=folder,
        resume_command=shlex.join(["ulna", "train", str(data), "--out", str(folder), "--resume"]),
        on_epoch=lambda state: _record(folder, state),
    )
    if go_on and not loop.resume():
        log.info("no checkpoint yet: starting from the first epoch")
    if extended:
        loop.state.patience_from = loop.state.epoch
    return loop.run(), parameters


def _cases(dataset: Dataset, ids: Sequence[str]) -> list[Case]:
    by_id = {case.id: case for case in dataset.cases}
    return [by_id[name] if name in by_id else dataset.case(name) for name in ids]  # case() says which one is missing


def _record(folder: Path, state: State) -> None:
    """metrics.csv and the curves, after every epoch."""
    lines = [",".join(METRICS), *(",".join(repr(row[name]) for name in METRICS) for row in state.rows)]
    write_text(folder / "metrics.csv", "\n".join(lines) + "\n")
    figures.curves(state.rows, folder / "figures" / "curves.png")


def _summarise(
    folder: Path,
    data: Path,
    dataset: Dataset,
    split: Split,
    recipe: Recipe,
    plan: Plan,
    state: State,
    parameters: int,
) -> dict[str, Any]:
    """Evaluate the best weights on the test cases (the validation cases where there are none), draw, and write it down."""
    start = time.perf_counter()
    part = "test" if split.test else "val"
    evaluation, drawn = _final(folder, _cases(dataset, getattr(split, part)), plan)
    facts = read_tensors(folder / "weights.safetensors").state
    summary = {
        "model": recipe.model,
        "data": data.resolve().name,
        "parameters": parameters,
        "epochs": state.epoch,
        "best_epoch": facts["epoch"],
        "val_dice": facts["val_dice"],
        "evaluated_on": part,
        part: evaluation.summary,
        "wall_seconds": round(state.elapsed_s + time.perf_counter() - start, 1),
        "training_seconds": round(state.elapsed_s, 1),
        "peak_memory_mb": _peak_memory_mb(),
        "device": _device(),
        "precision": choose_precision(recipe.training.precision, default_device()),
        "threads": torch.get_num_threads(),
        "seed": recipe.training.seed,
        "split_hash": split_hash(split),
        "data_fingerprint": plan.fingerprint.get("digest"),
        "versions": {name: version(name) for name in ("ulna", "torch", "numpy", "monai")}
        | {"python": platform.python_version()},
        "command": shlex.join(
            ["ulna", "train", str(data), "--recipe", str(folder / "recipe.yaml"), "--out", "NEW_FOLDER"]
        ),
    }
    write_text(folder / "summary.json", json.dumps(summary, indent=1, allow_nan=False))
    figures.panels(drawn, folder / "figures" / f"{part}.png")
    return summary


Panel = tuple[str, list[tuple[str, Any]]]


def _final(folder: Path, cases: Sequence[Case], plan: Plan) -> tuple[Evaluation, list[Panel]]:
    """Measures over the cases, and pictures of the three with the lowest and the three with the highest Dice."""
    segmenter = Segmenter.load(folder)

    def pairs() -> Iterator[tuple[str, Any, Any, Any]]:
        for case in track(cases, "evaluating"):
            volume = case.read_image()
            yield case.id, segmenter(volume).mask, encode_labels(case.read_labels(), plan.labels), volume

    evaluation = evaluate_pairs(pairs(), plan.labels)
    order = sorted(cases, key=lambda case: evaluation.case_dice(case.id))
    drawn = [order[i] for i in sorted({*range(min(3, len(order))), *range(max(0, len(order) - 3), len(order))})]
    panels: list[Panel] = []
    for case in drawn:
        volume = case.read_image()
        mask, reference = segmenter(volume).mask, encode_labels(case.read_labels(), plan.labels)
        title = f"{case.id}  Dice {evaluation.case_dice(case.id):.3f}"
        panels.append((title, figures.comparison(volume.array, mask, reference)))
    return evaluation, panels


def _peak_memory_mb() -> float:
    """Peak memory of this process (of the GPU where one is used)."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def _device() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU {platform.processor() or platform.machine()}"


@contextmanager
def _logged_to(path: Path) -> Iterator[None]:
    """Everything that ulna logs while this runs also goes to the run's log.txt."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    log.addHandler(handler)
    level = log.level
    log.setLevel(min(level or logging.INFO, logging.INFO))  # also when called from a script that set no level
    try:
        yield
    finally:
        log.setLevel(level)
        log.removeHandler(handler)
        handler.close()
