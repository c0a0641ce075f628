"""What one case of `ulna predict` costs, stage by stage, on one core (and of `ulna check`): what docs/scale.md plans with.

    python benchmarks/stages.py [--size 512x512x300] [--spacing 1.5] [--classes 2 20] [--rounds 3] [--out NAME]

The image is a made CT: smooth shapes and noise, whole numbers, `.nii.gz`, 0.8 mm, on its way to a grid of --spacing mm. Times
are of the processor (user and system), one thread, so that other work on the machine turns them little; files lie in the
page cache. Each number of classes has a process of its own, whose peak of memory is told. The network itself stands in a row
of its own: it is a U-Net of two levels and 2 to 4 channels with random weights, only as large as it takes to run the rest;
what a real one takes is what `ulna plan` or a GPU says.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import nibabel
import numpy as np
import torch
from measure import conditions, in_own_process, peak_mb, write
from memory import make_run
from scipy import ndimage

from ulna.data.formats.read import read_image
from ulna.data.formats.source import Source
from ulna.data.layout.case import Case
from ulna.data.pipeline.preprocess import prepare
from ulna.data.quality.scan import scan_case
from ulna.inference.pending import input_digest
from ulna.inference.segmenter import Segmenter

PATCH = 96
T = TypeVar("T")


def draw(path: Path, size: tuple[int, ...]) -> Path:
    """A made CT: smooth shapes in air, noise of 12 units."""
    rng = np.random.default_rng(0)
    coarse = ndimage.gaussian_filter(rng.normal(0, 1, [-(-n // 16) for n in size]), 1.5)
    coarse = coarse / coarse.std() * 250 - 300
    values = ndimage.zoom(coarse.astype(np.float32), 16, order=1)[tuple(map(slice, size))]
    inside = values > -500
    values += inside * rng.normal(0, 12, values.shape).astype(np.float32)
    values[~inside] = -1000
    nibabel.Nifti1Image(values.astype(np.int16), np.diag([0.8, 0.8, 0.8, 1])).to_filename(path)
    return path


class Stopwatch:
    """Seconds of the processor, by stage and round."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def __call__(self, stage: str, work: Callable[[], T]) -> T:
        """Do it, and note how long it took."""
        began = time.process_time()
        done = work()
        self.note(stage, time.process_time() - began)
        return done

    def note(self, stage: str, seconds: float) -> None:
        """Add what was taken otherwise."""
        self.seconds.setdefault(stage, []).append(seconds)


@contextmanager
def timing(segmenter: Segmenter, spent: list[float]) -> Iterator[None]:
    """Within, seconds of the processor that the network takes are added to the list."""
    own = segmenter.forward.counted

    def counted(windows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        began = time.process_time()
        answer = own(windows)
        spent.append(time.process_time() - began)
        return answer

    with patch.object(segmenter.forward, "counted", counted):
        yield


def one_case(segmenter: Segmenter, path: Path, out: Path, watch: Stopwatch) -> None:
    """A case from its file to its mask, as `ulna predict` goes through it."""
    watch("check (one image)", lambda: scan_case(Case("image", (Source(path),), None), None))
    watch("digest of the file", lambda: input_digest([path]))
    volume = watch("read", lambda: read_image([Source(path)], 3))
    compared = watch("compare with the training data", lambda: segmenter.compare(volume))
    watch("prepare", lambda: prepare(volume, segmenter.plan))
    spent: list[float] = []
    began = time.process_time()
    with timing(segmenter, spent):
        result = segmenter.segment(volume)
    whole, network = time.process_time() - began, sum(spent)
    watch.note("network (of two levels)", network)
    watch.note("windows to a mask", whole - network - watch.seconds["prepare"][-1])
    watch("trust", lambda: segmenter.trust(result, compared))
    watch("write", lambda: result.write(out / "mask"))


def spread(taken: list[float]) -> dict[str, float]:
    """The median, and the range of the rounds."""
    return {"median": round(statistics.median(taken), 2), "low": round(min(taken), 2), "high": round(max(taken), 2)}


def measured(size: tuple[int, ...], spacing: float, classes: int, rounds: int) -> dict[str, Any]:
    """Seconds of every stage: the median, and from the lowest to the highest round."""
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as place:
        path = draw(Path(place) / "image.nii.gz", size)
        run = make_run(Path(place) / "run", classes, 2, PATCH, spacing, 0.5)
        segmenter = Segmenter.load(run)
        for _ in range(rounds + 1):
            one_case(segmenter, path, Path(place), watch)
        megabytes = path.stat().st_size / 1e6
    stages = {name: spread(taken[1:]) for name, taken in watch.seconds.items()}
    rest = sum(one["median"] for name, one in stages.items() if not name.startswith(("network", "check")))
    return {
        "size": size,
        "million_voxels": round(math.prod(size) / 1e6, 1),
        "file_mb": round(megabytes, 1),
        "classes": classes,
        "seconds": stages,
        "without_network_s": round(rest, 2),
        "peak_gb": round(peak_mb() / 1000, 2),
    }


def main() -> None:
    """Run it, and print a table for every number of classes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="512x512x300")
    parser.add_argument("--spacing", type=float, default=1.5, help="mm of the network's grid; that of the image is 0.8")
    parser.add_argument("--classes", type=int, nargs="+", default=[2, 20])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", help="the name of a result to keep")
    parser.add_argument("--row", action="store_true", help="print one row as JSON: what every row's own process does")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.row:
        row = measured(tuple(map(int, asked.size.split("x"))), asked.spacing, asked.classes[0], asked.rounds)
        print(json.dumps(row))
        return
    rows = []
    for classes in asked.classes:
        words = ["--size", asked.size, "--spacing", str(asked.spacing), "--rounds", str(asked.rounds)]
        rows.append(in_own_process(__file__, *words, "--row", "--classes", str(classes)))
        row = rows[-1]
        print(f"{asked.size}, {row['file_mb']} MB, {classes} classes: {row['peak_gb']} GB at the peak")
        for name, one in row["seconds"].items():
            print(f"  {name:32} {one['median']:7.2f} s  [{one['low']:.2f}, {one['high']:.2f}]")
        print(f"  {'predict but for the network':32} {row['without_network_s']:7.2f} s", flush=True)
    if asked.out:
        write(asked.out, {"conditions": conditions(), "rows": rows})


if __name__ == "__main__":
    main()
