"""What every test shares: one thread, so that parallel test processes do not fight, and small data sets on disk."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
import torch

from tests import budget, share
from tests.discs import draw_discs
from tests.places import SHARED
from ulna.system import progress

# prepared cases of tests are nothing to keep; what tests the cache gives it a folder
os.environ["ULNA_CACHE"] = "0"
torch.set_num_threads(int(os.environ.get("ULNA_TEST_THREADS", "1")))

# Rooms whose tests depend on how a processor computes; CI runs their quick tests under imitated processors too.
COMPUTING = (
    "kernels/",
    "blocks/",
    "networks/",
    "inference/",
    "data/pipeline/",
    "explaining/test_methods.py",
    "test_losses.py",
)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data beside the project; tests that want them skip where they are absent."""
    if not SHARED.exists():
        pytest.skip("real data are not on this machine")
    return SHARED


@pytest.fixture(scope="session")
def discs(tmp_path_factory):
    """Eight bright discs on noise, two of them to validate, one to test."""
    return draw_discs(
        tmp_path_factory.mktemp("discs"),
        8, seed=0, size=(32, 40), smallest=5, contrast=90, noise=15, foreground=255, train=5, val=2,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def log_and_bars_left_as_they_were():
    """A command line and a training of a study take them to themselves; the next test finds them as if it were the first."""
    logger = logging.getLogger("ulna")
    before = logger.handlers[:], logger.level, logger.propagate
    bars = {name: getattr(progress, name) for name in ("_listener", "_quiet", "_shared")}
    yield
    logger.handlers[:], logger.level, logger.propagate = before
    for name, value in bars.items():
        setattr(progress, name, value)


def pytest_collection_modifyitems(items):
    """Mark what depends on the processor and what is slow; the longest begin first, so that the others fill the time left."""
    for item in items:
        here = Path(__file__).parent
        if item.path.is_relative_to(here) and item.path.relative_to(here).as_posix().startswith(COMPUTING):
            item.add_marker(pytest.mark.processor)
    share.mark_the_rest_slow(items)

    def later(item):
        slow = item.get_closest_marker("slow")
        return not (slow and slow.kwargs.get("longest"))

    if budget.LIMITED:
        budget.order(items)
    else:
        items.sort(key=later)


@pytest.hookimpl(tryfirst=True)  # before the fixtures of what is skipped
def pytest_runtest_setup(item):
    budget.skip_what_is_late(item)
