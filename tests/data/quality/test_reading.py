"""Cases are read by several threads, no more at once than the memory holds, and tell what they tell one by one."""

import threading

import nibabel
import numpy as np
import pytest

from ulna.data.formats.limits import allowing
from ulna.data.layout.dataset import Dataset
from ulna.data.quality import reading
from ulna.data.quality.reading import Needs, reader_count, scan_dataset, stored_bytes
from ulna.data.quality.scan import scan_case

SMALL, LARGE = (8, 8, 64), (8, 8, 320)


@pytest.fixture
def dataset(tmp_path):
    """Nine volumes; that of case 4 is five times as large."""
    for number in range(9):
        size = LARGE if number == 4 else SMALL
        values = np.random.default_rng(number).integers(0, 200, size, np.uint8)
        for folder, array in (("images", values), ("labels", (values > 100).astype(np.uint8))):
            (tmp_path / folder).mkdir(exist_ok=True)
            nibabel.Nifti1Image(array, np.eye(4)).to_filename(tmp_path / folder / f"{number}.nii")
    return Dataset.from_folder(tmp_path)


def test_several_readers_find_what_one_finds(dataset):
    (dataset.root / "images" / "3.nii").write_bytes(b"no image")
    one = scan_dataset(dataset, readers=1)
    assert scan_dataset(dataset, readers=3) == one and [bool(found.problems) for found in one].index(True) == 3


def test_as_many_are_read_at_once_as_the_memory_holds(dataset, monkeypatch):
    under_way, most, together = set(), {}, threading.Barrier(3)

    def watched(case, labels):
        under_way.add(case.id)
        if case.id in "123":
            together.wait(60)  # which one by one would never reach
        found = scan_case(case, labels)
        most[case.id] = len(under_way)
        under_way.remove(case.id)
        return found

    monkeypatch.setattr(reading, "scan_case", watched)
    small = reading.HELD * np.prod(SMALL)
    monkeypatch.setattr(reading, "memory", lambda: 3.5 * small / reading.SHARE)
    assert [found.case for found in scan_dataset(dataset, readers=8)] == [str(n) for n in range(9)]
    assert most["0"] == 1, "nothing was known"
    assert most["4"] == 1, "larger than the room"
    assert max(most.values()) <= 3


def test_needs_grow_with_the_files_and_with_what_they_became(dataset):
    needs, small, large = Needs(), dataset.cases[0], dataset.cases[4]
    assert needs.of(small) == needs.room
    needs.learn(small, scan_case(small, None))
    assert needs.of(small) == pytest.approx(reading.HELD * np.prod(SMALL))
    ratio = stored_bytes(large) / stored_bytes(small)
    assert 4 < ratio < 5 and needs.of(large) == pytest.approx(ratio * needs.of(small))


def test_rows_of_one_file_are_read_one_by_one(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.ones((3, 8, 9), np.uint8), masks=np.ones((3, 8, 9), np.uint8))
    dataset = Dataset.from_folder(tmp_path / "a.npz")
    needs = Needs()
    needs.learn(dataset.cases[0], scan_case(dataset.cases[0], None))
    assert needs.of(dataset.cases[1]) == needs.room


def test_one_reads_on_one_processor_and_within_a_limit(monkeypatch):
    monkeypatch.setattr(reading, "granted_cores", lambda: 64)
    assert reader_count() == reading.MOST_READERS
    with allowing(None, 4.0):
        assert reader_count() == 1
    monkeypatch.setattr(reading, "granted_cores", lambda: 1)
    assert reader_count() == 1
