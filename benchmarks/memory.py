"""Peak memory of ulna's verbs with `--max-ram`: limits, sizes and numbers of classes, each in a process of its own.

    python benchmarks/memory.py                                        # predict: 1, 2, 4 GB; 64 to 256; 2, 20, 100 classes
    python benchmarks/memory.py --verbs check evaluate --sizes 64 128  # other verbs
    python benchmarks/memory.py --verbs predict check evaluate --width 2 --overlap 0 --sizes 512x512x600 --out memory-512
    python benchmarks/memory.py --verbs train --patch 32 --sizes 64 512x512x600 --out memory-train
    python benchmarks/memory.py --sizes 512x512x600 --suffix .nii.gz --spacing 1.5

The image is noise and the weights are random: nothing is said of a segmentation. Label maps hold balls, one a class on a
lattice, and the masks to score are the same balls a voxel further. The network is a U-Net of two levels and few channels, so
that large volumes end on a CPU; its maps count in the limit as those of any other. With `--width 2 --overlap 0` a volume of
512 x 512 x 600 is 640 windows of 64 voxels a side. The peak is the largest sum of resident memory of the process and its
children, sampled every 20 ms, and no less than the kernel's own high-water mark. A cell is at most the limit, or refused
beforehand with the least that works.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
import torch
from measure import conditions, write

from ulna.inference.segmenter import network_for
from ulna.recipe import PLAN_FORMAT, Labels, Plan, Recipe, Split, to_yaml
from ulna.system.files import Tensors, write_tensors


def make_run(folder: Path, classes: int, width: int, patch: int, spacing: float, overlap: float) -> Path:
    """A run folder of a small U-Net with random weights."""
    folder.mkdir(parents=True)
    extent: dict[str, Any] = dict.fromkeys(("min", "median", "max"), (64, 64, 64))
    names = ("background", *(f"class {n}" for n in range(1, classes)))
    plan = Plan(
        format=PLAN_FORMAT,
        spatial_dims=3,
        in_channels=1,
        channel_names=("CT",),
        labels=Labels(names=names),
        orientation="RAS",
        spacing=(spacing,) * 3,
        unit="mm",
        normalization=({"kind": "zscore"},),
        patch=(patch,) * 3,
        batch=1,
        strides=((2, 2, 2),),
        whole_image_limit=0,
        mirror_axes=(),
        turn_axes=None,
        reasons={},
        fingerprint={
            "cases": 1, "spatial_dims": 3, "channels": 1, "channel_names": ("CT",), "dtypes": ("int16",), "size": extent,
            "spacing": dict.fromkeys(("min", "median", "max"), (spacing,) * 3), "unit": "mm", "classes": names,
        },
    )  # fmt: skip
    return write_run(folder, plan, width, overlap)


def write_run(folder: Path, plan: Plan, width: int, overlap: float) -> Path:
    """A run folder of a U-Net of two levels, `width` and twice as many channels, with random weights."""
    recipe = Recipe(model="unet").replaced(
        architecture={"channels": (width, 2 * width), "strides": plan.strides}, inference={"overlap": overlap}
    )
    network = network_for(recipe, plan, torch.Generator().manual_seed(0))
    (folder / "recipe.yaml").write_text(to_yaml(recipe))
    (folder / "plan.yaml").write_text(to_yaml(plan))
    (folder / "splits.json").write_text(json.dumps(Split(train=("a",), val=("b",)).model_dump(mode="json")))
    write_tensors(folder / "weights.safetensors", Tensors(dict(network.state_dict()), {}))
    return folder


def draw(path: Path, size: tuple[int, ...], seed: int = 0) -> Path:
    """Noise in blocks of 8 voxels."""
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 300, [-(-n // 8) for n in size]).astype(np.int16)
    for axis, n in enumerate(size):
        values = np.repeat(values, 8, axis).take(range(n), axis)
    path.parent.mkdir(parents=True, exist_ok=True)
    made = nibabel.Nifti1Image(values, np.eye(4))
    made.header.set_xyzt_units("mm")
    made.to_filename(path)
    return path


def draw_labels(path: Path, size: tuple[int, ...], classes: int, moved: int = 0) -> Path:
    """Balls on a lattice, one a class but for the background; `moved` by so many voxels along the first axis."""
    labels = np.zeros(size, np.uint8 if classes <= 256 else np.uint16)
    along = math.ceil((classes - 1) ** (1 / 3))
    cells = [n / along for n in size]
    radius = 0.4 * min(cells)
    for number in range(1, classes):
        place = np.unravel_index(number - 1, (along,) * 3)
        centre = [cell * (at + 0.5) for at, cell in zip(place, cells, strict=True)]
        centre[0] += moved
        box = tuple(slice(max(0, int(c - radius)), int(c + radius) + 2) for c in centre)
        axes = np.ogrid[tuple(slice(part.start, min(part.stop, n)) for part, n in zip(box, size, strict=True))]
        inside = sum((axis - c) ** 2 for axis, c in zip(axes, centre, strict=True)) <= radius**2
        labels[box][inside] = number
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(labels, np.eye(4))
    image.header.set_xyzt_units("mm")
    image.to_filename(path)
    return path


class Cell(NamedTuple):
    """What a call is about.

    Args:
        folder: for what is made.
        image: the noise.
        size: of it.
        classes: the background included.
        options: of the command line.
    """

    folder: Path
    image: Path
    size: tuple[int, ...]
    classes: int
    options: argparse.Namespace


def predict_call(cell: Cell) -> list[str]:
    """A prediction by a run of random weights."""
    given = cell.options
    run = make_run(cell.folder / "run", cell.classes, given.width, given.patch, given.spacing, given.overlap)
    return ["predict", str(run), str(cell.image), "--out", str(cell.folder / "out")]


def check_call(cell: Cell) -> list[str]:
    """A check of a data set of one case."""
    root = data_set(cell)
    return ["check", str(root)]


def evaluate_call(cell: Cell) -> list[str]:
    """Masks of one case against its references, with a page."""
    root = data_set(cell)
    draw_labels(cell.folder / "masks" / f"image{cell.options.suffix}", cell.size, cell.classes, moved=1)
    return ["evaluate", str(cell.folder / "masks"), str(root), "--out", str(cell.folder / "scores")]


def train_call(cell: Cell) -> list[str]:
    """Four steps and an epoch's validation: the image in the training part, noise of 64 voxels a side in the other."""
    root, given = data_set(cell), cell.options
    for seed, name in enumerate(("small", "aside"), 1):
        draw(root / "images" / f"{name}{given.suffix}", (64, 64, 64), seed)
        draw_labels(root / "labels" / f"{name}{given.suffix}", (64, 64, 64), cell.classes)
    split = {"train": ["image", "small"], "val": ["aside"]}
    (root / "splits.json").write_text(json.dumps(split))
    settings = (
        f"planning.patch=[{given.patch}, {given.patch}, {given.patch}]",
        "planning.batch=1",
        f"planning.spacing=[{given.spacing}, {given.spacing}, {given.spacing}]",
        f"architecture.channels=[{given.width}, {2 * given.width}]",
        "training.steps_per_epoch=4",
    )
    sets = [word for setting in settings for word in ("--set", setting)]
    return ["train", str(root), "--model", "unet", "--out", str(cell.folder / "run"), "--epochs", "1", *sets]


