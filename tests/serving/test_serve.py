"""The verb: what it refuses before it listens, who may ask with a token, and how it ends."""

import json
import re
import signal
import socket
import subprocess
import sys
import tempfile
from functools import partial

import pytest

from tests.serving.servers import serving
from ulna.cli import main as cli
from ulna.errors import UsageError
from ulna.serving.folder import LOCK, PREFIX, private_folder
from ulna.serving.guard import host_name, is_everywhere, is_loopback
from ulna.serving.kinds import named
from ulna.serving.limits import Refused
from ulna.serving.serve import check_token, known, limits_of, serve

SECRET = "0123456789abcdef"


def test_other_machines_need_a_token():
    with pytest.raises(UsageError, match=r"--host 0\.0\.0\.0: is reached from other machines; give a --token"):
        check_token("0.0.0.0", None)
    with pytest.raises(UsageError, match="needs at least 16"):
        check_token("127.0.0.1", "short")
    assert check_token("127.0.0.1", None) is None
    assert check_token("::1", "") is None
    assert check_token("10.0.0.1", SECRET) == SECRET


def test_what_the_command_line_refuses(without_torch, tmp_path, capfd):
    for words, said in (
        (["zoo:nuclei", "--host", "0.0.0.0"], "give a --token"),
        (["zoo:nuclei", "--queue", "0"], "--queue 0: must be above 0"),
        (["zoo:nuclei", "--host", "no.such.name.invalid", "--token", SECRET], "is no address here"),
        (["zoo:nuclei", "--name", "http://a"], "is no name of a host"),
        (["zoo:nuclei", "--port", "70000"], "is no port"),
        ([str(tmp_path / "nothing")], "does not exist"),
        ([str(tmp_path), "--port", "0"], "torch"),
        (["zoo:nothing", "--port", "0"], "no segmenter of this name"),
    ):
        assert cli.run(["serve", *words]) == 2
        assert said in capfd.readouterr().err


def test_a_port_that_is_taken_is_told():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UsageError, match="cannot be listened to"):
            serve("zoo:nuclei", port=taken.getsockname()[1])


def test_names():
    assert known("0.0.0.0", ["a.example"]) == ("127.0.0.1", "::1", "localhost", "a.example")
    assert known("10.0.0.7", []) == ("127.0.0.1", "::1", "localhost", "10.0.0.7")
    assert [host_name(one) for one in ("a:80", "[::1]", "[::1]:9", "a b", "a/b", "x@a")] == [
        "a",
        "::1",
        "::1",
        "a b",
        "",
        "",
    ]
    assert is_loopback("127.3.0.1") and is_loopback("localhost") and not is_loopback("0.0.0.0")
    assert is_everywhere("::") and is_everywhere("0.0.0.0") and not is_everywhere("10.0.0.1")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("scan.nii.gz", ("scan", ".nii.gz")),
        ("../../x.PNG", ("x", ".png")),
        ("C:\\a\\b.tif", ("b", ".tif")),
        ("%2e%2e%2f_.npy", ("image", ".npy")),
        ("-\r\nX: y.png", ("-__X__y", ".png")),
        ("a" * 900 + ".zip", ("a" * 100, ".zip")),
    ],
)
def test_what_is_kept_of_names(given, kept):
    assert named(given) == kept


@pytest.mark.parametrize("given", ["", None, "x", "x.exe", ".png/", "x.nii.gz.sh"])
def test_names_without_a_known_ending_are_refused(given):
    with pytest.raises(Refused):
        named(given)


def test_limits():
    limits = limits_of(queue=3, max_megabytes=1.5, max_ram=2, keep_minutes=0.5)
    assert (limits.queue, limits.body, limits.ram, limits.kept_s) == (3, 1_500_000, 2_000_000_000, 30)


def test_a_token_is_asked_for_everywhere_but_for_health(without_torch, tmp_path, monkeypatch, caplog):
    """Also where the environment would have FastAPI report requests elsewhere, which is not even tried."""
    monkeypatch.setenv("FASTAPI_OTEL_AUTO_CONFIGURE", "true")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    with serving("zoo:nuclei", tmp_path, token=SECRET) as client:
        assert client.ask("GET", "/health")[0] == 200
        for path in ("/model", "/metrics", "/openapi.json", "/jobs/x"):
            status, headers, _ = client.ask("GET", path)
            assert (status, headers["www-authenticate"]) == (401, "Bearer")
        for wrong in (SECRET[:-1], SECRET + "x", "ü"):
            assert client.ask("GET", "/model", headers={"Authorization": f"Bearer {wrong}"})[0] == 401
        right = {"Authorization": f"Bearer {SECRET}"}
        assert client.ask("GET", "/model", headers=right)[0] == 200
        told = json.loads(client.ask("GET", "/openapi.json", headers=right)[2])
        assert "telemetry" not in caplog.text
        assert {"/jobs", "/jobs/{id}", "/jobs/{id}/mask", "/jobs/{id}/events", "/health", "/metrics"} <= set(
            told["paths"]
        )


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_it_ends_with_a_signal_and_leaves_no_folder(without_torch, tmp_path, number, code):
    environment = {**without_torch, "TMPDIR": str(tmp_path), "ULNA_TOKEN": ""}
    command = [sys.executable, "-m", "ulna", "serve", "zoo:nuclei", "--port", "0", "--threads", "1"]
    process = subprocess.Popen(
        command,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, number, signal.SIG_DFL),
    )  # in the background of a script Ctrl-C is ignored from the beginning
    try:
        line = process.stderr.readline()
        assert re.match(r"serving zoo:nuclei at http://127\.0\.0\.1:\d+; Ctrl-C ends it", line)
        assert len(list(tmp_path.glob("ulna-serve-*"))) == 1
        assert next(tmp_path.glob("ulna-serve-*")).stat().st_mode & 0o077 == 0
        process.send_signal(number)
        assert process.wait(20) == code
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
    assert list(tmp_path.glob("ulna-serve-*")) == []


def test_what_a_killed_server_left_is_removed_by_the_next_one(tmp_path, monkeypatch):
    """And neither what a living one holds, nor what is none's."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with private_folder() as alive:
        (alive / "jobs").mkdir()
        left, other, elsewhere = (tmp_path / name for name in (f"{PREFIX}left", f"{PREFIX}other", "elsewhere"))
        for folder in (left, other, elsewhere):
            (folder / "jobs").mkdir(parents=True)
        (left / LOCK).touch()
        (elsewhere / LOCK).touch()
        (tmp_path / f"{PREFIX}link").symlink_to(elsewhere)
        with private_folder() as second:
            assert second.stat().st_mode & 0o077 == 0
            assert not left.exists()
            assert all((folder / "jobs").is_dir() for folder in (alive, other, elsewhere))
        assert not second.exists()
    assert not alive.exists()
