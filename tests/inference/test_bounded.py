"""`predict --max-ram`: the same masks, and what cannot keep to the limit is refused beforehand."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
from PIL import Image

import ulna
from tests.dicom_series import write_series
from tests.inference.test_predict import run_folder
from ulna.data.formats.read import read_labels
from ulna.data.formats.source import Source
from ulna.errors import UsageError
from ulna.inference import bounded
from ulna.planning.bounded import Needs, least, plan_columns
from ulna.recipe import Labels, Normalization

CLASSES = Labels(names=("background", "a", "b", "c"))


def narrow(monkeypatch, count):
    """Answer in so many columns, and prepare and read some rows at a time, whatever the memory."""
    made = []

    def columns(needs, limit):
        width = needs.width
        if not width:
            return plan_columns(needs, limit)
        ends = tuple((width * n // count, width * (n + 1) // count) for n in range(count))
        made.append(bounded.Columns(ends, sum(map(needs.count, ends)) / needs.count(None), 0.0))
        return made[-1]

    monkeypatch.setattr(bounded, "plan_columns", columns)
    monkeypatch.setattr(bounded, "PREPARING", 20_000)
    monkeypatch.setattr(bounded, "AT_ONCE", 500)
    return made


def volume_of(folder, name, size, affine, seed=0):
    folder.mkdir(exist_ok=True)
    values = np.random.default_rng(seed).normal(100, 40, size).astype(np.int16)
    image = nibabel.Nifti1Image(values, affine)
    image.header.set_xyzt_units("mm")
    image.to_filename(folder / name)


def both(run, images, tmp_path, **options):
    """The masks and rows of predict.json, without a limit and with one."""
    found = []
    for name, extra in (("whole", {}), ("bounded", {"max_ram": 8.0})):
        ulna.predict(run, images, out=tmp_path / name, **options, **extra)
        rows = json.loads((tmp_path / name / "predict.json").read_text())["cases"]
        found.append(({row["file"]: read_labels(Source(tmp_path / name / row["file"])) for row in rows}, rows))
    return found


def assert_same(found):
    (whole, rows), (ours, own_rows) = found
    assert whole.keys() == ours.keys() and whole
    for name, mask in whole.items():
        assert mask.array.dtype == ours[name].array.dtype
        np.testing.assert_array_equal(mask.array, ours[name].array)
        np.testing.assert_array_equal(mask.affine, ours[name].affine)
        assert len(np.unique(mask.array)) > 1
        assert (mask.spacing, mask.meta.orientation) == (ours[name].spacing, ours[name].meta.orientation)
    for row, own in zip(rows, own_rows, strict=True):
        assert (row["trust"], row.get("notes")) == (own["trust"], own.get("notes"))


LPS = np.array([[-1.0, 0, 0, 5], [0, -1.3, 0, 2], [0, 0, 2.1, 0], [0, 0, 0, 1]])
TURNED = np.array([[0, 0, 1.1, 5], [-0.9, 0, 0, 2], [0, 2.0, 0, 0], [0, 0, 0, 1.0]])


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    ("size", "affine", "grid", "suffix"),
    [
        ((26, 31, 14), np.diag([1.0, 1, 1, 1]), (1.0, 1.0, 1.0), ".nii"),
        ((26, 31, 14), LPS, (1.4, 0.8, 1.5), ".nii.gz"),
        ((14, 26, 31), TURNED, (1.4, 1.7, 1.5), ".nii.gz"),
    ],
)
def test_volumes(tmp_path, monkeypatch, count, size, affine, grid, suffix):
    made = narrow(monkeypatch, count)
    turned = "RAS" if (affine != np.eye(4)).any() else None
    run = run_folder(
        tmp_path / "run", 0, spatial_dims=3, strides=((2, 2, 2),), patch=(16, 16, 8), whole_image_limit=10,
        labels=CLASSES, spacing=grid, unit="mm", orientation=turned,
    )  # fmt: skip
    volume_of(tmp_path / "images", f"x{suffix}", size, affine)
    assert_same(both(run, tmp_path / "images", tmp_path))
    assert len(made[0].ends) == count and (made[0].cost > 1) == (count > 1)


def test_what_was_changed_of_dicom_is_recorded(tmp_path, monkeypatch):
    narrow(monkeypatch, 2)
    run = run_folder(
        tmp_path / "run", 0, spatial_dims=3, strides=((2, 2, 2),), patch=(16, 16, 8), whole_image_limit=10,
        labels=CLASSES, spacing=(1.0, 1.0, 2.0), unit="mm", orientation="RAS",
    )  # fmt: skip
    values = np.random.default_rng(0).integers(0, 900, (10, 24, 26)).astype(np.int16)
    write_series(tmp_path / "images" / "case", values, tilt=(0.0, 0.5))
    found = both(run, tmp_path / "images", tmp_path, format=["nifti"])
    assert_same(found)
    assert found[0][1][0]["notes"]


def test_pictures_and_ensembles_and_mirrored_copies(tmp_path, monkeypatch):
    narrow(monkeypatch, 2)
    plan = {"labels": CLASSES, "whole_image_limit": 10, "unit": "px", "mask_values": (0, 50, 100, 200)}
    run = run_folder(tmp_path / "a", 0, **plan)
    other = run_folder(tmp_path / "b", 1, **plan, normalization=(Normalization(kind="rescale", high=255.0),))
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(3)
    Image.fromarray(rng.integers(0, 255, (45, 61), np.uint8)).save(tmp_path / "images" / "p.png")
    options = {"tile": (16, 16), "compression": "zlib", "extratags": [(274, 3, 1, 6, True)]}
    values = rng.integers(0, 255, (45, 61), np.uint8)
    tifffile.imwrite(tmp_path / "images" / "t.tif", values, photometric="minisblack", **options)
    np.save(tmp_path / "images" / "n.npy", values)
    for name, runs, tta in (("one", [run], False), ("two", [run, other], False), ("copies", [run], True)):
        (tmp_path / name).mkdir()
        assert_same(both(runs, tmp_path / "images", tmp_path / name, tta=tta))


def test_slices_of_volumes(tmp_path, monkeypatch):
    narrow(monkeypatch, 3)
    run = run_folder(
        tmp_path / "run", 0, labels=CLASSES, spacing=(2.1, 1.0, 1.0), unit="mm", whole_image_limit=10,
        slices={"axis": 0, "neighbours": 1, "full_count": 1, "empty_count": 0},
        fingerprint={"spatial_dims": 3, "size": dict.fromkeys(("min", "median", "max"), (16, 16, 16))},
    )  # fmt: skip
    volume_of(tmp_path / "images", "x.nii.gz", (11, 26, 31), np.diag([2.1, 1, 1, 1]))
    assert_same(both(run, tmp_path / "images", tmp_path))


def test_overlapping_classes_in_one_map_or_many(tmp_path, monkeypatch):
    narrow(monkeypatch, 2)
    for name, order in (("many", None), ("one", (1, 2))):
        labels = Labels(names=("a", "b"), multilabel=True, values=((1, 2), (2,)), order=order)
        run = run_folder(
            tmp_path / name, 0, spatial_dims=3, strides=((2, 2, 2),), patch=(8, 8, 8), whole_image_limit=10,
            labels=labels, unit="mm",
        )  # fmt: skip
        volume_of(tmp_path / "images", "x.nii.gz", (12, 18, 14), np.eye(4))
        assert_same(both(run, tmp_path / "images", tmp_path / name))


def test_too_little_is_refused_with_the_least_that_works(tmp_path, monkeypatch):
    run = run_folder(
        tmp_path / "run", 0, spatial_dims=3, strides=((2, 2, 2),), patch=(16, 16, 16), labels=CLASSES, unit="mm"
    )
    volume_of(tmp_path / "images", "x.nii.gz", (20, 20, 20), np.eye(4))
    with pytest.raises(
        UsageError, match=r"of 20 x 20 x 20 with 4 maps needs [\d.]+ GB at least .* --max-ram 0\.1 allows"
    ):
        ulna.predict(run, tmp_path / "images", out=tmp_path / "out", max_ram=0.1)
    with pytest.raises(UsageError, match=r"without any image it takes [\d.]+ GB, more than --max-ram 0\.1 allows"):
        ulna.predict(run, tmp_path / "images", out=tmp_path / "out", max_ram=0.1, probabilities=True)
    monkeypatch.setattr(bounded, "WORKING", 10**12)
    with pytest.raises(UsageError, match=r"needs about [\d.]+ GB \(--probabilities keeps all maps\)"):
        ulna.predict(run, tmp_path / "images", out=tmp_path / "out", max_ram=100, probabilities=True)
    with pytest.raises(UsageError, match="--report reads images whole"):
        ulna.predict(run, tmp_path / "images", out=tmp_path / "out", max_ram=8, report=True)
    with pytest.raises(UsageError, match="--max-ram 0: must be above 0"):
        ulna.predict(run, tmp_path / "images", out=tmp_path / "out", max_ram=0)


def test_the_fewest_columns_that_keep_to_the_limit():
    needs = Needs(1e8, 1e8, lambda across: 1e7 * across, 0, 0, 64, lambda ends: 10 if ends is None else 4)
    whole = needs.total(64)
    assert plan_columns(needs, whole).ends == ((0, 64),)
    halves = plan_columns(needs, whole - 1)
    assert halves.ends == ((0, 32), (32, 64)) and halves.cost == 0.8
    smallest = least(needs)
    assert needs.total(8) <= smallest < needs.total(8) + 1e7
    assert len(plan_columns(needs, smallest).ends) == 8
    assert plan_columns(needs, needs.total(8) - 1) is None


def peak_of(*arguments):
    """The most bytes that a call of ulna and its children held, and what it printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    call = [sys.executable, "-m", "ulna", *map(str, arguments)]
    peak = 0
    with subprocess.Popen(
        call, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        while process.poll() is None:
            peak = max(peak, held_by(process.pid))
            time.sleep(0.01)
        return peak, process.stdout.read(), process.returncode


def held_by(pid, of_parent=""):
    """Bytes of a process, as its kernel knows the most of them, and of its children that have begun their own program."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        pages = Path(f"/proc/{pid}/statm").read_text()
        children = [
            int(one) for task in Path(f"/proc/{pid}/task").iterdir() for one in (task / "children").read_text().split()
        ]
    except OSError:
        return 0
    most = sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    return 0 if pages == of_parent else 1024 * most + sum(held_by(child, pages) for child in children)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the system does not tell what a process holds")
@pytest.mark.parametrize(("size", "classes"), [((64, 64, 64), 2), ((48, 40, 40), 20)])
def test_the_least_that_works_is_kept_to(tmp_path, size, classes):
    labels = Labels(names=("background", *(f"class {n}" for n in range(1, classes))))
    run = run_folder(
        tmp_path / "run", 0, spatial_dims=3, strides=((2, 2, 2),), patch=(32, 32, 32), whole_image_limit=10,
        labels=labels, spacing=(0.9, 0.9, 0.9), unit="mm", orientation="RAS",
    )  # fmt: skip
    volume_of(tmp_path / "images", "x.nii.gz", size, np.eye(4))
    command = ("predict", run, tmp_path / "images", "--out", tmp_path / "out", "--max-ram")
    _, said, code = peak_of(*command, 0.1)
    least_gb = float(re.search(r"needs ([\d.]+) GB at least", " ".join(said.split()))[1])
    assert code == 2 and not list(tmp_path.glob("out/*.nii.gz"))
    # what the process holds before differs from call to call by a few MB
    peak, said, code = peak_of(*command, least_gb + 0.03)
    assert code == 0, said
    assert 0.5 * least_gb < peak / 1e9 <= least_gb + 0.03
