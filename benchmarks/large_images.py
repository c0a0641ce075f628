"""`ulna predict --max-ram` on large pictures: PNG, BigTIFF, a pyramid, OME-Zarr, against the way in memory.

    python benchmarks/large_images.py                          # 8192 x 8192 in colour, --max-ram 1
    python benchmarks/large_images.py --side 1024 --kinds png zarr
    python benchmarks/large_images.py --limits 0.6 1 2         # what a limit does not allow is refused beforehand

The picture is made: smooth shapes and noise, the same in every format. The network is a U-Net of two levels and few
channels with random weights, so that a slow CPU finishes; nothing is said of a segmentation. A row tells the size, what a
mask is written as, the peak of memory of the process and its children, the time, and whether the mask equals that of a call
without a limit, pixel for pixel. The masks of all formats must be equal too: the script fails where one is not.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from measure import conditions, write
from memory import measured, told, write_run
from numpy.typing import NDArray
from PIL import Image

from ulna.data.formats.read import read_labels
from ulna.data.formats.source import Source
from ulna.data.formats.whole_boxes import boxed
from ulna.data.formats.zarr_writing import write_zarr
from ulna.data.volume import Volume
from ulna.recipe import PLAN_FORMAT, Labels, Plan

COLOURS = ("red", "green", "blue")


def make_run(folder: Path, patch: int, width: int, classes: int) -> Path:
    """A run folder of a small U-Net for pictures in colour, with random weights."""
    folder.mkdir(parents=True)
    names = ("background", *(f"class {n}" for n in range(1, classes)))
    plan = Plan(
        format=PLAN_FORMAT,
        spatial_dims=2,
        in_channels=3,
        channel_names=COLOURS,
        labels=Labels(names=names),
        spacing=(1.0, 1.0),
        unit="px",
        normalization=({"kind": "zscore"},) * 3,
        patch=(patch, patch),
        batch=1,
        strides=((2, 2),),
        whole_image_limit=0,
        mirror_axes=(),
        turn_axes=None,
        reasons={},
        fingerprint={
            "cases": 1, "spatial_dims": 2, "channels": 3, "channel_names": COLOURS, "dtypes": ("uint8",),
            "size": dict.fromkeys(("min", "median", "max"), (patch, patch)),
            "spacing": dict.fromkeys(("min", "median", "max"), (1.0, 1.0)), "unit": "px", "classes": names,
        },
    )  # fmt: skip
    return write_run(folder, plan, width, overlap=0.25)


def draw(side: int) -> NDArray[np.uint8]:
    """(H, W, 3): waves of another length in every colour, and noise."""
    rng = np.random.default_rng(0)
    along = np.arange(side, dtype=np.float32)
    made = np.empty((side, side, 3), np.uint8)
    for channel, length in enumerate((37, 91, 230)):
        waves = np.sin(along[:, None] / length) * np.cos(along / (length + 9))
        made[..., channel] = (100 + 70 * waves).astype(np.uint8) + rng.integers(0, 40, (side, side), np.uint8)
    return made


def _png(path: Path, values: NDArray[np.uint8]) -> Path:
    Image.fromarray(values).save(path.with_suffix(".png"), compress_level=1)
    return path.with_suffix(".png")


def _bigtiff(path: Path, values: NDArray[np.uint8]) -> Path:
    options: dict[str, Any] = {"photometric": "rgb", "tile": (256, 256), "compression": "zlib"}
    tifffile.imwrite(path.with_suffix(".tif"), values, bigtiff=True, **options)
    return path.with_suffix(".tif")


def _pyramid(path: Path, values: NDArray[np.uint8]) -> Path:
    options: dict[str, Any] = {"photometric": "rgb", "tile": (256, 256), "compression": "zlib"}
    levels = [values[:: 2**n, :: 2**n] for n in range(1, 4)]
    with tifffile.TiffWriter(path.with_suffix(".tif"), bigtiff=True) as file:
        file.write(values, subifds=len(levels), **options)
        for level in levels:
            file.write(level, subfiletype=1, **options)
    return path.with_suffix(".tif")


def _zarr(path: Path, values: NDArray[np.uint8]) -> Path:
    planes = np.moveaxis(values, -1, 0)
    write_zarr(path.with_suffix(".zarr"), boxed(planes), Volume(planes, (1.0, 1.0)), path.name)
    return path.with_suffix(".zarr")


KINDS: dict[str, Callable[[Path, NDArray[np.uint8]], Path]] = {
    "png": _png,
    "bigtiff": _bigtiff,
    "pyramid": _pyramid,
    "zarr": _zarr,
}


def masks_in(folder: Path) -> dict[str, NDArray[Any]]:
    """Name -> the mask that `predict` wrote."""
    facts = json.loads((folder / "predict.json").read_text())
    return {name: read_labels(Source(folder / name)).array[0] for row in facts["cases"] for name in row["files"]}


def main() -> None:
    """Print a row as soon as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=8192, help="pixels of the picture, along both axes")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--limits", type=float, nargs="+", default=[1.0], help="GB")
    parser.add_argument(
        "--formats", nargs="*", default=[], help="of the masks: tiff, zarr; left out, that of the image"
    )
    parser.add_argument("--patch", type=int, default=512)
    parser.add_argument("--width", type=int, default=4)
    parser.add_argument("--classes", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", help="where images and masks lie meanwhile; by default that of the system")
    parser.add_argument("--out", help="the name of a result to keep")
    arguments = parser.parse_args()
    rows, first = [], None
    with tempfile.TemporaryDirectory(dir=arguments.folder) as place:
        run = make_run(Path(place) / "run", arguments.patch, arguments.width, arguments.classes)
        values = draw(arguments.side)
        formats = [word for one in arguments.formats for word in ("--format", one)]
        for kind in arguments.kinds:
            folder = Path(place) / kind
            folder.mkdir()
            image = KINDS[kind](folder / "image", values)
            expected: dict[str, NDArray[Any]] = {}
            for limit in (None, *arguments.limits):
                out = folder / f"out-{limit}"
                extra = [] if limit is None else ["--max-ram", str(limit)]
                call = ["predict", str(run), str(image), "--out", str(out), *formats, *extra]
                found = measured(call, arguments.threads)
                row = {"kind": kind, "size": values.shape, "limit_gb": limit, **found}
                cell = told(found, float("inf") if limit is None else limit)
                if found["code"] == 0:
                    made = masks_in(out)
                    expected = expected or made
                    first = next(iter(made.values())) if first is None else first
                    row["equal"] = made.keys() == expected.keys() and all(
                        np.array_equal(mask, expected[name]) and np.array_equal(mask, first)
                        for name, mask in made.items()
                    )
                    cell += f", {' '.join(made)}, mask {'equal' if row['equal'] else 'DIFFERS'}"
                size = " x ".join(map(str, values.shape[:2]))
                name = "in memory" if limit is None else f"{limit:g} GB"
                print(f"{kind} | {size} | {name} | {cell}", flush=True)
                rows.append({**row, "told": cell})
    if arguments.out:
        write(arguments.out, {"conditions": conditions(), "rows": rows})
    wrong = [row for row in rows if row.get("equal") is False or (row["limit_gb"] is not None and _over(row))]
    if wrong:
        raise SystemExit(f"{len(wrong)} rows differ, or are over their limit")


def _over(row: dict[str, Any]) -> bool:
    return bool(row["code"] == 0 and row["peak"] > 1e9 * row["limit_gb"])


if __name__ == "__main__":
    main()
