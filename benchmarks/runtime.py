"""ulna predict, eager torch and ulna-runtime on the same images, in turn: seconds an image, their ratio and its spread.

    python benchmarks/runtime.py RUN FILE.ulna DATA [--also INT8.ulna]... [--split val] [--images N] [--rounds R]

RUN is the run that FILE and those of --also (other precisions) were exported from; `eager torch` is the same run in
float32. Every round takes all ways over all images, each way first once in turn, so that what else the machine does falls
on all alike. Memory is the peak of a process that predicts one image in that way. Where the images have references, the mean
Dice of every way is told.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

PEAK = """
import sys
import numpy as np
run, file, image, way, threads = sys.argv[1:]
given = np.load(image)
affine = given["affine"] if given["affine"].size else None
facts = (given["array"], tuple(given["spacing"]), str(given["unit"]), affine)
if file:
    from ulna_runtime import Volume, load
    load(file, int(threads))(Volume(*facts)).mask
else:
    sys.path.insert(0, {here!r})
    from runtime import segmenters
    from ulna.data.volume import Volume
    segmenters(run, int(threads))[way].mask(Volume(*facts))
# not ru_maxrss: it outlives exec, so a child would never tell less than its parent held
print(next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024)
"""


def images_of(data: str, count: int, run: str, split: str) -> list[Any]:
    """Volumes of a data set with their references, those of a part of the run's split first."""
    from ulna.data.layout.dataset import Dataset
    from ulna.exporting.parity import cases_to_compare
    from ulna.inference.segmenter import Segmenter, read_split

    plan = Segmenter.load(run).plan
    dataset = Dataset.from_folder(Path(data), need_labels=False, channels=plan.in_channels).of_dims(plan.image_dims)
    part = set(getattr(read_split(Path(run)), split))
    cases = sorted(dataset.cases, key=lambda case: case.id not in part)[:count]
    return list(cases_to_compare(cases, plan, most=count))


def segmenters(run: str, threads: int) -> dict[str, Any]:
    """The run as `ulna predict` takes it, and in float32."""
    import torch

    from ulna.inference.segmenter import Segmenter

    torch.set_num_threads(threads)
    segmenter = Segmenter.load(run)
    recipe = segmenter.recipe
    fp32 = recipe.replaced(training=recipe.training.replaced(precision="fp32"))
    eager = Segmenter(segmenter.network, segmenter.plan, fp32, torch.device("cpu"))
    return {"ulna predict": segmenter, "eager torch": eager}


def ways(run: str, files: dict[str, str], threads: int) -> dict[str, Any]:
    """Each way from a volume to a mask."""
    from ulna_runtime import Volume, load

    def runtime(exported: Any) -> Any:
        def predict(volume: Any) -> Any:
            return exported(Volume(volume.array, volume.spacing, volume.unit, volume.affine)).mask

        return predict

    each = {name: one.mask for name, one in segmenters(run, threads).items()}
    return each | {name: runtime(load(file, threads)) for name, file in files.items()}


def files_of(asked: argparse.Namespace) -> dict[str, str]:
    """The exported files by the name of their way: that of FILE is ulna-runtime, the others have their precision in it."""
    from ulna_runtime.bundle import read_bundle

    others = {f"ulna-runtime {read_bundle(file, graphs=False).pipeline['precision']}": file for file in asked.also}
    return {"ulna-runtime": asked.file, **others}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("run", "file", "data"):
        parser.add_argument(name)
    parser.add_argument("--also", action="append", default=[])
    parser.add_argument("--split", default="test", choices=("train", "val", "test"))
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    files = files_of(asked)
    images, each = images_of(asked.data, asked.images, asked.run, asked.split), ways(asked.run, files, asked.threads)
    names = list(each)
    masks: dict[str, list[Any]] = {name: [way(image.volume) for image in images] for name, way in each.items()}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(asked.rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            start = time.perf_counter()
            for image in images:
                each[name](image.volume)
            seconds[name].append((time.perf_counter() - start) / len(images))
    rows = {}
    for name in names:
        ratios = [mine / own for mine, own in zip(seconds["ulna-runtime"], seconds[name], strict=True)]
        rows[name] = {
            "seconds": statistics.median(seconds[name]),
            "least": min(seconds[name]),
            "runtime_over_it": statistics.median(ratios),
            "spread": [min(ratios), max(ratios)],
            "peak_mb": _peak(asked, images[0].volume, name, files.get(name, "")),
            "dice": _mean_dice(masks[name], images, asked.run),
        }
        print(
            f"{name:17} {rows[name]['seconds']:.4f} s an image (least {rows[name]['least']:.4f}); ulna-runtime takes "
            f"{statistics.median(ratios):.2f} times that ({min(ratios):.2f} to {max(ratios):.2f}); "
            f"peak {rows[name]['peak_mb']:.0f} MB; Dice {rows[name]['dice']}"
        )
    print(json.dumps({"images": len(images), "threads": asked.threads, "load": os.getloadavg(), **rows}))


def _mean_dice(masks: list[Any], images: list[Any], run: str) -> float | None:
    from ulna.exporting.parity import dice
    from ulna.inference.segmenter import Segmenter

    plan = Segmenter.load(run).plan
    scores = [
        dice(mask, image.reference, plan)
        for mask, image in zip(masks, images, strict=True)
        if image.reference is not None
    ]
    return round(statistics.mean(scores), 5) if scores else None


def _peak(asked: argparse.Namespace, volume: Any, way: str, file: str) -> float:
    """MB of a process of its own that predicts one image; that of the runtime loads no torch."""
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image.npz"
        affine = np.empty(0) if volume.affine is None else volume.affine
        np.savez(image, array=volume.array, spacing=volume.spacing, unit=volume.unit, affine=affine)
        words = [sys.executable, "-c", PEAK.format(here=str(Path(__file__).parent))]
        made = subprocess.run(
            [*words, asked.run, file, str(image), way, str(asked.threads)],
            check=True,
            capture_output=True,
            text=True,
        )
    return float(made.stdout.split()[-1])


if __name__ == "__main__":
    main()
