"""Bytes at a place are the same without the calls that Windows has not."""

import pytest

from ulna.data.formats import offsets


@pytest.mark.parametrize("has_pread", [True, False])
def test_read_and_write_at_a_place(tmp_path, monkeypatch, has_pread):
    monkeypatch.setattr(offsets, "_HAS_PREAD", has_pread)
    with (tmp_path / "a").open("wb+") as file:
        assert offsets.write_at(file.fileno(), memoryview(b"abcdef"), 4) == 6
        assert offsets.write_at(file.fileno(), memoryview(b"XY"), 5) == 2
        assert offsets.read_at(file.fileno(), 4, 3) == b"\0aXY"
        assert offsets.read_at(file.fileno(), 9, 8) == b"ef"
        assert offsets.read_at(file.fileno(), 9, 10) == b""