def data_set(cell: Cell) -> Path:
    """Image and labels as pairs, with the names of the classes."""
    root = cell.folder / "data"
    (root / "images").mkdir(parents=True)
    (root / "images" / cell.image.name).symlink_to(cell.image)
    draw_labels(root / "labels" / cell.image.name, cell.size, cell.classes)
    (root / "classes.json").write_text(json.dumps({str(n): f"class {n}" for n in range(1, cell.classes)}))
    return root


# verb -> the words of a call, but for its limit; a verb is added by a function and an entry
CALLS: dict[str, Callable[[Cell], list[str]]] = {
    "predict": predict_call,
    "check": check_call,
    "evaluate": evaluate_call,
    "train": train_call,
}


def resident(pid: int) -> int:
    """Bytes of a process and its children; one that has not begun its program yet has the memory of its parent, once."""
    total, todo = 0, [(pid, "")]
    while todo:
        one, of_parent = todo.pop()
        try:
            status = Path(f"/proc/{one}/status").read_text()
            pages = Path(f"/proc/{one}/statm").read_text()
            tasks = list(Path(f"/proc/{one}/task").iterdir())
        except OSError:
            continue
        if pages == of_parent:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS"))
        for task in tasks:
            try:
                todo += [(int(child), pages) for child in (task / "children").read_text().split()]
            except OSError:
                continue
    return total


