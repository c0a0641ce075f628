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
from ulna.networks.build import count_parameters, named, validate
from ulna.planning import fingerprint, make_plan, recommended, resolve
from ulna.progress import track
from ulna.recipe import Labels, Plan, Recipe, Split, from_yaml, set_value, to_yaml
from ulna.segmenter import Segmenter, network_for
from ulna.training.loop import Loop, State
from ulna.training.samples import PreparedCases, Samples

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
    data: Path,
    /,
    *,
    model: str | None = None,
    out: Path | None = None,
    epochs: int | None = None,
    max_hours: float | None = None,
    seed: int | None = None,
    fold: int | None = None,
    recipe: Path | None = None,
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
    data = Path(data)
    chosen = choose(model=model, recipe=recipe, epochs=epochs, max_hours=max_hours, seed=seed, set=set)
    folder = _folder(data, chosen.model, out, resume)
    if resume:
        chosen, plan_, split = _stored(folder, epochs=epochs, max_hours=max_hours)
        dataset = Dataset.from_folder(data)
    else:
        validate(chosen.architecture, in_channels=1, classes=1, spatial_dims=2)
        dataset, plan_, split = _prepare(data, chosen, fold)
        chosen = chosen.replaced(architecture=resolve(chosen, plan_))
        _start(folder, chosen, plan_, split)
    with _logged_to(folder / "log.txt"):
        start = time.perf_counter()
        state, network_size = _train(folder, dataset, split, chosen, plan_, resume)
        summary = _summarise(
            folder, data, dataset, split, chosen, plan_, state, network_size, time.perf_counter() - start
        )
    return Run(folder, summary)


def choose(
    *,
    model: str | None,
    recipe: Path | None,
    epochs: int | None = None,
    max_hours: float | None = None,
    seed: int | None = None,
    set: Sequence[str] = (),
) -> Recipe:
    """The recipe of a command: the file, then the model, then the flags, then --set.

    Raises:
        UsageError: for a name, key or value that does not exist, with the nearest.
    """
    chosen = from_yaml(Recipe, recipe) if recipe is not None else recommended(model or "unetpp")
    if recipe is not None and model is not None:
        chosen = chosen.replaced(model=model, architecture=named(model))
    flags = {"epochs": epochs, "max_hours": max_hours, "seed": seed}
    for name, value in flags.items():
        if value is not None:
            chosen = set_value(chosen, f"training.{name}={value}")
    for assignment in set:
        chosen = set_value(chosen, assignment)
    return chosen


def _folder(data: Path, model: str, out: Path | None, resume: bool) -> Path:
    if resume:
        if out is None or not (out / "recipe.yaml").exists():
            raise UsageError(f"--resume needs --out with the folder of a run; {out or 'none'} is not one")
        return out
    if out is not None:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            what = (
                "holds a run already; add --resume to go on with it"
                if (out / "recipe.yaml").exists()
                else "is not empty"
            )
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


def _prepare(data: Path, recipe: Recipe, fold: int | None) -> tuple[Dataset, Plan, Split]:
    dataset = Dataset.from_folder(data)
    split = split_cases(dataset, recipe.training.seed, fold)
    report = inspect(dataset)
    report.raise_if_bad()
    for note in (*dataset.notes, *report.notes):
        log.info("note: %s", note)
    return dataset, make_plan(fingerprint(report, dataset.channel_names), recipe, report.labels or Labels()), split


def _start(folder: Path, recipe: Recipe, plan: Plan, split: Split) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "plan.yaml", to_yaml(plan))
    write_text(folder / "splits.json", json.dumps(split.model_dump(mode="json"), indent=1))
    write_text(folder / "recipe.yaml", to_yaml(recipe))


def _stored(folder: Path, *, epochs: int | None, max_hours: float | None) -> tuple[Recipe, Plan, Split]:
    recipe, plan = from_yaml(Recipe, folder / "recipe.yaml"), from_yaml(Plan, folder / "plan.yaml")
    split = Split(**json.loads((folder / "splits.json").read_text(encoding="utf-8")))
    changes = {k: v for k, v in {"epochs": epochs, "max_hours": max_hours}.items() if v is not None}
    if changes:
        recipe = recipe.replaced(training=recipe.training.replaced(**changes))
        write_text(folder / "recipe.yaml", to_yaml(recipe))
    return recipe, plan, split


def _train(folder: Path, dataset: Dataset, split: Split, recipe: Recipe, plan: Plan, resume: bool) -> tuple[State, int]:
    torch.manual_seed(recipe.training.seed)  # dropout draws from torch's own stream
    generator = torch.Generator().manual_seed(recipe.training.seed)
    network = network_for(recipe, plan, generator)
    parameters = count_parameters(network)
    log.info(
        "%s: %s parameters, %dD, patch %s, batch %d; %d train, %d val, %d test cases; seed %d",
        recipe.model, f"{parameters:,}", plan.spatial_dims, "x".join(map(str, plan.patch)), plan.batch,
        len(split.train), len(split.val), len(split.test), recipe.training.seed,
    )  # fmt: skip
    augment = Augment(recipe.augmentation, plan)
    train_cases = PreparedCases(_cases(dataset, split.train), plan)
    loop = Loop(
        network,
        plan,
        recipe,
        val=PreparedCases(_cases(dataset, split.val), plan, on_grid=False),
        samples=Samples(train_cases, augment=augment, foreground=recipe.training.foreground, seed=recipe.training.seed),
        folder=folder,
        on_epoch=lambda state: _record(folder, state),
    )
    if resume and not loop.resume():
        log.info("no checkpoint yet: starting from the first epoch")
    return loop.run(), parameters


def _cases(dataset: Dataset, ids: Sequence[str]) -> list[Case]:
    return [dataset.case(name) for name in ids]


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
    wall_s: float,
) -> dict[str, Any]:
    """Evaluate the best weights on the test cases (the validation cases where there are none), draw, and write it down."""
    part = "test" if split.test else "val"
    evaluation, worst, best = _final(folder, _cases(dataset, getattr(split, part)), plan)
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
        "wall_seconds": round(wall_s, 1),
        "training_seconds": round(state.elapsed_s, 1),
        "peak_memory_mb": _peak_memory_mb(),
        "device": _device(),
        "threads": torch.get_num_threads(),
        "seed": recipe.training.seed,
        "split_hash": split_hash(split),
        "versions": {name: version(name) for name in ("ulna", "torch", "numpy", "monai")}
        | {"python": platform.python_version()},
        "command": shlex.join(["ulna", "train", str(data), "--recipe", str(folder / "recipe.yaml"), "--out", "NEW_FOLDER"]),
    }
    write_text(folder / "summary.json", json.dumps(summary, indent=1))
    figures.panels([*worst, *best], folder / "figures" / f"{part}.png")
    return summary


Panel = tuple[str, list[tuple[str, Any]]]


def _final(folder: Path, cases: Sequence[Case], plan: Plan) -> tuple[Evaluation, list[Panel], list[Panel]]:
    """Measures over the cases, and the worst and best three of them drawn."""
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
    return evaluation, panels[: len(panels) // 2], panels[len(panels) // 2 :]


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
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()
