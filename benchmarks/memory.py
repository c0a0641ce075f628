"""Peak memory of `ulna predict --max-ram`: limits, sizes and numbers of classes, each in a process of its own.

    python benchmarks/memory.py                                        # 1, 2, 4 GB; 64 to 256; 2, 20, 100 classes
    python benchmarks/memory.py --limits 4 --sizes 512 --classes 100   # one cell; hours on a slow CPU with --width 8
    python benchmarks/memory.py --sizes 512x512x600 --suffix .nii.gz --spacing 1.5

The image is noise and the weights are random: nothing is said of a segmentation. The network is a U-Net of two levels
and few channels, so that large volumes end on a CPU; its maps count in the limit as those of any other. The peak is the
largest sum of resident memory of the process and its children, sampled every 20 ms, and no less than the kernel's own
high-water mark.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

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


def draw(path: Path, size: tuple[int, ...]) -> Path:
    """Noise in blocks of 8 voxels."""
    rng = np.random.default_rng(0)
    values = rng.normal(0, 300, [-(-n // 8) for n in size]).astype(np.int16)
    for axis, n in enumerate(size):
        values = np.repeat(values, 8, axis).take(range(n), axis)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.Nifti1Image(values, np.eye(4)).to_filename(path)
    return path


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
    text = " ".join(found["said"])
    if found["code"] == 0:
        cost = text.split("which takes ")[1].split(" ")[0] if "which takes " in text else "1.00"
        over = "  OVER THE LIMIT" if found["peak"] > limit * 1e9 else ""
        return f"{found['peak'] / 1e9:.2f} GB, {found['seconds']:.0f} s, windows x {cost}{over}"
    if " GB at least" in text:
        return f"refused: needs {text.split(' GB at least')[0].split()[-1]} GB"
    return f"failed ({found['code']}): {text[-200:]}"


def main() -> None:
    """Print the table, a row as soon as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
            for classes in arguments.classes:
                place = Path(folder) / f"run-{text}-{classes}"
                of_it = (arguments.width, arguments.patch, arguments.spacing, arguments.overlap)
                run = make_run(place, classes, *of_it)
                for limit in arguments.limits:
                    out = Path(folder) / f"out-{text}-{classes}-{limit}"
                    call = ["predict", str(run), str(image), "--out", str(out), "--max-ram", str(limit)]
                    found = measured(call, arguments.threads)
                    cell = told(found, limit)
                    print(f"{limit:g} GB | {'x'.join(map(str, size))} | {classes} classes | {cell}", flush=True)
                    rows.append({"limit_gb": limit, "size": size, "classes": classes, **found, "told": cell})
    if arguments.out:
        write(arguments.out, {"conditions": conditions(), "rows": rows})


if __name__ == "__main__":
    main()