def high_water(pid: int) -> int:
    """Bytes that a process held at most."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def measured(arguments: list[str], threads: int) -> dict[str, Any]:
    """Peak bytes, seconds, exit code and the last line of a call of ulna."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    start = time.perf_counter()
    call = [sys.executable, "-m", "ulna", *arguments]
    process = subprocess.Popen(call, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    peak = 0
    while process.poll() is None:
        peak = max(peak, resident(process.pid), high_water(process.pid))
        time.sleep(0.02)
    assert process.stdout is not None
    said = [line.strip() for line in process.stdout.read().splitlines() if line.strip()]
    seconds = round(time.perf_counter() - start, 1)
    return {"peak": peak, "seconds": seconds, "code": process.returncode, "said": said}


def told(found: dict[str, Any], limit: float) -> str:
    """A cell of the table."""
    text = " ".join(" ".join(found["said"]).split())
    over = "  OVER THE LIMIT" if found["peak"] > limit * 1e9 else ""
    if least := re.search(r"([\d.]+) GB at least|without any image it takes ([\d.]+) GB", text):
        return f"refused: needs {least[1] or least[2]} GB{over}"
    if found["code"] == 0 or (found["code"] == 2 and "one patient" in text):
        cost = f", windows x {text.split('which takes ')[1].split(' ')[0]}" if "which takes " in text else ""
        return f"{found['peak'] / 1e9:.2f} GB, {found['seconds']:.0f} s{cost}{over}"
    return f"failed ({found['code']}): {text[-200:]}"


def main() -> None:
    """Print the table, a row as soon as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--verbs", nargs="+", choices=sorted(CALLS), default=["predict"])
    parser.add_argument("--limits", type=float, nargs="+", default=[1.0, 2.0, 4.0], help="GB")
    parser.add_argument("--sizes", nargs="+", default=["64", "128", "256"])
    parser.add_argument("--classes", type=int, nargs="+", default=[2, 20, 100])
    parser.add_argument("--width", type=int, default=4)
    parser.add_argument("--patch", type=int, default=64)
    parser.add_argument("--overlap", type=float, default=0.25)
    parser.add_argument("--spacing", type=float, default=1.0, help="mm of the network's grid; that of the image is 1")
    parser.add_argument("--suffix", default=".nii")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", help="the name of a result to keep")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for text in arguments.sizes:
            size = tuple(map(int, text.split("x")))
            size = size if len(size) == 3 else size * 3
            image = draw(Path(folder) / text / f"image{arguments.suffix}", size)
            for verb, classes in itertools.product(arguments.verbs, arguments.classes):
                for limit in arguments.limits:
                    place = Path(folder) / f"{verb}-{text}-{classes}-{limit}"
                    place.mkdir()
                    call = [*CALLS[verb](Cell(place, image, size, classes, arguments)), "--max-ram", str(limit)]
                    found = measured(call, arguments.threads)
                    shutil.rmtree(place)
                    cell = told(found, limit)
                    shown = f"{verb} | {limit:g} GB | {'x'.join(map(str, size))} | {classes} classes | {cell}"
                    print(shown, flush=True)
                    rows.append(
                        {"verb": verb, "limit_gb": limit, "size": size, "classes": classes, **found, "told": cell}
                    )
            image.unlink()
    if arguments.out:
        given = {name: value for name, value in vars(arguments).items() if name != "out"}
        rows = [{name: value for name, value in row.items() if name != "said"} for row in rows]  # names folders of here
        write(arguments.out, {"conditions": conditions(), "options": given, "rows": rows})


if __name__ == "__main__":
    main()
