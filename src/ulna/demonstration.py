"""A data set that ulna makes up itself, declared synthetic, and the whole path over it.

The images look a little like those of the 2018 Data Science Bowl - fluorescence, stained tissue, dark on bright - but
no microscope has seen them: results on them show that the machinery works and say nothing about real images.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from ulna.errors import UsageError
from ulna.system.outputs import check_free, make_folder

if TYPE_CHECKING:
    from ulna.evaluation.drawn import ShownCase
    from ulna.evaluation.scores import Evaluation

Array = NDArray[np.float64]

STATEMENT = """\
Made by ulna. This is synthetic data: every image and every label was drawn by a program.
Results on it show that the software runs; they say nothing about real images.
"""
# marks what `ulna demo` may replace; a data folder alone carries the statement without its first line
DEMO = b"Made by `ulna demo`, which replaces it when it runs again.\n" + STATEMENT.encode()
NUCLEI_README = """\
# Synthetic nuclei

{count} RGB images with a label map each (0 background, 1 nucleus), drawn by `ulna.demonstration.make_nuclei`
with seed {seed}. Nothing here was photographed; see `SYNTHETIC`.

| | |
|---|---|
| `images/` | 8-bit RGB PNG: bright on dark, stained, dark on bright |
| `labels/` | 8-bit PNG, values 0 and 1 |
| `classes.json` | the name of the class |
| `splits.json` | which cases train, validate and test |
"""
STAINS = ("fluorescence", "fluorescence", "stained", "fluorescence", "inverted")  # by case, over and over
SIZES = ((96, 96), (96, 128), (128, 128))
WRITTEN = (
    "data",
    "run",
    "predictions",
    "evaluation",
    "zoo_masks",
    "report.html",
    "SYNTHETIC",
)  # what a demo leaves behind
SMALL = ("architecture.base_channels=12", "planning.patch=[96, 96]", "planning.batch=4")  # a network for two slow cores
STEPS, STEPS_QUICK = 500, 100  # of its training


@dataclass(frozen=True)
class Demonstration:
    """What a demo leaves behind: the page, the run, and the scores on the synthetic test cases."""

    report: Path
    run: Path
    evaluation: Evaluation

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"report": str(self.report), "run": str(self.run), "synthetic": True, "summary": self.evaluation.summary}


def demo(*, out: Path | str = Path("demo"), quick: bool = False) -> Demonstration:
    """Make a small synthetic data set and run the whole path on it: check, train, predict, evaluate, report.

    Where ulna-runtime is installed, the page also shows zoo:nuclei on six real images that come with it.

    Args:
        out: the folder to write; an earlier demo there is replaced.
        quick: fewer images and steps, about half a minute.

    Raises:
        UsageError: if `out` exists and is not an earlier demo.

    Example:
        ulna demo --out demo
    """
    out = Path(out)
    _clear(out)
    from ulna.data.quality.check import check
    from ulna.evaluation.evaluate import evaluate
    from ulna.evaluation.origins import of_run
    from ulna.evaluation.report import write_report
    from ulna.exporting.zoo_examples import real_images
    from ulna.inference.predict import predict
    from ulna.training.train import train

    data = make_nuclei(out / "data", count=20 if quick else 60)
    check(data).raise_if_bad()
    # steps in place of hours: the page looks the same on a busy machine, which only takes longer
    length = f"training.steps={STEPS_QUICK if quick else STEPS}"
    run = train(data, model="unetpp", out=out / "run", seed=0, set=(*SMALL, length))
    masks = predict(run.folder, data, out=out / "predictions", split="test")
    evaluation = evaluate(masks.folder, data, out=out / "evaluation")
    cases = _shown(data, masks.folder, evaluation)
    real = real_images(out / "zoo_masks")
    report = write_report(
        out / "report.html", evaluation, cases, of_run(run.folder, masks.folder), verb="demo",
        title="Synthetic nuclei", table="evaluation/metrics.csv", synthetic=True, section=real,
    )  # fmt: skip
    return Demonstration(report, run.folder, evaluation)


def _clear(out: Path) -> None:
    """An empty folder with the statement in it; only what an earlier demo wrote is removed."""
    statement = out / "SYNTHETIC"
    if not (statement.is_file() and statement.read_bytes() == DEMO):
        check_free(out, what="exists and is not an earlier demo", remedy="name a new folder with --out")
    make_folder(out)
    for name in WRITTEN:
        path = out / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    statement.write_bytes(DEMO)


def _shown(data: Path, predictions: Path, evaluation: Evaluation) -> list[ShownCase]:
    """What the page shows of the demo's own files: the cases with the lowest and the highest Dice."""
    from ulna.evaluation.drawn import extremes_of, pictures_of_files

    dice = {row["case"]: row["dice"] for row in evaluation.rows}
    return [
        pictures_of_files(
            case, dice[case], *(folder / f"{case}.png" for folder in (data / "images", data / "labels", predictions))
        )
        for case in extremes_of(dice)
    ]


