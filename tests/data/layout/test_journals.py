"""The shares of a command that is gone: nothing is taken from processes that go on."""

import threading
from contextlib import contextmanager

import pytest

from ulna.data.layout import journals
from ulna.data.layout.journals import TASK, end_shares
from ulna.errors import UsageError
from ulna.system.locking import locked
from ulna.system.outputs import SHARES


@contextmanager
def held(folder):
    """Locked by somebody else."""
    begun, end = threading.Event(), threading.Event()

    def hold():
        with locked(folder):
            begun.set()
            end.wait()

    other = threading.Thread(target=hold)
    other.start()
    begun.wait()
    try:
        yield
    finally:
        end.set()
        other.join()


def test_a_round_ends_whole_or_not_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(journals, "PATIENCE_S", 0)
    monkeypatch.setattr(journals, "LOOK_S", 0)
    round_1 = tmp_path / SHARES / "round_1"
    for number in range(2):
        (round_1 / f"share_{number}").mkdir(parents=True)
    (round_1 / TASK).write_text("{}")
    with held(round_1 / "share_1"), pytest.raises(UsageError, match="another command writes into it"):
        end_shares(tmp_path)
    assert (round_1 / TASK).exists()
    end_shares(tmp_path)
    assert not (round_1 / TASK).exists()
