"""Arrays of `.npz` within `--max-ram`: rows of their own, archives unpacked once where they fit, and refused where not."""

import numpy as np
import pytest

from ulna.data.formats import limits, npz
from ulna.data.formats.limits import TooLargeError, keeping_to
from ulna.data.formats.read import read_labels
from ulna.data.formats.source import Source

CASES, SIDE = 20, 64
ARCHIVE = CASES * SIDE**2  # bytes of its masks


@pytest.fixture
def unpacked(tmp_path, monkeypatch):
    """Two archives, and a list of what was unpacked of them."""
    monkeypatch.setattr(limits, "held_bytes", lambda: 0.0)
    values = np.random.default_rng(0).integers(0, 2, (CASES, SIDE, SIDE), np.uint8)
    for name in "ab":
        np.savez(tmp_path / f"{name}.npz", images=values, masks=values)
    read, done = npz._read, []

    def counting(path, archive, key):
        done.append(f"{path.name} {key}")
        return read(path, archive, key)

    monkeypatch.setattr(npz, "_read", counting)
    yield done, tmp_path
    npz._held.clear()


def every_pair(folder):
    for row in range(CASES):
        yield [read_labels(Source(folder / f"{name}.npz", row)).array for name in "ab"]


@pytest.mark.parametrize(("most", "times"), [(8 * ARCHIVE, 2), (3 * ARCHIVE, 2 * CASES)])
def test_archives_are_unpacked_once_where_both_fit(unpacked, most, times):
    done, folder = unpacked
    with keeping_to(None, most / 1e9, 0, "raise it"):
        for ours, theirs in every_pair(folder):
            assert np.array_equal(ours, theirs)
            assert ours.base is None and theirs.base is None  # or the whole array would be held by it
            assert limits.room() <= most - ARCHIVE  # what is kept counts
    assert len(done) == times and {*done} == {"a.npz masks", "b.npz masks"}


def test_an_archive_counts_beside_what_is_held(unpacked):
    done, folder = unpacked
    with keeping_to(None, 2.5 * ARCHIVE / 1e9, 0, "raise it"):
        read_labels(Source(folder / "a.npz", 0))
        with limits.holding(2 * ARCHIVE), pytest.raises(TooLargeError, match=r"b\.npz: .* GB at least"):
            read_labels(Source(folder / "b.npz", 0))
    assert done == ["a.npz masks"]
    assert next(every_pair(folder))[0].shape[-1] == SIDE  # without a limit as ever
