"""Patches of a prepared case on disk are read where they lie: not the case."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.plans import make
from ulna.data.formats.source import Source
from ulna.data.layout.case import Case
from ulna.data.pipeline.preprocess import Prepared
from ulna.data.prepared.contents import Contents
from ulna.data.prepared.store import CaseStore
from ulna.kernels.cache import danger
from ulna.recipe import Recipe
from ulna.training.samples import LABELS, REFERENCE, PreparedCases
from ulna.training.slices import samples_of

SIZE, PATCH = (48, 256, 256), (16, 16, 16)
SMAPS = Path("/proc/self/smaps")


def resident(name):
    """Bytes of the maps of a file that this process has touched."""
    total, ours = 0, False
    for line in SMAPS.read_text().splitlines():
        head = line.split()[0]
        if "-" in head and not head.endswith(":"):
            ours = name in line
        elif ours and head == "Rss:":
            total += 1024 * int(line.split()[1])
    return total


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A case of 12.6 MB in the cache, as a training has it that keeps nothing in memory; and the name of its file."""
    tmp_path.chmod(0o700)
    if hasattr(os, "geteuid") and (reason := danger(tmp_path)):
        pytest.skip(reason)
    monkeypatch.setenv("ULNA_CACHE_DIR", str(tmp_path / "cases"))
    monkeypatch.delenv("ULNA_CACHE")
    for name in ("image", "label"):  # only their bytes count here
        np.save(tmp_path / f"{name}.npy", np.zeros((2, 2, 2), np.uint8))
    case = Case("a", (Source(tmp_path / "image.npy"),), Source(tmp_path / "label.npy"))
    plan = make(spatial_dims=3, patch=PATCH, unit="mm")
    labels = torch.zeros(SIZE, dtype=torch.uint8)
    labels[20:23, 100:120, 90:130] = 1
    prepared = Prepared(torch.arange(np.prod(SIZE), dtype=torch.float32).reshape(1, *SIZE), SIZE, step=(1.0,) * 3)
    store = CaseStore(plan, Contents(), tmp_path, every=True)
    assert store.put(case, (), prepared, {LABELS: labels, REFERENCE: labels}) is not None
    (file,) = (tmp_path / "cases").iterdir()
    return PreparedCases([case], plan, keep_bytes=0, store=store), file.name


def test_a_patch_is_a_view_of_the_file_and_is_what_is_read_of_it(kept):
    cases, name = kept
    image = cases[0][0].image
    assert cases.keeps(0) and not cases._room
    samples = samples_of(cases, cases.plan, Recipe(model="unet").replaced(augmentation={"affine": 0.0}))
    before = resident(name) if SMAPS.exists() else 0
    drawn = [samples.draw((0, number, 0)) for number in range(2)]
    first, end = image.data_ptr(), image.data_ptr() + image.nbytes
    for sample in drawn:
        piece = sample.piece.image
        assert first <= piece.data_ptr() < end and piece.stride() == image.stride()  # nothing was copied
        assert piece.nbytes < image.nbytes / 8
    values, _ = samples.make(drawn, torch.device("cpu"))
    assert values.shape == (2, 1, *PATCH)
    if SMAPS.exists():
        read = resident(name) - before
        # a patch of 16 rows in each of 16 planes: the system maps up to two stretches of 64 kB about each
        assert 0 < read <= 2 * 16 * 4 * 65536 < image.nbytes
    assert cases[0][0].image.data_ptr() == first  # and it is not opened again
