"""What a process holds, where the pages of its memory are of another size."""

import os

from ulna.planning import memory
from ulna.system import held


def test_pages_are_of_the_size_that_the_system_tells(monkeypatch, tmp_path):
    (tmp_path / "statm").write_text("9 7 0\n")
    monkeypatch.setattr(held, "Path", lambda _: tmp_path / "statm")
    told = os.sysconf
    monkeypatch.setattr(os, "sysconf", lambda name: 1 << 16 if name == "SC_PAGE_SIZE" else told(name))
    assert held.held_bytes() == 7 << 16
    assert memory.program_bytes() in (7 << 16, memory.PROGRAM)  # that of a GPU
    (tmp_path / "statm").unlink()
    assert held.held_bytes() == held.UNKNOWN and held.held_bytes(3.0) == 3
