"""Many small cases by one process and by several, in turn: how much sooner the whole command ends, with the same masks.

    python benchmarks/many_cases.py [--cases 1000] [--side 64] [--processes 1 2] [--rounds 3] [--run zoo:nuclei]

Pictures of noise and discs are made. Each contender is the whole command `ulna predict`, from its start to its end, into a
new folder: with 1 as it is, with more by `--jobs N`, all of them on as many threads as there are processors together. Masks
are compared byte by byte, and predict.json but for its times.
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

import numpy as np
from measure import conditions, interleaved, ratio
from PIL import Image

from ulna.system.outputs import PREDICT_FILE
from ulna.system.threads import usable_cores


def draw(folder: Path, cases: int, side: int) -> None:
    """Grey pictures, each with a few bright discs in noise."""
    folder.mkdir()
    rng, (rows, columns) = np.random.default_rng(0), np.mgrid[:side, :side]
    for number in range(cases):
        values = rng.normal(40, 10, (side, side))
        for _ in range(4):
            (row, column), radius = rng.uniform(0, side, 2), rng.uniform(side / 16, side / 6)
            values[(rows - row) ** 2 + (columns - column) ** 2 < radius**2] += 120
        Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(folder / f"case{number:05}.png")


def predict(run: str, images: Path, out: Path, processes: int) -> None:
    """The whole command."""
    threads = max(1, len(usable_cores()) // processes)
    words = [sys.executable, "-m", "ulna", "predict", run, images, "--out", out, "--threads", threads, "--quiet"]
    words += ["--jobs", processes] if processes > 1 else []
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"ulna predict ended with {done.returncode}: {done.stderr}")


def made(out: Path) -> dict[str, Any]:
    """What was written, without the times."""
    facts = json.loads((out / PREDICT_FILE).read_text())
    for row in facts["cases"]:
        row.pop("seconds")
    return {PREDICT_FILE: facts, **{path.name: path.read_bytes() for path in out.glob("*.png")}}


def measure(run: str, cases: int, side: int, processes: list[int], rounds: int) -> dict[str, Any]:
    """Seconds of every contender in every round, and how many times faster each is than the first."""
    with tempfile.TemporaryDirectory() as place:
        images = Path(place) / "images"
        draw(images, cases, side)
        outs = {f"{number} processes": Path(place) / f"by_{number}" for number in processes}
        contenders = {
            name: partial(predict, run, images, out, number)
            for (name, out), number in zip(outs.items(), processes, strict=True)
        }
        taken = interleaved(contenders, rounds, 1, lambda name: shutil.rmtree(outs[name], ignore_errors=True))
        first, *others = (made(out) for out in outs.values())
        assert len(first) == cases + 1, f"{len(first) - 1} of {cases} masks were written"
        assert all(other == first for other in others), "masks or predict.json differ"
    one, *more = taken
    return {
        "cases": cases,
        "side": side,
        "run": run,
        "seconds": {name: [round(each, 2) for each in seconds] for name, seconds in taken.items()},
        "ms_a_case": {name: round(1000 * statistics.median(seconds) / cases, 1) for name, seconds in taken.items()},
        "times_faster": {name: ratio(taken[one], taken[name]) for name in more},
        "same_masks": True,
    }


def main() -> None:
    """Run it, and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--run", default="zoo:nuclei")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    where = {**conditions(), "processors": len(usable_cores())}
    found = measure(asked.run, asked.cases, asked.side, asked.processes, asked.rounds)
    text = json.dumps({"conditions": {**where, "load_after": round(os.getloadavg()[0], 2)}, **found}, indent=1)
    print(text)
    if asked.out is not None:
        asked.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
