"""A machine with SLURM: commands that stand in for its own."""

import os
import signal
from contextlib import suppress

import pytest

from tests.executors import fake_slurm
from ulna.executors import handing
from ulna.executors.slurm import Slurm


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A machine with SLURM, whose states lie in the folder that is given."""
    root = tmp_path / "controller"
    root.mkdir()
    monkeypatch.setenv("FAKE_SLURM", str(root))
    monkeypatch.setenv("PATH", f"{fake_slurm.install(tmp_path / 'bin')}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(Slurm, "look_s", 0.2)
    monkeypatch.setattr(handing.Late, "patience_s", 1.0)
    yield root
    for told in fake_slurm.states(root).values():
        for pid in (told["runner"], told.get("job")):
            if pid and told["state"] in ("PENDING", "RUNNING"):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
