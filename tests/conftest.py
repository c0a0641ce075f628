"""What every test shares: one thread, so that parallel test processes do not fight, and small data sets on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data beside the project; tests that want them skip where they are absent."""
    if not SHARED.exists():
        pytest.skip("real data are not on this machine")
    return SHARED
