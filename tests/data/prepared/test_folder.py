"""Where entries lie, how much of them, and which go first; what `ulna cache` shows and removes."""

import json
import os
import time

import pytest
import torch

import ulna
from tests.data.prepared.forks import forked, wait_for
from ulna.cli.main import run
from ulna.data.prepared import folder as places
from ulna.data.prepared.entry import Draft, read_entry, write_entry
from ulna.data.prepared.store import kept_cases
from ulna.errors import UsageError
from ulna.kernels.cache import danger


@pytest.fixture
def cases(tmp_path, monkeypatch):
    """The folder of entries, this user's own."""
    tmp_path.chmod(0o700)
    if hasattr(os, "geteuid") and (reason := danger(tmp_path)):
        pytest.skip(reason)
    monkeypatch.setenv("ULNA_CACHE_DIR", str(tmp_path / "cases"))
    monkeypatch.delenv("ULNA_CACHE_GB", raising=False)
    return places.opened(make=True)


def put(folder, name, *, numbers=250, age_s=0.0, data="/data/nuclei"):
    path = folder / f"{name}.case"
    assert write_entry(path, Draft.of({"image": torch.zeros(numbers)}, {"data": data}), lambda: True)
    used = time.time() - age_s
    os.utime(path, (used, used))
    return path


def names(folder):
    return sorted(path.stem for path in folder.glob("*.case"))


def test_the_place_is_that_of_the_system_and_never_relative(monkeypatch, tmp_path):
    monkeypatch.delenv("ULNA_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert places.where() == tmp_path / "ulna" / "cases"
    monkeypatch.setenv("XDG_CACHE_HOME", "caches")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert places.where() == tmp_path / "me" / ".cache" / "ulna" / "cases"
    monkeypatch.setenv("ULNA_CACHE_DIR", str(tmp_path / "scratch"))
    assert places.where() == tmp_path / "scratch"


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="files have no owners here")
def test_only_a_folder_of_ones_own_is_used(cases, monkeypatch):
    assert cases.stat().st_mode & 0o777 == 0o700
    cases.chmod(0o777)
    with pytest.raises(places.Unusable, match="written by others"):
        places.opened(make=False)
    with pytest.raises(UsageError, match="chmod 700"):
        ulna.cache()
    cases.chmod(0o700)
    linked = cases.with_name("linked")
    linked.symlink_to(cases)
    monkeypatch.setenv("ULNA_CACHE_DIR", str(linked))
    with pytest.raises(places.Unusable, match="a link"):
        places.opened(make=True)


def test_those_that_were_not_used_for_longest_go_first_and_no_more_than_must(cases, monkeypatch):
    for age, name in enumerate("abcd"):
        put(cases, name, age_s=100.0 * age)
    size = (cases / "a.case").stat().st_size
    monkeypatch.setenv("ULNA_CACHE_GB", str(3.5 * size / 1e9))
    assert places.make_room(cases, ()) and names(cases) == ["a", "b", "c"]
    places.touch(cases / "c.case")
    monkeypatch.setenv("ULNA_CACHE_GB", str(2.5 * size / 1e9))
    assert places.make_room(cases, ()) and names(cases) == ["a", "c"]
    monkeypatch.setenv("ULNA_CACHE_GB", str(1.5 * size / 1e9))
    assert places.make_room(cases, {"a.case"}) and names(cases) == ["a"], "in use here"
    monkeypatch.setenv("ULNA_CACHE_GB", "0")
    assert not places.make_room(cases, {"a.case"}) and names(cases) == ["a"]


def test_what_is_being_written_counts_and_what_a_kill_left_goes(cases, monkeypatch):
    put(cases, "a", age_s=50)
    half = cases / ".tmp-1-1-b.case"
    half.write_bytes(bytes((cases / "a.case").stat().st_size))
    monkeypatch.setenv("ULNA_CACHE_GB", str(half.stat().st_size * 1.5 / 1e9))
    assert places.make_room(cases, ()) and names(cases) == [".tmp-1-1-b"]
    places.remove_abandoned(cases)
    assert half.exists()
    old = time.time() - places.ABANDONED_S - 1
    os.utime(half, (old, old))
    places.remove_abandoned(cases)
    assert not half.exists()


