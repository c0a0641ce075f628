"""Cases are read by several threads, no more at once than the memory holds, and tell what they tell one by one."""

import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest

from ulna.data.formats.limits import allowing
from ulna.data.formats.source import Source
from ulna.data.layout.dataset import Dataset
from ulna.data.quality import reading
from ulna.data.quality.reading import Needs, reader_count, scan_dataset, stored_bytes
from ulna.data.quality.scan import scan_case
from ulna.errors import UsageError
from ulna.recipe import Labels

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
    small = (reading.HELD + reading.HELD_LABELS) * np.prod(SMALL)
    monkeypatch.setattr(reading, "memory", lambda: 3.5 * small / reading.SHARE)
    assert [found.case for found in scan_dataset(dataset, readers=8)] == [str(n) for n in range(9)]
    assert most["0"] == 1, "nothing was known"
    assert most["4"] == 1, "larger than the room"
    assert max(most.values()) <= 3


def needed(voxels, maps=1):
    return (reading.HELD + maps * reading.HELD_LABELS) * voxels


def test_needs_are_those_of_the_largest_and_more_where_files_are_larger(dataset):
    needs, small, large = Needs(), dataset.cases[0], dataset.cases[4]
    assert needs.of(small) == needs.room
    needs.learn(small, scan_case(small, None))
    assert needs.of(dataset.cases[1]) == needed(np.prod(SMALL))
    ratio = stored_bytes(large) / stored_bytes(small)
    assert 4 < ratio < 5 and needs.of(large) == pytest.approx(ratio * needed(np.prod(SMALL)))
    needs.learn(large, scan_case(large, None))
    assert needs.of(small) == needed(np.prod(LARGE)), "it may be packed"


def test_a_blank_image_that_is_packed_to_nothing_says_nothing_of_the_others(tmp_path):
    for name, values in (("a", np.zeros((41, 40, 40), np.uint8)), ("b", None), ("c", None)):
        values = np.random.default_rng(1).integers(0, 200, (40, 40, 40), np.uint8) if values is None else values
        for folder in ("images", "labels"):
            (tmp_path / folder).mkdir(exist_ok=True)
            nibabel.Nifti1Image(values, np.eye(4)).to_filename(tmp_path / folder / f"{name}.nii.gz")
    cases, needs = Dataset.from_folder(tmp_path).cases, Needs()
    for case in cases[:2]:
        needs.learn(case, scan_case(case, None))
    assert needs.of(cases[2]) == pytest.approx(needed(41 * 40 * 40), rel=0.01)


def test_every_map_of_labels_counts(dataset):
    needs = Needs(Labels(names=tuple("abcd"), multilabel=True))
    needs.learn(dataset.cases[0], scan_case(dataset.cases[0], None))
    assert needs.of(dataset.cases[1]) == needed(np.prod(SMALL), 4)


def test_a_file_out_of_reach_is_a_problem_of_its_case(dataset):
    cases = [replace(case, label=Source(Path("x" * 5000))) if case.id == "2" else case for case in dataset.cases]
    told = [scan_dataset(replace(dataset, cases=tuple(cases)), readers) for readers in (1, 3)]
    assert told[0] == told[1] and [bool(one.problems) for one in told[0]] == [n == 2 for n in range(9)]


def test_what_must_end_the_reading_ends_it(dataset, monkeypatch):
    def full(case, labels):
        if case.id == "1":
            raise UsageError("the disk is full")
        return scan_case(case, labels)

    monkeypatch.setattr(reading, "scan_case", full)
    before = threading.active_count()
    with pytest.raises(UsageError, match="the disk is full"):
        scan_dataset(dataset, readers=3)
    assert threading.active_count() == before
    monkeypatch.setattr(reading, "scan_case", scan_case)
    monkeypatch.setattr(Needs, "learn", lambda *_: 1 // 0)  # as a Ctrl-C beside the threads
    with pytest.raises(ZeroDivisionError) as kept:  # its traceback holds what was under way
        scan_dataset(dataset, readers=3)
    assert kept.tb is not None and threading.active_count() == before


def test_rows_of_one_file_are_read_one_by_one(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.ones((3, 8, 9), np.uint8), masks=np.ones((3, 8, 9), np.uint8))
    dataset = Dataset.from_folder(tmp_path / "a.npz")
    needs = Needs()
    needs.learn(dataset.cases[0], scan_case(dataset.cases[0], None))
    assert needs.of(dataset.cases[1]) == needs.room


def test_one_reads_on_one_processor_and_within_a_limit(monkeypatch):
    monkeypatch.setattr(reading, "granted_cores", lambda: 64)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert reader_count() == reading.MOST_READERS
    with allowing(None, 4.0):
        assert reader_count() == 1
    monkeypatch.setenv("ULNA_PARENT", "1")  # as in a job beside others
    assert reader_count() == 1
    monkeypatch.delenv("ULNA_PARENT")
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(get_num_threads=lambda: 3))  # as --threads says
    assert reader_count() == 3
    monkeypatch.setattr(reading, "granted_cores", lambda: 1)
    assert reader_count() == 1


def test_a_job_of_slurm_has_a_quarter_of_what_it_was_granted(monkeypatch):
    monkeypatch.setattr(reading, "memory", lambda: 10**12)
    for stated, room in (("4096", 2**30), ("0", 10**12 / 4), ("all", 10**12 / 4)):
        monkeypatch.setenv("SLURM_MEM_PER_NODE", stated)
        assert Needs().room == room
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "1024")
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "8")
    assert Needs().room == 2**31