def make_nuclei(folder: Path, *, count: int = 60, sizes: Sequence[tuple[int, int]] = SIZES, seed: int = 0) -> Path:
    """Draw RGB images of nuclei-like blobs with their label maps, in the layout of pairs.

    Deformed ellipses of several sizes, some touching, with texture; uneven light, blur, debris that is no nucleus, shot
    and read noise. The same seed gives the same files.

    Args:
        folder: a new or empty folder.
        count: cases, at least 3; about a sixth validates and a fifth tests.
        sizes: (H, W), taken in turn.
        seed: of the one generator behind everything.
    """
    _new_folder(folder, count)
    for part in ("images", "labels"):
        (folder / part).mkdir()
    generator = np.random.default_rng(seed)
    for index in range(count):
        image, label = _nuclei(sizes[index % len(sizes)], STAINS[index % len(STAINS)], generator)
        for part, array in (("images", image), ("labels", label)):
            Image.fromarray(array).save(folder / part / f"nuclei_{index:03d}.png")
    cases = [f"nuclei_{index:03d}" for index in range(count)]
    _describe(folder, {"1": "nucleus"}, _split(cases, generator), NUCLEI_README.format(count=count, seed=seed))
    return folder


def _new_folder(folder: Path, count: int) -> None:
    if count < 3:
        raise UsageError(f"count={count}: at least 3 cases are needed, one each to train, validate and test")
    check_free(folder, remedy="name a new folder")
    make_folder(folder)


