"""The first reading of a data set (`check`, `plan`, `train`) by one thread and by several, in turn: how much sooner it ends.

    python benchmarks/readers.py [--cases 16] [--size 256x256x100] [--readers 1 2] [--rounds 5] [--out NAME]
    python benchmarks/readers.py --cases 500 --size 512x512    # pictures

Volumes of noise with a ball (`.nii.gz`), or pictures with a disc, and their label maps are made; files lie in the page cache,
so a slow disk is not measured. What every reading finds must be equal.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
from measure import conditions, interleaved, ratio, write
from PIL import Image

from ulna.data.layout.dataset import Dataset
from ulna.data.quality.reading import reader_count, scan_dataset
from ulna.errors import counted


def draw(root: Path, cases: int, size: tuple[int, ...]) -> Dataset:
    """Images and label maps as pairs."""
    centre = [n // 2 for n in size]
    places = np.ogrid[tuple(slice(n) for n in size)]
    inside = sum((along - at) ** 2 for along, at in zip(places, centre, strict=True)) < (min(size) / 3) ** 2
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for number in range(cases):
        noise = np.random.default_rng(number).normal(100, 20, size).clip(0, 255)
        image, labels = (noise + 60 * inside).clip(0, 255), inside.astype(np.uint8)
        if len(size) == 2:
            Image.fromarray(image.astype(np.uint8)).save(root / "images" / f"case{number:05}.png")
            Image.fromarray(labels).save(root / "labels" / f"case{number:05}.png")
            continue
        for folder, values in (("images", image.astype(np.int16)), ("labels", labels)):
            nibabel.Nifti1Image(values, np.eye(4)).to_filename(root / folder / f"case{number:05}.nii.gz")
    return Dataset.from_folder(root)


def main() -> None:
    """Run it, and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=16)
    parser.add_argument("--size", default="256x256x100")
    parser.add_argument("--readers", type=int, nargs="+", default=[1, max(2, reader_count())])
    parser.add_argument("--rounds", type=int, default=5, help="after one that does not count")
    parser.add_argument("--out", help="the name of a result to keep")
    asked = parser.parse_args()
    size = tuple(map(int, asked.size.split("x")))
    with tempfile.TemporaryDirectory() as place:
        dataset = draw(Path(place) / "data", asked.cases, size)
        megabytes = sum(file.stat().st_size for file in Path(place).rglob("*") if file.is_file()) / 1e6
        read = {counted(count, "reader"): partial(scan_dataset, dataset, count) for count in asked.readers}
        found = [reading() for reading in read.values()]
        assert all(other == found[0] for other in found), "readings differ"
        where = conditions()
        taken = interleaved(read, asked.rounds)
    first, *others = taken
    result = {
        "conditions": where,
        "cases": asked.cases,
        "size": size,
        "million_voxels": round(math.prod(size) / 1e6, 2),
        "megabytes": round(megabytes, 1),
        "seconds_a_case": {name: round(statistics.median(each) / asked.cases, 3) for name, each in taken.items()},
        "times_faster": {name: ratio(taken[first], taken[name]) for name in others},
    }
    print(json.dumps(result, indent=1))
    if asked.out is not None:
        write(asked.out, result)


if __name__ == "__main__":
    main()
