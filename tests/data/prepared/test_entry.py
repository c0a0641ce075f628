"""Entries of the cache: what is written comes back to the bit, whatever is damaged is seen, and no kill leaves a half."""

import functools
import os
import signal
from pathlib import Path

import pytest
import torch

from tests.data.prepared.forks import forked, wait_for
from ulna.data.prepared import entry
from ulna.data.prepared.entry import Damaged, Draft, read_entry, read_facts, write_entry

FACTS = {"size": [3, 4], "step": [0.1, 1 / 3], "data": "/data/nuclei"}


def tensors():
    generator = torch.Generator().manual_seed(0)
    return {
        "image": torch.rand(2, 5, 7, generator=generator).movedim(0, 2),  # not as memory has it
        "labels": torch.randint(0, 9, (5, 7), generator=generator, dtype=torch.uint8),
        "reference": torch.randint(0, 900, (3, 3), generator=generator, dtype=torch.int32).to(torch.uint16),
        "one": torch.tensor(5, dtype=torch.int64),
    }


def written(path):
    assert write_entry(path, Draft.of(tensors(), FACTS), lambda: True)
    return path


def test_what_was_written_is_read_to_the_bit(tmp_path):
    path = written(tmp_path / "a.case")
    found = read_entry(path)
    assert found.facts == FACTS == read_facts(path)
    assert [*found.tensors] == [*tensors()]
    for name, tensor in tensors().items():
        assert found.tensors[name].dtype == tensor.dtype and torch.equal(found.tensors[name], tensor), name
    assert path.stat().st_size == Draft.of(tensors(), FACTS).size and [*tmp_path.iterdir()] == [path]


def test_a_tensor_outlives_the_name_of_its_file_and_takes_no_file_of_the_process(tmp_path):
    path = written(tmp_path / "a.case")
    listed = Path("/proc/self/fd")
    before = len([*listed.iterdir()]) if listed.is_dir() else 0
    kept = [read_entry(path).tensors for _ in range(20)]
    if before:
        assert len([*listed.iterdir()]) == before
    path.unlink()
    assert all(torch.equal(one["image"], tensors()["image"]) for one in kept)


def test_writing_into_a_tensor_by_mistake_changes_no_file(tmp_path):
    path = written(tmp_path / "a.case")
    read_entry(path).tensors["image"].zero_()
    assert torch.equal(read_entry(path).tensors["image"], tensors()["image"])


def test_every_bit_that_is_flipped_is_seen(tmp_path):
    path = written(tmp_path / "a.case")
    whole = bytearray(path.read_bytes())
    for at in range(0, len(whole), 7):
        whole[at] ^= 1 << at % 8
        path.write_bytes(whole)
        with pytest.raises(Damaged):
            read_entry(path)
        whole[at] ^= 1 << at % 8
    path.write_bytes(whole)
    read_entry(path)


def test_what_is_cut_short_or_too_long_is_seen(tmp_path):
    path = written(tmp_path / "a.case")
    whole = path.read_bytes()
    for length in (0, 5, entry._HEAD, entry._HEAD + 20, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(Damaged):
            read_entry(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(Damaged):
        read_entry(path)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="files have no owners here")
def test_a_file_that_others_may_write_is_not_trusted(tmp_path, monkeypatch):
    path = written(tmp_path / "a.case")
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o620)
    with pytest.raises(Damaged, match="by others"):
        read_entry(path)
    path.chmod(0o600)
    (tmp_path / "b.case").symlink_to(path)
    with pytest.raises(OSError):
        read_entry(tmp_path / "b.case")
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    with pytest.raises(Damaged, match="by others"):
        read_entry(path)


def test_a_full_disk_and_no_room_leave_nothing(tmp_path, monkeypatch):
    draft = Draft.of(tensors(), FACTS)
    assert not write_entry(tmp_path / "a.case", draft, lambda: False)
    assert not [*tmp_path.iterdir()]
    plainly, writes = os.write, []

    def full(descriptor, values):
        writes.append(len(values))
        if len(writes) == 3:
            raise OSError(28, "No space left on device")
        return plainly(descriptor, values)

    monkeypatch.setattr(entry.os, "write", full)
    with pytest.raises(OSError, match="No space"):
        write_entry(tmp_path / "a.case", draft, lambda: True)
    monkeypatch.undo()
    assert not [*tmp_path.iterdir()]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes that share what was imported")
def test_a_kill_while_writing_leaves_no_half_entry(tmp_path):
    path, values, plainly = tmp_path / "a.case", torch.arange(300, dtype=torch.float32), os.write

    def killed_after(writes):
        done: list[int] = []

        def counted(descriptor, part):
            done.append(descriptor)
            if len(done) > writes:
                os.kill(os.getpid(), signal.SIGKILL)
            return plainly(descriptor, part[:100])

        entry.os.write = counted
        write_entry(path, Draft.of({"image": values}, {}), lambda: True)

    for writes in (0, 1, 2, 7, 13):
        assert wait_for(forked(functools.partial(killed_after, writes))) == -signal.SIGKILL and not path.exists()
        (left,) = tmp_path.iterdir()
        assert left.name.startswith(".tmp-")
        left.unlink()
    assert wait_for(forked(lambda: killed_after(100))) == 0
    assert torch.equal(read_entry(path).tensors["image"], values)


def test_an_entry_that_is_replaced_while_it_is_read_is_read_once_more(tmp_path, monkeypatch):
    path, values = tmp_path / "a.case", torch.arange(50.0)

    def write():
        assert write_entry(path, Draft.of({"image": values}, {}), lambda: True)

    write()
    mapped, replaced = torch.from_file, []

    def replacing(*given, **options):
        if len(replaced) < 2:
            replaced.append(path.stat().st_ino)
            write()
        return mapped(*given, **options)

    monkeypatch.setattr(torch, "from_file", replacing)
    # bytes of a file, and no arithmetic: equal on every processor
    assert torch.equal(read_entry(path).tensors["image"], values) and len(replaced) == 2