def _describe(folder: Path, classes: dict[str, str], splits: dict[str, list[str]], readme: str) -> None:
    (folder / "classes.json").write_text(json.dumps(classes) + "\n", encoding="utf-8")
    (folder / "splits.json").write_text(json.dumps(splits, indent=1) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(readme, encoding="utf-8")
    (folder / "SYNTHETIC").write_text(STATEMENT, encoding="utf-8")


def _split(cases: Sequence[str], generator: np.random.Generator) -> dict[str, list[str]]:
    order = [cases[k] for k in generator.permutation(len(cases))]
    test, val = max(1, round(len(cases) / 5)), max(1, round(len(cases) / 6))
    return {
        "train": sorted(order[test + val :]),
        "val": sorted(order[test : test + val]),
        "test": sorted(order[:test]),
    }


def _nuclei(
    size: tuple[int, int], stain: str, generator: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One image (H, W, 3) and its label map (H, W)."""
    shape = _shapes(size, generator)  # (nuclei, H, W), above 0 inside, in pixels from the boundary
    label: NDArray[np.bool_] = np.any(shape > 0, axis=0)
    brightness = generator.uniform(0.5, 1.0, len(shape)) * generator.uniform(0.8, 1.0)
    body = 1 / (1 + np.exp(-shape / generator.uniform(0.5, 1.1)))
    grain = 1 + 0.22 * _noise(size, (1.0, 3.0), generator)
    signal: Array = (body * brightness[:, None, None]).max(axis=0) * grain
    signal = signal + _debris(size, generator) + _haze(size, label, generator)
    signal = gaussian_filter(signal, generator.uniform(0.5, 1.0))
    light = 1 + 0.25 * _noise(size, (0.3 * min(size),), generator)
    signal = np.clip(signal * np.clip(light, 0.4, 1.6), 0, None)
    return _develop(signal, stain, generator), label.astype(np.uint8)


def _shapes(size: tuple[int, int], generator: np.random.Generator) -> Array:
    """Deformed ellipses, each kept if it hides no other; some touch. (nuclei, H, W): pixels inside the boundary."""
    mean = generator.uniform(6.0, 10.5)
    tries = int(generator.integers(10, 34)) * size[0] * size[1] // (96 * 96)
    radius = np.clip(generator.normal(mean, 0.22 * mean, tries), 4.0, 15.0)
    centre = generator.uniform((0, 0), size, (tries, 2))
    kept: list[int] = []
    for k in range(tries):
        gap = np.linalg.norm(centre[kept] - centre[k], axis=1) - 0.92 * (radius[kept] + radius[k])
        if (gap > 0).all():
            kept.append(k)
    radius, centre = radius[kept, None, None], centre[kept]
    y, x = np.mgrid[: size[0], : size[1]][:, None] - centre.T[:, :, None, None]
    turn, stretch = generator.uniform(0, np.pi, (len(kept), 1, 1)), generator.uniform(1.0, 1.35, (len(kept), 1, 1))
    u = (np.cos(turn) * x + np.sin(turn) * y) / stretch
    v = (np.cos(turn) * y - np.sin(turn) * x) * stretch
    angle = np.arctan2(v, u)
    edge = np.ones_like(u)
    for harmonic, strength in ((2, 0.06), (3, 0.06), (4, 0.035), (5, 0.025)):
        phase = generator.uniform(0, 2 * np.pi, (len(kept), 1, 1))
        edge += strength * generator.normal(size=(len(kept), 1, 1)) * np.cos(harmonic * angle + phase)
    return radius * edge - np.hypot(u, v)


def _noise(size: tuple[int, ...], scales: Sequence[float], generator: np.random.Generator) -> Array:
    """Band-limited noise of mean 0 and spread 1: white noise, smoothed at every scale and summed."""
    total = np.zeros(size)
    for scale in scales:
        layer = gaussian_filter(generator.normal(size=size), scale, mode="wrap")
        total += (layer - layer.mean()) / layer.std()
    return total / total.std()


def _debris(size: tuple[int, int], generator: np.random.Generator) -> Array:
    """Small bright specks that are no nuclei."""
    specks = np.zeros(size)
    where = generator.integers((0, 0), size, (int(generator.integers(2, 9)), 2))
    specks[tuple(where.T)] = generator.uniform(4.0, 16.0, len(where))
    return gaussian_filter(specks, 1.3)


def _haze(size: tuple[int, int], label: NDArray[np.bool_], generator: np.random.Generator) -> Array:
    """Background: light scattered by the nuclei, a cloudy floor, and nuclei far out of focus that nobody labels."""
    scatter = 0.22 * gaussian_filter(label.astype(float), 7.0)
    cloud = 0.07 * np.clip(1 + _noise(size, (9.0,), generator), 0, None)
    blurred = np.zeros(size)
    where = generator.integers((0, 0), size, (int(generator.integers(1, 4)), 2))
    blurred[tuple(where.T)] = generator.uniform(40.0, 110.0, len(where))
    return scatter + cloud + gaussian_filter(blurred, 7.0)


COLOURS = {  # background and full signal, RGB
    "fluorescence": ((0.02, 0.02, 0.03), (0.82, 0.84, 0.86)),
    "stained": ((0.93, 0.82, 0.90), (0.36, 0.18, 0.52)),
    "inverted": ((0.86, 0.86, 0.85), (0.22, 0.22, 0.25)),
}


def _develop(signal: Array, stain: str, generator: np.random.Generator) -> NDArray[np.uint8]:
    """The signal (H, W) in the colours of a stain, with shot and read noise: (H, W, 3)."""
    background, full = (np.clip(np.array(c) + generator.normal(0, 0.025, 3), 0.01, 1) for c in COLOURS[stain])
    if stain == "fluorescence":  # light adds up; some exposures are poor
        colour = background + signal[..., None] * full * generator.uniform(0.45, 1.0)
    else:  # light is absorbed (Beer-Lambert)
        colour = background * (full / background) ** np.clip(signal, 0, 1.6)[..., None]
    photons = generator.uniform(80, 260)
    grey = stain != "stained"  # one sensor reading for all three channels, as grey images stored in colour have it
    shot = generator.normal(size=(*signal.shape, 1 if grey else 3)) * np.sqrt(np.clip(colour, 0, None) / photons)
    read = generator.normal(0, generator.uniform(0.008, 0.025), (*signal.shape, 1 if grey else 3))
    return np.rint(255 * np.clip(colour + shot + read, 0, 1)).astype(np.uint8)


def make_phantom(
    folder: Path,
    *,
    count: int = 6,
    size: tuple[int, int, int] = (32, 40, 28),
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.5),
    seed: int = 0,
) -> Path:
    """Draw 3D images of a bent tube in two parts, head and tail, as NIfTI in the Decathlon layout.

    A bias field and noise lie over it. Affines have an offset, a tilt, and an orientation that changes by case.

    Args:
        folder: a new or empty folder.
        count: cases, at least 3.
        size: voxels along every axis.
        spacing: mm.
        seed: of the one generator behind everything.
    """
    _new_folder(folder, count)
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir()
    generator = np.random.default_rng(seed)
    cases = [f"phantom_{index:02d}" for index in range(count)]
    for index, case in enumerate(cases):
        image, label = _tube(size, spacing, generator)
        affine = _affine(size, spacing, ORIENTATIONS[index % len(ORIENTATIONS)], generator)
        _write_nifti(image, affine, folder / "imagesTr" / f"{case}_0000.nii.gz")
        _write_nifti(label, affine, folder / "labelsTr" / f"{case}.nii.gz")
    description = {
        "name": "Synthetic phantom",
        "description": "a bent tube in two parts, drawn by ulna; not a real image",
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "head": 1, "tail": 2},
        "numTraining": count,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
    (folder / "SYNTHETIC").write_text(STATEMENT, encoding="utf-8")
    return folder


ORIENTATIONS = ((1, 1, 1), (-1, -1, 1), (-1, 1, 1))  # RAS, LPS, LAS: sign of the first, second and third axis


def _tube(
    size: tuple[int, int, int], spacing: tuple[float, float, float], generator: np.random.Generator
) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """Image and label map (*S) of a tube along an arc, thick at the head and thin at the tail; lengths in mm."""
    extent = np.array(size) * spacing
    grid = np.stack(
        np.meshgrid(*(step * np.arange(n) for n, step in zip(size, spacing, strict=True)), indexing="ij"), -1
    )
    t = np.linspace(0, 1, 48)
    bend = generator.uniform(0.7, 1.15) * np.pi
    phase = generator.uniform(-0.3, 0.3)
    angle = phase + bend * (t - 0.5)
    arc = np.stack([0.3 * np.cos(angle) - 0.18, 0.3 * np.sin(angle), 0.22 * (t - 0.5)], -1)
    line = (0.5 + generator.uniform(-0.06, 0.06, 3) + arc) * extent
    radius = extent.min() * (0.15 - 0.07 * t) * generator.uniform(0.85, 1.1)
    depth, nearest = np.full(size, -np.inf), np.zeros(size, np.intp)  # above 0 inside
    for place, (centre, wide) in enumerate(
        zip(line, radius, strict=True)
    ):  # large volumes have no room for all at once
        inside = wide - np.linalg.norm(grid - centre, axis=-1)
        nearest[inside > depth] = place
        np.maximum(depth, inside, out=depth)
    part = np.where(t < generator.uniform(0.4, 0.5), 1, 2)[nearest]
    label = np.where(depth > 0, part, 0).astype(np.uint8)
    tissue = np.array([300.0, 620.0, 520.0])[label] + 45 * _noise(size, (2.5,), generator)
    bias = 1 + 0.12 * _noise(size, (0.35 * min(size),), generator)
    image = gaussian_filter(tissue * bias, 0.6) + generator.normal(0, 35, size)
    return np.rint(np.clip(image, 0, None)).astype(np.int16), label


def _affine(
    size: tuple[int, int, int],
    spacing: tuple[float, float, float],
    signs: tuple[int, ...],
    generator: np.random.Generator,
) -> Array:
    """Voxel index -> RAS mm: a small tilt about the first axis, the centre some centimetres from the origin."""
    tilt = np.deg2rad(generator.uniform(-12, 12))
    rotation = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag(np.multiply(signs, spacing))
    affine[:3, 3] = generator.uniform(-40, 40, 3) - affine[:3, :3] @ (np.array(size) / 2)
    return affine


def _write_nifti(array: NDArray[Any], affine: Array, path: Path) -> None:
    import nibabel

    image = nibabel.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, code=1)
    nibabel.save(image, path)
