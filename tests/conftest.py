"""What every test shares: one thread, so that parallel test processes do not fight, and small data sets on disk."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.places import SHARED

torch.set_num_threads(int(os.environ.get("ULNA_TEST_THREADS", "1")))

# Rooms whose tests depend on how a processor computes; CI runs their quick tests under imitated processors too.
COMPUTING = ("kernels/", "blocks/", "networks/", "inference/", "explaining/test_methods.py", "test_losses.py")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data beside the project; tests that want them skip where they are absent."""
    if not SHARED.exists():
        pytest.skip("real data are not on this machine")
    return SHARED


@pytest.fixture(scope="session")
def discs(tmp_path_factory):
    """Eight bright discs on noise, two of them to validate, one to test."""
    root = tmp_path_factory.mktemp("discs")
    rng = np.random.default_rng(0)
    for folder in ("images", "labels"):
        (root / folder).mkdir()
    rows, columns = np.mgrid[:32, :40]
    for number in range(8):
        y, x, r = rng.integers(9, 23), rng.integers(9, 31), rng.integers(5, 9)
        mask = (rows - y) ** 2 + (columns - x) ** 2 < r**2
        image = np.clip(80 + 90 * mask + rng.normal(0, 15, mask.shape), 0, 255).astype(np.uint8)
        Image.fromarray(image).save(root / "images" / f"disc{number}.png")
        Image.fromarray(mask.astype(np.uint8) * 255).save(root / "labels" / f"disc{number}.png")
    ids = [f"disc{number}" for number in range(8)]
    (root / "splits.json").write_text(json.dumps({"train": ids[:5], "val": ids[5:7], "test": ids[7:]}))
    return root


def pytest_collection_modifyitems(items):
    """Mark what depends on the processor; the longest tests begin first, so that the others fill the time left."""
    for item in items:
        here = Path(__file__).parent
        if item.path.is_relative_to(here) and item.path.relative_to(here).as_posix().startswith(COMPUTING):
            item.add_marker(pytest.mark.processor)

    def later(item):
        slow = item.get_closest_marker("slow")
        return not (slow and slow.kwargs.get("longest"))

    items.sort(key=later)
