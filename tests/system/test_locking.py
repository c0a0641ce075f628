"""One writer a folder, across processes and threads; a killed process leaves no lock."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import ulna.system.locking as room
from ulna.errors import UsageError
from ulna.system.locking import LOCK, locked

HOLD = """
import sys
from pathlib import Path
from ulna.system.locking import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the folder."""
    words = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        stream.close()


def test_the_second_is_told_who_holds_it_and_leaves_all_as_it_is(tmp_path, other):
    before = (tmp_path / "run" / LOCK).read_bytes()
    with (
        pytest.raises(UsageError, match=rf"another command writes into it \(process {other.pid} on .*, since \d{{4}}-"),
        locked(tmp_path / "run"),
    ):
        raise AssertionError("two hold it")
    assert (tmp_path / "run" / LOCK).read_bytes() == before


def test_nothing_is_left_of_a_folder_into_which_nothing_was_written(tmp_path):
    with locked(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b" / LOCK).exists()
    assert not (tmp_path / "a").exists()
    with locked(tmp_path / "c"):
        (tmp_path / "c" / "kept").touch()
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["kept"]


def test_a_killed_process_leaves_no_lock_and_the_next_one_says_so(tmp_path, other, caplog):
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert (tmp_path / "run" / LOCK).exists()
    with caplog.at_level("INFO", "ulna"), locked(tmp_path / "run"):
        assert f"took over the lock of a process that has ended (process {other.pid}" in caplog.text
    with locked(tmp_path / "run"):
        pass


FORK = """
import os, sys, time
from pathlib import Path
from ulna.system.locking import locked
with locked(Path(sys.argv[1])):
    if not os.fork():
        print(os.getpid(), flush=True)
        time.sleep(60)
        os._exit(0)
    sys.stdin.read()
