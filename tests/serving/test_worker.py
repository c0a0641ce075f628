"""The worker may die, hang or grow: every job ends, none twice, and results are removed after a time."""

import os
import signal
import time
from contextlib import contextmanager

import pytest

from tests.serving.servers import png, serving


@contextmanager
def limited(client, **changes):
    """Other limits for a while."""
    supervisor = client.server.supervisor
    before = supervisor.limits
    supervisor.limits = supervisor.jobs.limits = before._replace(**changes)
    try:
        yield
    finally:
        supervisor.limits = supervisor.jobs.limits = before


def count(client, name):
    """A number of /metrics."""
    lines = client.ask("GET", "/metrics")[2].decode().splitlines()
    return float(next(line for line in lines if line.startswith(name)).rpartition(" ")[2])


def test_a_worker_that_is_killed_in_the_middle_of_twenty_jobs(client):
    assert client.settled() == []
    done, workers = count(client, 'ulna_jobs_total{state="done"}'), count(client, "ulna_workers_total")
    sent = [client.send(f"{n}.png", png((60, 60), n)) for n in range(20)]
    assert [status for status, _ in sent] == [200] * 20
    ids = [told["id"] for _, told in sent]
    while client.get("/health")["queued"] > 12:
        time.sleep(0.005)
    os.kill(client.server.supervisor._worker.process.pid, signal.SIGKILL)
    jobs = [client.ended(id) for id in ids]
    assert [job["state"] for job in jobs] == ["done"] * 20
    assert count(client, 'ulna_jobs_total{state="done"}') == done + 20  # none ended twice
    assert count(client, "ulna_workers_total") == workers + 1
    assert len({client.ask("GET", f"/jobs/{id}/mask")[2] for id in ids}) == 20  # each its own mask
    assert len(client.settled()) == 80  # a mask, an answer and two views each, and nothing else
    for id in ids:
        client.ask("DELETE", f"/jobs/{id}")
    assert client.settled() == []


@pytest.mark.slow
def test_an_image_that_kills_every_worker_is_given_up(without_torch, tmp_path, monkeypatch):
    """A worker that dies over one image is not fed it for ever, and the next image is done."""
    code = (
        "import os, ulna.serving.answering as a\n"
        "real = a.read_image\n"
        "def deadly(sources, dims):\n"
        "    if sources[0].path.stat().st_size > 3000: os.kill(os.getpid(), 9)\n"
        "    return real(sources, dims)\n"
        "a.read_image = deadly\n"
    )
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(
        f"import sys\nif 'ulna.serving.worker' in ' '.join(sys.orig_argv):\n    exec({code!r})\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "hook"), os.environ["PYTHONPATH"]]))
    (tmp_path / "served").mkdir()
    with serving("zoo:nuclei", tmp_path / "served") as client:
        deadly, sound = (client.send("a.png", png(size))[1]["id"] for size in ((90, 90), (20, 20)))
        job = client.ended(deadly)
        assert (job["state"], "died twice" in job["error"]) == ("failed", True)
        assert client.ended(sound)["state"] == "done"
        client.ask("DELETE", f"/jobs/{sound}")
        assert client.settled() == []


@pytest.mark.parametrize(
    ("limit", "said"), [({"seconds": 0.0}, "longer than 0 seconds"), ({"ram": 10**6}, "than 1 MB")]
)
def test_a_worker_that_takes_too_much_is_stopped(client, limit, said):
    os.kill(client.server.supervisor._worker.process.pid, signal.SIGSTOP)  # it hangs
    with limited(client, **limit):
        told = client.send("a.png", png())[1]
        job = client.ended(told["id"])
    assert (job["state"], said in job["error"]) == ("failed", True)
    assert client.settled() == []
    told = client.send("a.png", png())[1]
    assert client.ended(told["id"])["state"] == "done"  # by another worker
    client.ask("DELETE", f"/jobs/{told['id']}")


def test_a_job_that_is_removed_while_it_is_computed_leaves_nothing(client):
    os.kill(client.server.supervisor._worker.process.pid, signal.SIGSTOP)  # it is not done before it is removed
    told = client.send("a.png", png())[1]
    while client.get(f"/jobs/{told['id']}")["state"] == "queued":
        time.sleep(0.005)
    assert client.ask("DELETE", f"/jobs/{told['id']}")[0] == 204
    assert client.ask("GET", f"/jobs/{told['id']}")[0] == 404
    assert client.settled() == []


def test_a_full_queue_says_when_to_come_again_and_results_go_after_a_time(client):
    with limited(client, queue=2, kept_s=0.0):
        os.kill(client.server.supervisor._worker.process.pid, signal.SIGSTOP)
        answers = [client.ask("POST", "/jobs", png((30, 30), n), {"X-File-Name": "a.png"}) for n in range(6)]
        os.kill(client.server.supervisor._worker.process.pid, signal.SIGCONT)
        assert [status for status, _, _ in answers] == [200, 200, 503, 503, 503, 503]
        assert all(int(headers["retry-after"]) >= 1 for status, headers, _ in answers if status == 503)
        until = time.monotonic() + 20
        while any(client.folder.iterdir()) and time.monotonic() < until:
            time.sleep(0.05)
        assert list(client.folder.iterdir()) == []


def test_a_full_disk_says_when_to_come_again(client):
    with limited(client, disk=2000):
        status, headers, body = client.ask("POST", "/jobs", png((30, 30)), {"X-File-Name": "a.png"})
    assert (status, b"no room" in body, int(headers["retry-after"]) >= 1) == (503, True, True)
    assert client.settled() == []


def test_events_tell_a_job_to_its_end(client):
    told = client.send("a.png", png())[1]
    status, headers, body = client.ask("GET", f"/jobs/{told['id']}/events")
    assert (status, headers["content-type"].partition(";")[0]) == (200, "text/event-stream")
    events = [line for line in body.decode().split("\n\n") if line]
    assert all(event.startswith("data: {") for event in events)
    assert '"state": "done"' in events[-1]
    client.ask("DELETE", f"/jobs/{told['id']}")
