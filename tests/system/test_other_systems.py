"""Systems other than Linux, imitated: without what POSIX alone has, and with locks as Windows has them."""

import errno
import os
import subprocess
import sys
import types

import pytest
import torch

from tests.places import ROOT
from tests.training.tiny import TINY
from ulna.data.formats import offsets
from ulna.errors import UsageError
from ulna.system import locking
from ulna.training import spool

EVERYTHING = """
import importlib, os, pkgutil, sys
import ulna
assert not hasattr(os, "fork") and "fcntl" not in sys.modules
failed = []
for one in pkgutil.walk_packages(ulna.__path__, "ulna.", onerror=failed.append):
    if not one.name.endswith("__main__"):
        importlib.import_module(one.name)
assert not failed, failed
from ulna.system import locking
assert locking.fcntl is None and locking.system_lock(0) is None
"""


def python(*words, **variables):
    """Run words of Python where what POSIX alone has is absent."""
    path = os.pathsep.join(map(str, (ROOT / "tests" / "absent", ROOT / "src", ROOT / "packages" / "runtime" / "src")))
    done = subprocess.run(
        [sys.executable, *words],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "ULNA_TEST_ABSENT": "1", **variables},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    return done


@pytest.mark.slow
def test_everything_imports_without_what_posix_alone_has():
    python("-c", EVERYTHING)


@pytest.mark.slow
@pytest.mark.timeout(900)  # two processes that import everything
def test_a_training_and_a_prediction_do_without_it_too(discs, tmp_path):
    settings = [word for one in TINY for word in ("--set", one)]
    ulna = ("-m", "ulna", "--quiet")
    cache = {"ULNA_CACHE": "1", "ULNA_CACHE_DIR": str(tmp_path / "cases")}
    run = tmp_path / "run"
    python(*ulna, "train", discs, "--model", "unet", "--out", run, "--epochs", "1", *settings, **cache)
    assert len([*(tmp_path / "cases").iterdir()]) == 7
    python(*ulna, "predict", run, discs / "images", "--out", tmp_path / "masks")
    assert len([*(tmp_path / "masks").glob("*.png")]) == 8
    assert not [*tmp_path.rglob(locking.LOCK)]


@pytest.mark.slow
@pytest.mark.timeout(1200)  # four processes that import everything
def test_a_comparison_does_without_it_to_its_end(discs, tmp_path):
    settings = [word for one in TINY for word in ("--set", one)]
    words = ("-m", "ulna", "compare", discs, "--models", "unet,unetpp", "--epochs", "1", "--threads", "1")
    words = (*words, *settings, "--out", tmp_path / "study")
    python(*words)
    rows = (tmp_path / "study" / "results.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 * 1  # a case of the test part each
    assert (tmp_path / "study" / "report.html").exists() and not [*tmp_path.rglob(locking.LOCK)]
    assert "begins" not in python(*words).stderr  # all is done
    assert (tmp_path / "study" / "results.csv").read_text().splitlines() == rows


class Msvcrt(types.SimpleNamespace):
    """Locks of bytes, each held by one descriptor."""

    LK_NBLCK = 2

    def __init__(self):
        super().__init__(held={})

    def locking(self, descriptor, mode, count):
        """Refuses what another descriptor holds."""
        key = (os.fstat(descriptor).st_ino, os.lseek(descriptor, 0, os.SEEK_CUR), count)
        if self.held.setdefault(key, descriptor) != descriptor:
            raise OSError(errno.EACCES, "Permission denied")


def test_locks_of_windows_keep_a_folder_for_one(tmp_path, monkeypatch):
    system = Msvcrt()
    monkeypatch.setattr(locking, "fcntl", None)
    monkeypatch.setattr(locking, "msvcrt", system)
    plainly = os.close

    def close(descriptor):
        for key in [key for key, holder in system.held.items() if holder == descriptor]:
            del system.held[key]
        plainly(descriptor)

    monkeypatch.setattr(locking.os, "close", close)
    with locking.locked(tmp_path / "a"):
        monkeypatch.setattr(locking, "_held", {})  # as another process, which knows nothing of this one
        with pytest.raises(UsageError, match=f"process {os.getpid()} on"), locking.locked(tmp_path / "a"):
            pass
        monkeypatch.setattr(locking, "_held", {(tmp_path / "a").resolve(): 0})
    assert not system.held
    with locking.locked(tmp_path / "a"):
        assert len(system.held) == 1


def test_a_note_alone_never_asks_windows_with_a_signal(monkeypatch, tmp_path):
    holder = locking.Holder(os.getpid(), locking.socket.gethostname(), "now", "train")
    monkeypatch.setattr(locking.os, "kill", lambda *_: pytest.fail("a Ctrl-C"))
    monkeypatch.setattr(locking.os, "name", "nt")
    assert not holder.ended(tmp_path)


def test_the_spool_needs_no_writing_at_a_place(tmp_path, monkeypatch):
    monkeypatch.setattr(offsets, "_HAS_PREAD", False)
    monkeypatch.setattr(spool, "AT_ONCE", 5)
    kept = spool.Spool(tmp_path, 2000)
    given = [torch.arange(7.0), torch.arange(40, dtype=torch.uint8)]
    assert all(torch.equal(kept.put(one), one) for one in given)
