"""A small data set that is drawn: one bright disc on noise in every image."""

import json
from pathlib import Path

import numpy as np
from PIL import Image


def draw_discs(
    root: Path,
    count: int,
    *,
    seed: int,
    size: tuple[int, int],
    smallest: int,
    contrast: float,
    noise: float,
    foreground: int,
    train: int,
    val: int,
) -> Path:
    """PNG pairs and splits.json; the same arguments give the same files.

    Args:
        root: an empty folder.
        count: of cases, disc0, disc1, ...; those that neither train nor validate test.
        seed: of everything random.
        size: of an image, (H, W).
        smallest: radius of a disc; the largest is 8.
        contrast: how much brighter a disc is than the ground of 80.
        noise: its standard deviation.
        foreground: the label value of a disc.
        train: how many cases train.
        val: how many of those after them choose the epoch.
    """
    rng = np.random.default_rng(seed)
    for folder in ("images", "labels"):
        (root / folder).mkdir()
    rows, columns = np.mgrid[: size[0], : size[1]]
    for number in range(count):
        y, x, r = (rng.integers(low, high) for low, high in ((9, size[0] - 9), (9, size[1] - 9), (smallest, 9)))
        mask = (rows - y) ** 2 + (columns - x) ** 2 < r**2
        image = np.clip(80 + contrast * mask + rng.normal(0, noise, mask.shape), 0, 255).astype(np.uint8)
        Image.fromarray(image).save(root / "images" / f"disc{number}.png")
        Image.fromarray(mask.astype(np.uint8) * foreground).save(root / "labels" / f"disc{number}.png")
    ids = [f"disc{number}" for number in range(count)]
    split = {"train": ids[:train], "val": ids[train : train + val], "test": ids[train + val :]}
    (root / "splits.json").write_text(json.dumps(split))
    return root
