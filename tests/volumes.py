"""A small data set that is drawn: volumes of thick slices with a bright ball, the outer ones blank."""

import json
from pathlib import Path

import nibabel
import numpy as np

SPACING = (1.0, 1.5, 4.0)  # of the world's axes: across the last the slices are thick


def draw_balls(
    root: Path, count: int = 4, *, size=(20, 24, 9), channels=1, stored="RAS", seed=0, classes=1, split=True
) -> Path:
    """NIfTI pairs and splits.json: all but the last two train, one validates, one tests.

    Args:
        root: an empty folder.
        count: of cases, ball0, ball1, ...
        size: along the world's axes.
        channels: of an image; the second shows the ball dark.
        stored: how the files store their axes, in letters, such as LPS or SAR.
        seed: of everything random.
        classes: 2 gives the upper half of a ball a class of its own.
        split: without, there is no splits.json.
    """
    rng = np.random.default_rng(seed)
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    affine = np.diag([*SPACING, 1.0])
    turn = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt(stored)
    )
    grid = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"))
    for number in range(count):
        centre = np.array(size) / 2 + rng.integers(-2, 3, 3) * (1, 1, 0.5)
        away = ((grid - centre[:, None, None, None]) * np.reshape(SPACING, (3, 1, 1, 1))) ** 2
        ball = np.sqrt(away.sum(0)) < 6.5
        labels = ball.astype(np.uint8)
        if classes == 2:
            labels += ball & (grid[2] > centre[2])
        image = np.stack([80 + sign * 60 * ball + rng.normal(0, 8, size) for sign in (1, -1)[:channels]], -1)
        image[:, :, [0, -1]] = 0  # blank
        for folder, values in (
            ("images", image.astype(np.int16)[..., 0] if channels == 1 else image.astype(np.int16)),
            ("labels", labels),
        ):
            file = nibabel.Nifti1Image(values, affine)
            file.header.set_xyzt_units("mm")
            nibabel.save(file.as_reoriented(turn), root / folder / f"ball{number}.nii.gz")
    if split:
        ids = [f"ball{number}" for number in range(count)]
        parts = {"train": ids[:-2], "val": ids[-2:-1], "test": ids[-1:]}
        (root / "splits.json").write_text(json.dumps(parts))
    return root
