"""ulna predict, eager torch and ulna-runtime on the same images, in turn: seconds an image, their ratio and its spread.

    python benchmarks/runtime.py RUN FILE.ulna DATA [--images N] [--rounds R] [--threads T]

RUN is the run that FILE was exported from; `eager torch` is the same run in float32. Every round takes all ways over
all images, each way first once in turn, so that what else the machine does falls on all alike. Memory is the peak of a
process that predicts one image in that way.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

WAYS = ("ulna predict", "eager torch", "ulna-runtime")
PEAK = """
import sys
import numpy as np
run, file, image, way, threads = sys.argv[1:]
given = np.load(image)
affine = given["affine"] if given["affine"].size else None
facts = (given["array"], tuple(given["spacing"]), str(given["unit"]), affine)
if way == "ulna-runtime":
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


def images_of(data: str, count: int, run: str) -> list[Any]:
    """Volumes of a data set, those of the run's test split first."""
    from ulna.data.layout.dataset import Dataset
    from ulna.inference.segmenter import Segmenter, read_split

    plan = Segmenter.load(run).plan
    dataset = Dataset.from_folder(Path(data), need_labels=False, channels=plan.in_channels).of_dims(plan.image_dims)
    test = set(read_split(Path(run)).test)
    cases = sorted(dataset.cases, key=lambda case: case.id not in test)
    return [case.read_image() for case in cases[:count]]


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


def ways(run: str, file: str, threads: int) -> dict[str, Any]:
    """Each way from a volume to a mask."""
    from ulna_runtime import Volume, load

    exported = load(file, threads)

    def runtime(volume: Any) -> Any:
        return exported(Volume(volume.array, volume.spacing, volume.unit, volume.affine)).mask

    return {name: one.mask for name, one in segmenters(run, threads).items()} | {"ulna-runtime": runtime}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("run", "file", "data"):
        parser.add_argument(name)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    images, each = images_of(asked.data, asked.images, asked.run), ways(asked.run, asked.file, asked.threads)
    for way in each.values():
        way(images[0])
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for number in range(asked.rounds):
        order = WAYS[number % 3 :] + WAYS[: number % 3]
        for name in order:
            start = time.perf_counter()
            for image in images:
                each[name](image)
            seconds[name].append((time.perf_counter() - start) / len(images))
    peaks = {name: _peak(asked, images[0], name) for name in WAYS}
    rows = {}
    for name in WAYS:
        ratios = [mine / own for mine, own in zip(seconds["ulna-runtime"], seconds[name], strict=True)]
        rows[name] = {
            "seconds": statistics.median(seconds[name]),
            "runtime_over_it": statistics.median(ratios),
            "spread": [min(ratios), max(ratios)],
            "peak_mb": peaks[name],
        }
        print(
            f"{name:13} {rows[name]['seconds']:.4f} s an image; the runtime takes {statistics.median(ratios):.2f} times that "
            f"({min(ratios):.2f} to {max(ratios):.2f}); peak {peaks[name]:.0f} MB"
        )
    print(json.dumps(rows))


def _peak(asked: argparse.Namespace, volume: Any, way: str) -> float:
    """MB of a process of its own that predicts one image; that of the runtime loads no torch."""
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image.npz"
        affine = np.empty(0) if volume.affine is None else volume.affine
        np.savez(image, array=volume.array, spacing=volume.spacing, unit=volume.unit, affine=affine)
        words = [sys.executable, "-c", PEAK.format(here=str(Path(__file__).parent))]
        made = subprocess.run(
            [*words, asked.run, asked.file, str(image), way, str(asked.threads)],
            check=True,
            capture_output=True,
            text=True,
        )
    return float(made.stdout.split()[-1])


if __name__ == "__main__":
    main()