"""


@pytest.mark.skipif(not hasattr(os, "register_at_fork"), reason="nothing forks here")
def test_a_lock_ends_with_its_process_though_forked_children_live_on(tmp_path):
    """As the workers of a training do for some seconds after a kill."""
    words = [sys.executable, "-c", FORK, str(tmp_path / "run")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        child = int(process.stdout.readline())
        try:
            process.kill()
            process.wait()
            os.kill(child, 0)
            with locked(tmp_path / "run"):
                pass
        finally:
            os.kill(child, signal.SIGKILL)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc here")
def test_a_forked_child_that_ends_gives_no_lock_back(tmp_path):
    code = FORK.replace("time.sleep(60)", "sys.exit()").replace("os._exit(0)", "pass")
    words = [sys.executable, "-c", code, str(tmp_path / "run")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        child = int(process.stdout.readline())
        while Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] != "Z":  # until it has ended
            time.sleep(0.01)
        assert (tmp_path / "run" / LOCK).exists()
        with pytest.raises(UsageError, match="another command writes into it"), locked(tmp_path / "run"):
            pass
        process.stdin.close()
    assert not (tmp_path / "run").exists()


def test_waiting_ends_with_the_other_one(tmp_path, other):
    threading.Timer(0.2, other.stdin.close).start()
    with locked(tmp_path / "run", wait=True):
        assert json.loads((tmp_path / "run" / LOCK).read_text())["pid"] == os.getpid()


def test_a_thread_may_lock_again_and_another_one_may_not(tmp_path):
    refused = []

    def another():
        try:
            with locked(tmp_path):
                pass
        except UsageError as error:
            refused.append(error)

    with locked(tmp_path), locked(tmp_path):
        thread = threading.Thread(target=another)
        thread.start()
        thread.join()
    assert len(refused) == 1
    with locked(tmp_path):
        pass


@pytest.mark.parametrize(
    "note",
    [
        b"",
        b"[]",
        b"{",
        b"\xff\x00",
        b"[" * 5000,
        b'{"pid": "x", "host": 1}',
        b'{"pid": 1}',
        b'{"pid": 1e999, "host": "a", "since": "b", "command": "c"}',
    ],
)
def test_a_note_that_says_nothing_is_no_hindrance(tmp_path, note):
    (tmp_path / LOCK).write_bytes(note)
    with locked(tmp_path):
        pass


def test_names_in_a_note_cannot_move_the_cursor(tmp_path, caplog):
    note = {"pid": 1, "host": "a\x1b[2J", "since": "now\nerror: b", "command": "c\u202e"}
    (tmp_path / LOCK).write_text(json.dumps(note))
    with caplog.at_level("INFO", "ulna"), locked(tmp_path):
        assert "\x1b" not in caplog.text
        assert "now\\nerror" in caplog.text


def note(folder, **facts):
    """A note without a holder."""
    usual = {"pid": os.getppid(), "host": socket.gethostname(), "since": "2026-01-01", "command": "ulna train"}
    (folder / LOCK).write_text(json.dumps(usual | facts))


@pytest.mark.parametrize(
    "facts",
    [
        {"pid": os.getpid()},  # by an earlier version
        {"pid": os.getpid(), "started": "1"},  # in a container that was started again
        {"started": "1"},  # of a process whose number another one has now
    ],
)
def test_a_number_that_another_process_has_now_is_no_hindrance(tmp_path, monkeypatch, facts):
    if "started" in facts and not room._started(os.getpid()):
        pytest.skip("the system does not say when a process was started")
    monkeypatch.setattr(room, "fcntl", None)
    note(tmp_path, **facts)
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["started"] == room._started(os.getpid())
    assert not (tmp_path / LOCK).exists()


def test_without_locks_of_the_system_a_thread_is_refused_too(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "fcntl", None)
    test_a_thread_may_lock_again_and_another_one_may_not(tmp_path)


@pytest.mark.parametrize("before", [None, "ended"])
def test_without_locks_of_the_system_one_of_those_that_begin_together_holds_it(tmp_path, monkeypatch, before):
    """The second one opens the file before the first one has written its note."""
    monkeypatch.setattr(room, "fcntl", None)
    if before:
        note(tmp_path, pid=os.getpid())
    write, refused = room._write, []

    def second_one_begins(descriptor):
        monkeypatch.setattr(room, "_write", write)
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        write(descriptor)

    def second():
        try:
            with locked(tmp_path):
                refused.append(False)
        except UsageError as error:
            refused.append(str(error))

    monkeypatch.setattr(room, "_write", second_one_begins)
    with locked(tmp_path):
        pass
    assert "it has not said which" in refused[0]
    assert f"if it runs no more, remove {tmp_path / LOCK}" in refused[0]


@pytest.mark.parametrize("text", [None, ""])
def test_nobody_waits_for_what_cannot_be_known(tmp_path, monkeypatch, text):
    monkeypatch.setattr(room, "fcntl", None)
    monkeypatch.setattr(room, "_LOOK_S", 0.01)
    note(tmp_path, host="elsewhere")
    if text is not None:
        (tmp_path / LOCK).write_text(text)
    runs = "it runs" if text == "" else "elsewhere runs it"
    with pytest.raises(UsageError, match=f"if {runs} no more, remove"), locked(tmp_path, wait=True):
        pass


@pytest.mark.parametrize(
    ("pid", "host", "free"),
    [("ended", "here", True), ("here", "here", False), ("ended", "elsewhere", False)],
)
def test_without_locks_of_the_system_the_note_decides(tmp_path, monkeypatch, pid, host, free):
    monkeypatch.setattr(room, "fcntl", None)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    note(
        tmp_path,
        pid=ended.pid if pid == "ended" else os.getppid(),
        host=socket.gethostname() if host == "here" else "elsewhere",
    )
    if free:
        with locked(tmp_path):
            pass
        return
    remedy = (
        "if elsewhere runs it no more, remove"
        if host == "elsewhere"
        else r"wait until it has ended.*if it runs no more, remove"
    )
    with pytest.raises(UsageError, match=remedy), locked(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="file/run: cannot be written"), locked(tmp_path / "file" / "run"):
        pass


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).symlink_to(tmp_path / "precious")
    with pytest.raises(UsageError, match="cannot be written"), locked(tmp_path / "run"):
        pass
    assert (tmp_path / "precious").read_text() == "kept"


@pytest.fixture
def of_another_user(tmp_path, monkeypatch):
    """A lock file that this user may read and not write; what the system is asked is changed, as root may do all."""
    (tmp_path / LOCK).write_text('{"pid": 1, "host": "elsewhere", "since": "2026-01-01", "command": "ulna train"}')
    works = os.open

    def refused(path, flags, *mode, **more):
        there = Path(path) == tmp_path / LOCK and (tmp_path / LOCK).exists()
        if there and flags & os.O_RDWR and not flags & os.O_EXCL:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return works(path, flags, *mode, **more)

    monkeypatch.setattr(os, "open", refused)
    return tmp_path / LOCK


needs_flock = pytest.mark.skipif(room.fcntl is None, reason="no locks of the system here")


@needs_flock
def test_a_lock_that_another_user_left_is_no_hindrance(tmp_path, of_another_user):
    with locked(tmp_path):
        assert json.loads(of_another_user.read_text())["pid"] == os.getpid()


@needs_flock
def test_a_lock_that_another_user_holds_names_them(tmp_path, of_another_user):
    with of_another_user.open() as theirs:
        room.fcntl.flock(theirs, room.fcntl.LOCK_EX)
        with (
            pytest.raises(UsageError, match=r"another command writes into it .*process 1 on elsewhere"),
            locked(tmp_path),
        ):
            pass
    assert of_another_user.exists()


@needs_flock
def test_a_lock_that_cannot_be_removed_is_named(tmp_path, of_another_user, monkeypatch):
    def refused(path, *args, **more):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refused)
        patch.setattr(Path, "unlink", refused)
        with (
            pytest.raises(UsageError, match=r"\.lock: is the lock of another user, and can be neither"),
            locked(tmp_path),
        ):
            pass
