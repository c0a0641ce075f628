"""Compiled kernels are loaded from where nobody else can write, and only whole."""

import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ulna.kernels import cache, native

pytestmark = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="files have no owners here")
needs_compiler = pytest.mark.skipif(not native.available(), reason="no native kernels here")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache folder of this test's own."""
    tmp_path = tmp_path.resolve()
    if reason := cache.danger(tmp_path):
        pytest.skip(f"temporary files cannot be trusted here: {reason}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache._tell.cache_clear()
    cache._private.cache_clear()
    yield tmp_path
    cache._tell.cache_clear()
    cache._private.cache_clear()


def build(scratch: Path) -> Path:
    made = scratch / "made"
    made.write_bytes(b"good" * 1000)
    return made


def failing(scratch: Path) -> Path:
    raise AssertionError("nothing is to be built")


def test_what_was_built_is_found_again(home: Path) -> None:
    first = cache.kept("kernel-1", build)
    assert first.parent == home / "ulna"
    assert (home / "ulna").stat().st_mode & 0o777 == 0o700
    assert cache.kept("kernel-1", failing) == first
    assert [f.name for f in (home / "ulna").iterdir()] == [first.name]
    assert cache.kept("kernel-2", build) != first


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "link", "writable by all", "planted"])
def test_what_is_not_as_it_was_built_is_built_again(home: Path, damage: str) -> None:
    made = cache.kept("kernel-1", build)
    content = made.read_bytes()
    if damage == "cut":
        made.write_bytes(content[: len(content) // 2])
    elif damage == "changed":
        made.write_bytes(b"evil" + content[4:])
    elif damage == "empty":
        made.write_bytes(b"")
    elif damage == "link":
        elsewhere = home / "elsewhere"
        made.rename(elsewhere)
        made.symlink_to(elsewhere)
    elif damage == "writable by all":
        made.chmod(0o777)
    else:
        made.unlink()
        made.with_name(f"kernel-1-{'0' * 64}.so").write_bytes(b"evil")
    calls = []
    again = cache.kept("kernel-1", lambda scratch: calls.append(1) or build(scratch))
    assert calls and again.read_bytes() == content and not again.is_symlink()
    assert list((home / "ulna").iterdir()) == [again]


def of_another(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file or folder belongs to another user: really where this user may say so, else by what the system is asked."""
    if os.geteuid() == 0:
        os.chown(path, 12345, 12345)
        return
    real = os.lstat

    def lstat(asked: os.PathLike[str] | str) -> os.stat_result:
        found = real(asked)
        if Path(asked) == path:
            found = os.stat_result((*found[:4], found.st_uid + 1, *found[5:]))
        return found

    monkeypatch.setattr(os, "lstat", lstat)


def test_a_file_of_another_user_is_built_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = cache.kept("kernel-1", build)
    of_another(made, monkeypatch)
    if os.geteuid() == 0:
        assert cache.kept("kernel-1", build) == made
        assert made.stat().st_uid == 0
    else:
        with pytest.raises(AssertionError, match="nothing is to be built"):
            cache.kept("kernel-1", failing)


@pytest.mark.parametrize("wrong", ["owner", "link", "mode", "owner above", "mode above", "file"])
def test_a_folder_that_others_can_write_is_not_used(
    home: Path, wrong: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    base = home / "base"
    folder = base / "ulna"
    folder.mkdir(parents=True, mode=0o700)
    monkeypatch.setenv("XDG_CACHE_HOME", str(base))
    planted = folder / "kernel-1-x.so"
    planted.write_bytes(b"evil")
    if wrong == "owner":
        of_another(folder, monkeypatch)
    elif wrong == "owner above":
        of_another(base, monkeypatch)
    elif wrong == "mode":
        folder.chmod(0o777)
    elif wrong == "mode above":
        base.chmod(0o777)
    elif wrong == "link":
        folder.rename(home / "theirs")
        folder.symlink_to(home / "theirs")
    else:
        planted.unlink()
        folder.rmdir()
        folder.write_text("")
    with caplog.at_level(logging.WARNING):
        made, second = cache.kept("kernel-1", build), cache.kept("kernel-1", failing)
    assert made == second and base not in made.parents
    assert made.parent.stat().st_mode & 0o777 == 0o700 and made.parent.stat().st_uid == os.geteuid()
    assert len(caplog.records) == 1 and "chmod 700" in caplog.text
    if wrong != "file":
        assert planted.exists()


@pytest.mark.parametrize(
    ("mode", "users", "trusted"),
    [
        (0o755, "0 1000 1", True),
        (0o1777, "0 1000 1", True),
        (0o777, "0 1000 1", False),
        (0o775, "0 1000 1", False),
        (0o755, "0 0 4294967295", False),
        (0o755, "", False),
    ],
)
def test_in_a_user_namespace_what_lies_above_belongs_to_nobody(
    home: Path, mode: int, users: str, trusted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As below /home in a container of a user: no kernel was ever kept there."""
    base = home / "base"
    folder = base / "ulna"
    folder.mkdir(parents=True, mode=0o700)
    base.chmod(mode)
    of_another(base, monkeypatch)
    (home / "overflowuid").write_text(f"{os.lstat(base).st_uid}\n")
    (home / "uid_map").write_text(users)
    monkeypatch.setattr(cache, "OVERFLOW", home / "overflowuid")
    monkeypatch.setattr(cache, "USERS", home / ("uid_map" if users else "absent"))
    assert (cache.danger(folder) == "") == trusted
    of_another(folder, monkeypatch)
    assert "another user" in cache.danger(folder)  # the folder itself must be ours


def test_a_link_on_the_way_is_followed_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is loaded lies at the place that was looked at, wherever the link leads later."""
    (home / "real").mkdir()
    (home / "link").symlink_to(home / "real")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "link"))
    assert cache.kept("kernel-1", build).parent == home / "real" / "ulna"


def test_a_group_of_more_than_this_user_counts_as_others(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = home / "shared"
    made.mkdir()
    made.chmod(0o770)
    group = cache.grp.struct_group(("all", "x", made.stat().st_gid, ["somebody"]))
    monkeypatch.setattr(cache.grp, "getgrgid", lambda _: group)
    assert "can be written by others" in cache.danger(made)
    made.chmod(0o700)
    assert cache.danger(made) == ""


def test_a_relative_cache_home_is_ignored(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the XDG specification has it: the folder would be that of whoever's files one stands in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    monkeypatch.setattr(cache.Path, "home", lambda: tmp_path / "me")
    assert cache.kept("kernel-1", build).parent == tmp_path / "me" / ".cache" / "ulna"
    assert not (tmp_path / "cache").exists()


def test_what_killed_compilations_left_is_removed_and_what_runs_stays(home: Path) -> None:
    cache.kept("kernel-1", build)
    old, new = (home / "ulna" / f"{cache.SCRATCH}{n}" for n in ("old", "new"))
    for folder in (old, new):
        folder.mkdir()
        (folder / "kernel.o").write_bytes(b"x")
    past = time.time() - 2 * cache.ABANDONED_S
    os.utime(old, (past, past))
    cache.kept("kernel-1", failing)
    assert not old.exists() and new.exists()


def test_a_build_that_fails_leaves_nothing(home: Path) -> None:
    with pytest.raises(AssertionError):
        cache.kept("kernel-1", failing)
    assert list((home / "ulna").iterdir()) == []


@needs_compiler
@pytest.mark.parametrize("kernel", ["normalize", "allocator"])
def test_half_a_kernel_is_no_crash_but_built_again(home: Path, kernel: str) -> None:
    """It was a bus error."""
    for _ in range(2):
        assert native.library.__wrapped__(kernel, with_torch=kernel == "allocator") is not None
        (built,) = (home / "ulna").iterdir()
        content = built.read_bytes()
        built.unlink()  # what is loaded stays as it is
        built.write_bytes(content[: len(content) // 2])
        built.chmod(0o700)