def test_an_entry_that_is_removed_stays_with_who_reads_it(cases, monkeypatch):
    path = put(cases, "a", age_s=50)
    tensor = read_entry(path).tensors["image"]
    monkeypatch.setenv("ULNA_CACHE_GB", "0")
    assert places.make_room(cases, ()) and not path.exists()
    assert tensor.sum() == 0 and len(tensor) == 250


def test_without_a_word_half_of_the_disk_is_left(cases, monkeypatch):
    free = 10_000
    monkeypatch.setattr(places.shutil, "disk_usage", lambda folder: os.terminal_size((0, free)) and Free(free))
    assert places.limit(cases, 2_000) == 6_000
    free = int(1e15)
    assert places.limit(cases, 0) == places.MOST


class Free:
    def __init__(self, free):
        self.free = free


@pytest.mark.parametrize("said", ["much", "-1", "nan", "inf"])
def test_a_limit_that_is_no_number_is_refused(said, monkeypatch):
    monkeypatch.setenv("ULNA_CACHE_GB", said)
    with pytest.raises(UsageError, match=r"ULNA_CACHE_GB=.* no number of GB"):
        places.wanted_limit()


@pytest.mark.parametrize(
    ("said", "wanted", "shared", "kept"),
    [
        (None, "auto", False, "large"), (None, "auto", True, "all"), (None, True, False, "all"), (None, False, True, "none"),
        ("0", True, True, "none"), ("1", "auto", False, "all"), ("1", False, True, "none"),
    ],
)  # fmt: skip
def test_recipe_and_variable_can_each_switch_the_cache_off(said, wanted, shared, kept, monkeypatch):
    monkeypatch.delenv("ULNA_CACHE", raising=False)
    if said is not None:
        monkeypatch.setenv("ULNA_CACHE", said)
    assert kept_cases(wanted, shared=shared) == kept
    monkeypatch.setenv("ULNA_CACHE", "off")
    with pytest.raises(UsageError, match="neither 0"):
        kept_cases("auto")


def test_the_verb_lists_by_data_set_and_removes_what_is_meant(cases, tmp_path, capsys, monkeypatch):
    put(cases, "a", age_s=10)
    put(cases, "b", age_s=40 * 86400)
    put(cases, "c", age_s=5 * 86400, data=str(tmp_path / "gone"))
    size = sum(path.stat().st_size for path in cases.iterdir())
    monkeypatch.setenv("ULNA_CACHE_GB", "2")
    shown = ulna.cache()
    assert [(one.data, one.cases) for one in shown.data] == [("/data/nuclei", 2), (str(tmp_path / "gone"), 1)]
    assert (shown.cases, shown.bytes, shown.folder, shown.removed) == (3, size, cases, None)
    assert run(["cache", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == shown.to_json()
    assert run(["cache"]) == 0 and "3 prepared cases" in " ".join(capsys.readouterr().out.split())
    assert run(["cache", "--older-than", "3"]) == 2 and run(["cache", "--data", "x"]) == 2
    assert run(["cache", "--clear", "--older-than", "-3"]) == 2
    assert names(cases) == ["a", "b", "c"]
    assert ulna.cache(clear=True, older_than=30).removed == 1 and names(cases) == ["a", "c"]
    capsys.readouterr()
    # a data set that is there no more
    assert run(["cache", "--clear", "--data", str(tmp_path / "gone"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["removed"], told["freed"] > 0, names(cases)) == (1, True, ["a"])
    (cases / "notes.txt").write_text("mine")
    assert ulna.cache(clear=True).removed == 1 and [path.name for path in cases.iterdir()] == ["notes.txt"]


def test_where_nothing_was_kept_there_is_nothing_to_see(tmp_path, monkeypatch):
    monkeypatch.setenv("ULNA_CACHE_DIR", str(tmp_path / "none"))
    assert ulna.cache().to_json() == {
        "folder": str(tmp_path / "none"), "cases": 0, "bytes": 0, "limit": None, "data": [],
    }  # fmt: skip
    assert ulna.cache(clear=True).removed == 0 and not (tmp_path / "none").exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes that share what was imported")
def test_two_processes_that_write_one_entry_are_both_right(tmp_path):
    path, values = tmp_path / "a.case", torch.arange(50_000, dtype=torch.float32)

    def write():
        for _ in range(15):
            assert write_entry(path, Draft.of({"image": values}, {}), lambda: True)
            assert torch.equal(read_entry(path).tensors["image"], values)

    assert [wait_for(child) for child in [forked(write), forked(write)]] == [0, 0]
    assert [*tmp_path.iterdir()] == [path]
