"""Many small cases by one process and by several, in turn: how much sooner the whole command ends, with the same masks.

    python benchmarks/many_cases.py [--cases 1000] [--corrupt 50] [--jobs 1 2] [--rounds 3] [--kind png] [--out NAME]
    python benchmarks/many_cases.py --overlap --cases 40 --kind nifti     # one process: one by one, and side by side

Pictures of noise and discs are made, or volumes of noise and balls; so many of them are cut short, emptied, or no images at
all. Each contender is the whole command `ulna predict`, from its start to its end, into a new folder: with 1 as it is, with
more by `--jobs N`, all of them on as many threads as there are processors together. Of every call it is checked, and printed,
how many masks were written, how many cases were listed as failed, and the exit code: 3 where some are corrupt, and all others
written. Masks are compared byte by byte, and predict.json but for its times.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from measure import conditions, interleaved, ratio, write
from memory import make_run
from numpy.typing import NDArray
from overlap import masks
from overlap import measure as measure_overlap
from PIL import Image

from ulna.errors import counted
from ulna.system.cores import usable_cores
from ulna.system.outputs import PREDICT_FILE

SIDES = {"png": 96, "nifti": 48}
WIDTH = 16  # channels of the network for volumes: a U-Net of two levels with random weights


def values_of(rng: np.random.Generator, side: int, dims: int) -> NDArray[np.float64]:
    """Noise with a few bright discs, or balls."""
    values = rng.normal(40, 10, (side,) * dims)
    for _ in range(4):
        centre, radius = rng.uniform(0, side, dims), rng.uniform(side / 16, side / 6)
        places = np.ogrid[(slice(side),) * dims]
        values[sum((along - at) ** 2 for along, at in zip(places, centre, strict=True)) < radius**2] += 120
    return values.clip(0, 255)


def draw(folder: Path, cases: int, side: int, kind: str = "png") -> None:
    """Images in a new folder, from case00000 on."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(cases):
        name = folder / f"case{number:05}"
        if kind == "png":
            Image.fromarray(values_of(rng, side, 2).astype(np.uint8)).save(name.with_suffix(".png"))
        else:
            volume = nibabel.Nifti1Image(values_of(rng, side, 3).astype(np.int16), np.eye(4))
            volume.to_filename(name.with_suffix(".nii.gz"))


def spoil(folder: Path, corrupt: int) -> list[str]:
    """Damage so many of the images, spread evenly; returns the names of their cases."""
    paths = sorted(folder.iterdir())
    chosen = [paths[number * len(paths) // corrupt] for number in range(corrupt)]
    for number, path in enumerate(chosen):
        path.write_bytes([path.read_bytes()[:60], b"", b"not an image"][number % 3])
    return [path.name.partition(".")[0] for path in chosen]


def predict(run: str, images: Path, out: Path, processes: int, corrupt: bool) -> None:
    """The whole command."""
    threads = max(1, len(usable_cores()) // processes)
    words = [sys.executable, "-m", "ulna", "predict", run, images, "--out", out, "--threads", threads, "--quiet"]
    words += ["--jobs", processes] if processes > 1 else []
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True)
    if done.returncode != (3 if corrupt else 0):
        raise SystemExit(f"ulna predict ended with {done.returncode}: {done.stderr}")


def facts(out: Path) -> dict[str, Any]:
    """predict.json without the times."""
    found: dict[str, Any] = json.loads((out / PREDICT_FILE).read_text())
    for row in found["cases"]:
        row.pop("seconds")
    return found


def measure(run: str, images: Path, corrupt: list[str], processes: list[int], rounds: int) -> dict[str, Any]:
    """Seconds of every contender in every round, and how many times faster each is than the first."""
    cases = len(list(images.iterdir()))
    with tempfile.TemporaryDirectory() as place:
        outs = {counted(number, "process"): Path(place) / f"by_{number}" for number in processes}
        contenders = {
            name: partial(predict, run, images, out, number, bool(corrupt))
            for (name, out), number in zip(outs.items(), processes, strict=True)
        }
        taken = interleaved(contenders, rounds, 1, lambda name: shutil.rmtree(outs[name], ignore_errors=True))
        told = {name: (facts(out), masks(out)) for name, out in outs.items()}
        first, *others = told.values()
        failed, written = first[0].get("failed", {}), len(first[1])
        assert sorted(failed) == corrupt, f"{len(failed)} cases are listed, {len(corrupt)} are corrupt"
        assert written == len(first[0]["cases"]) == cases - len(corrupt), f"{written} masks of {cases} cases"
        assert all(other == first for other in others), "masks or predict.json differ"
    one, *more = taken
    median = {name: statistics.median(seconds) for name, seconds in taken.items()}
    return {
        "written": written,
        "listed": len(failed),
        "exit_code": 3 if corrupt else 0,
        "seconds": {name: [round(each, 2) for each in seconds] for name, seconds in taken.items()},
        "ms_a_case": {name: round(1000 * seconds / cases, 1) for name, seconds in median.items()},
        "cases_a_second": {name: round(cases / seconds, 1) for name, seconds in median.items()},
        "times_faster": {name: ratio(taken[one], taken[name]) for name in more},
        "same_masks": True,
    }


def main() -> None:
    """Run it, and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--corrupt", type=int, default=0, help="of these, so many that cannot be read")
    parser.add_argument("--kind", default="png", choices=list(SIDES))
    parser.add_argument("--side", type=int, help="pixels or voxels along every axis")
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 2], help="processes of each contender")
    parser.add_argument("--rounds", type=int, default=3, help="after one that does not count")
    parser.add_argument(
        "--run", help="a run folder or file; left out, zoo:nuclei, and for volumes a U-Net of random weights"
    )
    parser.add_argument("--overlap", action="store_true", help="one process: is it worth reading ahead on this CPU?")
    parser.add_argument("--threads", type=int, default=len(usable_cores()), help="of --overlap")
    parser.add_argument("--out", help="the name of a result to keep")
    asked = parser.parse_args()
    side = asked.side or SIDES[asked.kind]
    with tempfile.TemporaryDirectory() as place:
        images, run = Path(place) / "images", asked.run
        draw(images, asked.cases, side, asked.kind)
        named = "zoo:nuclei" if run is None else Path(run).name
        if run is None and asked.kind == "nifti":
            named = f"a U-Net of two levels and {WIDTH} channels, random weights"
            run = str(make_run(Path(place) / "run", 2, WIDTH, side, 1.0, 0.5))
        run = run or named
        where = {**conditions(), "processors": len(usable_cores())}
        if asked.overlap:
            found = measure_overlap(run, images, asked.threads, asked.rounds)
        else:
            corrupt = spoil(images, asked.corrupt)
            found = measure(run, images, corrupt, asked.jobs, asked.rounds)
    about = {"cases": asked.cases, "kind": asked.kind, "side": side, "run": named}
    result = {"conditions": {**where, "load_after": round(os.getloadavg()[0], 2)}, **about, **found}
    print(json.dumps(result, indent=1))
    if asked.out is not None:
        write(asked.out, result)


if __name__ == "__main__":
    main()
