"""The verb `prune`: every level of a deep-supervised run measured on this machine, and the run folder of one of them.

A level is the part of a nested network that one of its heads depends on: L1 to L4 of UNet++ end at x0_1 to x0_4 (Sec. 3.2
and Fig. 1c). Whatever the topology, the levels are the heads that answer at the image's own size, in the order of the wiring.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import platform
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ulna.data.layout.case import Case
from ulna.data.layout.dataset import Dataset
from ulna.data.layout.pseudonyms import check_key, named, opened
from ulna.data.volume import Volume
from ulna.errors import UsageError, counted
from ulna.evaluation.scores import Evaluation
from ulna.inference.levels import Level, levels_of, named_level, pruned
from ulna.inference.making import TOO_LARGE
from ulna.inference.scoring import predict_pair, scores_for
from ulna.inference.segmenter import Segmenter, read_split
from ulna.networks.build import count_parameters
from ulna.networks.profile.cost import count_gmacs
from ulna.recipe import Recipe, Split, from_yaml, to_yaml
from ulna.study.pruning_figure import draw_levels
from ulna.study.timing import Times, time_in_turn
from ulna.system.device import device_name
from ulna.system.files import Tensors, move_whole, read_tensors, staged, write_tensors, write_text
from ulna.system.locking import locked
from ulna.system.outputs import RUN_FILE, check_folder, check_free
from ulna.system.passed_on import stored_command
from ulna.system.progress import track
from ulna.system.reading import read_json_object
from ulna.training.summary import final_part
from ulna.verbs import to_argv
from ulna.version import version

log = logging.getLogger(__name__)

# Times: so many predictions of every level, fewer where they take long
ROUNDS = 20
LONGEST_S = 120.0

COLUMNS = (
    "level", "head", "parameters", "gmacs", "cases", "n", "both_empty",
    "dice", "dice_low", "dice_high", "iou", "iou_low", "iou_high", "p50_ms", "p95_ms", "cpu_p50_ms", "cpu_p95_ms",
    "memory_mb",
)  # fmt: skip
# of the parent's summary: what holds for a part of its network too
INHERITED = ("model", "data", "epochs", "best_epoch", "seed", "split_hash", "data_fingerprint")
MEASURED_AS = {
    "dice, iou": "mean over validation cases and classes; low and high: 95 % bootstrap interval over cases",
    "n, both_empty": "cases that count in these means, and cases in which neither reference nor prediction holds a class",
    "p50_ms, p95_ms": "wall time from an image in memory to its mask; every round runs every level once on one image, and "
    "each round begins with another level",
    "cpu_p50_ms, cpu_p95_ms": "time of all the process's threads on the CPU, for the same predictions",
    "gmacs": "billions of multiply-accumulates for one image of the plan's patch",
    "memory_mb": "estimate, in MiB, of what predicting the largest of these images adds to the program at its peak: maps, "
    "image, result and the weights, also those with fused batch norm",
}


@dataclass(frozen=True)
class Pruned:
    """What `prune` found and wrote.

    Args:
        folder: holds prune.csv and prune.json, and the run of the chosen level.
        rows: one a level, with the columns of prune.csv; what was not measured is None.
        chosen: the name of the level that `folder` is a run of; None where none was to be chosen.
    """

    folder: Path
    rows: list[dict[str, Any]]
    chosen: str | None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"folder": str(self.folder), "chosen": self.chosen, "rows": self.rows}


def prune(
    run: Path | str,
    /,
    *,
    data: Path | str | None = None,
    out: Path | str,
    level: int | None = None,
    head: str | None = None,
    latency: str | None = None,
    pseudonymise: Path | str | None = None,
) -> Pruned:
    """Measure every pruning level of a deep-supervised run on this machine, or write the smaller network of one.

    A level is chosen by its number, by its head, or by the time that an image may take; without a choice all are measured
    and drawn. Levels are measured and chosen on the validation cases of the run's own split, never on its test cases;
    those are scored once, for the level that was chosen.

    Source: UNet++ (zhou2018), Sec. 3.2 (fast mode) and Fig. 3 (accuracy and time of L1 to L4).

    Args:
        run: the folder of a run with several heads.
        data: the labelled data set of the run; needed wherever something is to be measured.
        out: a new folder for the tables and the figure, and for the smaller run if one is chosen.
        level: take this level, counted from 1.
        head: take the level that ends at this head, such as x0_2.
        latency: take the most accurate level whose median time an image is within this, such as 50ms.
        pseudonymise: the file that a run whose ids are pseudonyms was begun with.

    Raises:
        UsageError: if the run has one head, the level does not exist, none is fast enough, or `out` holds something.

    Example:
        ulna prune runs/nuclei-unetpp --data data/nuclei --latency 50ms --out runs/nuclei-fast
    """
    run, out = Path(run), Path(out)
    _check_one_choice(level=level, head=head, latency=latency)
    limit = None if latency is None else seconds_in(latency)
    flags = {"--data": data, "--level": level, "--head": head, "--latency": latency, "--pseudonymise": pseudonymise}
    stored = stored_command(["prune", run, *to_argv(flags), "--out", "NEW_FOLDER"])
    if (run / RUN_FILE).is_file():  # what cannot be pruned is not loaded
        levels_of(run, from_yaml(Recipe, run / RUN_FILE))
    parent = Segmenter.load(run)
    # levels are compared as they are: what the whole network was calibrated for holds for none of them
    parent = Segmenter(parent.network, parent.plan, parent.recipe, parent.device)
    levels = levels_of(run, parent.recipe)
    chosen = named_level(levels, level=level, head=head)
    split = read_split(run)
    if chosen is None and data is None:
        raise UsageError(
            "levels are measured on labelled images: add --data with the data set of the run, or choose with --level"
        )
    names = opened(pseudonymise, out, run)
    if data is not None:
        check_key(run, names)
    dataset = None if data is None else named(names, Dataset.from_folder(data)).of_dims(parent.plan.image_dims)
    val, final = _cases(dataset, split, "val"), _cases(dataset, split, final_part(split))
    if dataset is not None and not val:
        raise UsageError(f"{run}: its split has no validation cases to measure levels on")

    segmenters = {one.name: pruned(parent, one.head) for one in levels}
    with _new_folder(out) as folder:
        rows = [_counted(one, segmenters[one.name]) for one in levels]
        facts: dict[str, Any] = {"run": run.resolve().name}
        evaluations = _measure(rows, segmenters, val, facts) if dataset is not None else {}
        if limit is not None:
            name = pick(rows, limit)
            chosen = next(one for one in levels if one.name == name)
        if chosen is not None:
            scores: dict[str, Any] = {}
            if dataset is not None:
                part = final_part(split)
                done = evaluations[chosen.name] if part == "val" else None
                done = done or _evaluate(segmenters[chosen.name], final, f"evaluating {chosen.name} on {part} cases")
                scores = {"evaluated_on": part, part: done.summary}
            _write_run(folder, run, segmenters[chosen.name], chosen, {**scores, "command": stored})
        facts |= {"latency_ms": None if limit is None else 1000 * limit, "chosen": chosen and chosen.name, "rows": rows}
        write_text(folder / "prune.csv", _table(rows))
        write_text(folder / "prune.json", json.dumps(facts, indent=1, allow_nan=False))
        if dataset is not None:
            draw_levels(rows, folder / "prune.png", conditions=_conditions_line(facts), limit_ms=facts["latency_ms"])
    return Pruned(out, rows, chosen and chosen.name)


def seconds_in(text: str) -> float:
    """A duration in seconds.

    Raises:
        UsageError: if it is none.

    Example:
        >>> seconds_in("50ms"), seconds_in("0.2 s")
        (0.05, 0.2)
    """
    form = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(ms|s)\s*", text)
    seconds = float(form[1]) / (1000 if form[2] == "ms" else 1) if form else 0.0
    if seconds <= 0:
        raise UsageError(f"--latency {text}: expected a time with its unit, such as 50ms or 0.2s")
    return seconds


def pick(rows: Sequence[Mapping[str, Any]], limit: float) -> str:
    """The name of the level with the highest Dice among those with a median time within `limit` s; the faster of equals.

    Raises:
        UsageError: if none is fast enough; says how long each one takes.
    """
    within = [row for row in rows if row["p50_ms"] <= 1000 * limit]
    if not within:
        fastest = min(rows, key=lambda row: row["p50_ms"])
        times = ", ".join(f"{row['level']} {row['p50_ms']:.3g} ms" for row in rows)
        raise UsageError(
            f"--latency: no level segments an image within {1000 * limit:g} ms on this machine; the fastest is "
            f"{fastest['level']} with {fastest['p50_ms']:.3g} ms (medians: {times}); allow more time, or choose with "
            "--level"
        )
    return str(max(within, key=lambda row: (row["dice"], -row["p50_ms"]))["level"])


def measure_times(
    levels: Mapping[str, Callable[[Volume], object]], images: Sequence[Callable[[], Volume]]
) -> dict[str, Times]:
    """The times of every level, all on the same image in a round.

    Args:
        levels: name -> what segments an image.
        images: what reads each image; round i takes the i-th, from the first again after the last.
    """
    read = lru_cache(maxsize=1)(lambda number: images[number]())
    return time_in_turn(levels, lambda number, _: read(number % len(images)), rounds=ROUNDS, longest_s=LONGEST_S)


def _check_one_choice(**choices: object) -> None:
    given = [f"--{name}" for name, value in choices.items() if value is not None]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)}: each of them chooses a level; give one")


def _cases(dataset: Dataset | None, split: Split, part: str) -> list[Case]:
    return [] if dataset is None else [dataset.case(name) for name in getattr(split, part)]


def _counted(level: Level, segmenter: Segmenter) -> dict[str, Any]:
    """A row with what is known without an image."""
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    gmacs = count_gmacs(segmenter.network, segmenter.plan.patch)
    counts = {"parameters": count_parameters(segmenter.network), "gmacs": round(gmacs, 6)}
    return row | {"level": level.name, "head": level.head} | counts


def _measure(
    rows: Sequence[dict[str, Any]], segmenters: Mapping[str, Segmenter], cases: Sequence[Case], facts: dict[str, Any]
) -> dict[str, Evaluation]:
    """Fill the rows, and say under which conditions; the scores of every level by its name."""
    sizes: list[tuple[int, ...]] = []
    largest: Volume | None = None
    for case in cases:
        volume = case.read_image()
        sizes.append(volume.size)
        if largest is None or math.prod(volume.size) > math.prod(largest.size):
            largest = volume
    assert largest is not None
    evaluations: dict[str, Evaluation] = {}
    for row in rows:  # first, so that what a first prediction takes longer is not in the times
        segmenter = segmenters[row["level"]]
        evaluation = evaluations[row["level"]] = _evaluate(segmenter, cases, f"measuring {row['level']}")
        row["cases"], row["memory_mb"] = len(cases), round(_memory_mb(segmenter, largest), 3)
        row |= {name: evaluation.summary["mean"][name] for name in ("n", "both_empty")}
        for name in ("dice", "iou"):
            value = evaluation.summary["mean"][name]
            if value["mean"] is None:
                raise UsageError("no validation case holds a structure; levels cannot be measured on them")
            row |= {name: value["mean"], f"{name}_low": value["low"], f"{name}_high": value["high"]}
    taken = measure_times({name: one.mask for name, one in segmenters.items()}, [case.read_image for case in cases])
    for row in rows:
        times = taken[row["level"]]
        for kind, (p50, p95) in (("", times.wall_ms), ("cpu_", times.cpu_ms)):
            row |= {f"{kind}p50_ms": round(p50, 3), f"{kind}p95_ms": round(p95, 3)}
    first = next(iter(segmenters.values()))
    facts |= {
        "measured_on": "val",
        "cases": [case.id for case in cases],
        "image_size": {
            "min": np.min(sizes, axis=0).tolist(),
            "median": np.median(sizes, axis=0).tolist(),
            "max": np.max(sizes, axis=0).tolist(),
        },
        "patch": list(first.plan.patch),
        "rounds": len(taken[rows[0]["level"]].wall_s),
        "device": device_name(),
        "threads": torch.get_num_threads(),
        "precision": first.precision,
        "tta": first.recipe.inference.tta,
        "versions": {name: version(name) for name in ("ulna", "torch")} | {"python": platform.python_version()},
        "measures": MEASURED_AS,
    }
    return evaluations


def _evaluate(segmenter: Segmenter, cases: Sequence[Case], doing: str) -> Evaluation:
    scores = scores_for(segmenter)
    for case in track(cases, doing):
        volume = case.read_image()
        need = segmenter.forecast(volume, probabilities=False)
        need.check(f"{case.id}, an image of {' x '.join(map(str, volume.size))},", TOO_LARGE)
        scores.add(predict_pair(segmenter, case, volume))
    return scores.evaluation()


def _memory_mb(segmenter: Segmenter, volume: Volume) -> float:
    parts = segmenter.forecast(volume, probabilities=False).parts
    weights = sum(tensor.nbytes for tensor in segmenter.network.state_dict().values())
    return (sum(size for name, size in parts.items() if name != "program") + 2 * weights) / 2**20


def _conditions_line(facts: Mapping[str, Any]) -> str:
    size = " × ".join(f"{n:g}" for n in facts["image_size"]["median"])
    threads = counted(facts["threads"], "thread")
    return (
        f"{counted(len(facts['cases']), 'validation case')}, median size {size}; {facts['device']}, {threads}, "
        f"{facts['precision']}, "
        f"{facts['rounds']} interleaved rounds"
    )


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    table = csv.DictWriter(text, fieldnames=COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()


def _write_run(folder: Path, run: Path, segmenter: Segmenter, level: Level, facts: Mapping[str, Any]) -> None:
    """The run folder of a level: weights to the bit as in the parent, and where they came from."""
    stored = read_tensors(run / "weights.safetensors")
    kept = segmenter.network.state_dict().keys()
    origin = {"run": run.resolve().name, "level": level.name, "head": level.head}
    weights = {name: tensor for name, tensor in stored.tensors.items() if name in kept}
    write_tensors(folder / "weights.safetensors", Tensors(weights, {"pruned_from": {**origin, **stored.state}}))
    for name in ("plan.yaml", "splits.json"):
        write_text(folder / name, (run / name).read_text(encoding="utf-8"))
    before = _summary_of(run)
    summary = {
        **{name: before[name] for name in INHERITED if name in before},
        "parameters": count_parameters(segmenter.network),
        "pruned_from": {**origin, "parameters": before.get("parameters"), "val_dice": before.get("val_dice")},
        "device": device_name(),
        "precision": segmenter.precision,
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("ulna", "torch", "numpy")}
        | {"python": platform.python_version()},
        **facts,
    }
    write_text(folder / "summary.json", json.dumps(summary, indent=1, allow_nan=False))
    write_text(folder / "recipe.yaml", to_yaml(segmenter.recipe))


def _summary_of(run: Path) -> dict[str, Any]:
    """The summary of a run; empty where its training was not finished."""
    path = run / "summary.json"
    return read_json_object(path) if path.exists() else {}


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder to write into, whose files come to lie in `out` when all are written, or none of them.

    Raises:
        UsageError: if `out` holds something or cannot be written; nothing is changed then.
    """
    check_free(out)
    check_folder(out)
    with locked(out), staged(out, "prune") as staging:
        check_free(out)  # once more: what wrote into it may have ended since
        yield staging
        # last what makes a folder a run
        for path in sorted(staging.iterdir(), key=lambda path: path.name == RUN_FILE):
            move_whole(path, out / path.name)
