"""Tasks of a Ray cluster of two nodes, which are processes of this machine; left out where Ray is not installed."""

import os
import signal
import sys
from pathlib import Path

import pytest

from tests.executors.conftest import NODE
from tests.executors.handed import begun, counting_jobs, driver_of, outcome, until, waiting
from ulna.errors import Interrupted, UsageError
from ulna.executors import ray_task
from ulna.executors.handing import hand_out
from ulna.executors.job import Need
from ulna.executors.ray import OnRay, resources


def test_a_node_that_does_not_see_what_the_command_sees_says_so(tmp_path):
    token = tmp_path / "token"
    token.write_text("abc")
    assert ray_task.sees(str(token), "abc", str(tmp_path), sys.executable) == ""
    for wrong, said in (
        ((str(token), "another", str(tmp_path), sys.executable), f"does not see {tmp_path}"),
        ((str(tmp_path / "none" / "token"), "abc", str(tmp_path), sys.executable), f"does not see {tmp_path / 'none'}"),
        ((str(token), "abc", "/no/such/folder", sys.executable), "does not see /no/such/folder"),
        ((str(token), "abc", str(tmp_path), "/no/python"), "has no /no/python"),
    ):
        assert said in ray_task.sees(*wrong)
        assert said in ray_task.run([sys.executable], {}, str(tmp_path / "said"), wrong)["unseen"]
    assert not (tmp_path / "said").exists()


def test_a_task_gives_the_code_of_its_process_and_raises_where_that_was_killed(tmp_path):
    """So that Ray tries it again; a process that failed by itself would fail again."""
    token = tmp_path / "token"
    token.write_text("abc")
    seen = (str(token), "abc", str(tmp_path), sys.executable)
    words = [
        sys.executable,
        "-ISE",
        "-c",
        "import os; print(os.environ['ULNA_PARENT'], os.getcwd()); raise SystemExit(7)",
    ]
    told = ray_task.run(words, {"A": "b"}, str(tmp_path / "said"), seen)
    assert told["code"] == 7 and (tmp_path / "said").read_text().split() == [str(os.getpid()), str(tmp_path)]
    with pytest.raises(RuntimeError, match="killed from outside"):
        ray_task.run(
            [sys.executable, "-ISE", "-c", "import os; os.kill(os.getpid(), 9)"], {}, str(tmp_path / "s"), seen
        )


def test_a_task_asks_for_what_the_estimate_says(tmp_path):
    (job,) = counting_jobs(tmp_path, 1, need=Need(2.5e9, 1e9), threads=3)
    assert resources(job) == {"num_cpus": 3, "num_gpus": 1, "memory": 2_500_000_000}
    (job,) = counting_jobs(tmp_path, 1, need=Need(float("inf"), float("inf")))
    assert resources(job) == {"num_cpus": 1, "num_gpus": 1}


pytestmark = pytest.mark.filterwarnings("ignore")  # what Ray warns of is not ours


@pytest.mark.slow
def test_jobs_run_on_both_nodes_and_what_failed_is_told(cluster, tmp_path):
    (tmp_path / "job1").mkdir()
    (tmp_path / "job1" / "fails").touch()
    failed = hand_out(counting_jobs(tmp_path, 4), OnRay(cluster.address, tmp_path, None), resume_command="")
    assert failed == {"job 1": "no image in it"}
    assert outcome(tmp_path) == {f"job{n}": "10 1" for n in (0, 2, 3)}
    (tmp_path / "job1" / "fails").unlink()
    assert hand_out(counting_jobs(tmp_path, 4), OnRay(cluster.address, tmp_path, 1), resume_command="") == {}
    assert len(outcome(tmp_path)) == 4 and not (tmp_path / ".nodes-see-this").exists()


@pytest.mark.slow
def test_what_no_node_holds_or_sees_is_refused_before_anything_begins(cluster, tmp_path, monkeypatch):
    for fields in ({"threads": 9}, {"need": Need(9e12)}, {"need": Need(1e6, 1e6)}):
        with pytest.raises(UsageError, match=r"no node has room for it .*\n *job 0 needs"):
            hand_out(counting_jobs(tmp_path, 1, **fields), OnRay(cluster.address, tmp_path, None), resume_command="")
    monkeypatch.setattr("ulna.executors.ray.sys.executable", "/no/python")
    with pytest.raises(UsageError, match="has no /no/python: jobs on Ray need one file system"):
        hand_out(counting_jobs(tmp_path, 1), OnRay(cluster.address, tmp_path, None), resume_command="")
    monkeypatch.undo()
    with pytest.raises(UsageError, match="no cluster answers there"):
        hand_out(counting_jobs(tmp_path, 1), OnRay("127.0.0.1:1", tmp_path, None), resume_command="")
    assert not begun(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["job", "worker", "node"])
def test_a_lost_process_worker_or_node_is_tried_again_and_goes_on(cluster, tmp_path, lost):
    (tmp_path / "waits").touch()
    killed = []
    second = cluster.add_node(**NODE)
    cluster.wait_for_nodes()

    class Losing(OnRay):
        def look(self, job):
            if not killed and waiting(tmp_path, 3):
                pids = [tuple(map(int, path.read_text().split())) for path in sorted(tmp_path.glob("job*/pid"))]
                killed.append(pids)
                if lost == "node":
                    cluster.remove_node(second, allow_graceful=False)
                else:
                    os.kill(pids[0][lost == "worker"], signal.SIGKILL)
                until(lambda: not all(lives(own) for own, _ in pids), "one of the processes is gone")
                (tmp_path / "waits").unlink()
            return super().look(job)

    try:
        failed = hand_out(counting_jobs(tmp_path, 3, 9), Losing(cluster.address, tmp_path, None), resume_command="")
    finally:
        if lost != "node":
            cluster.remove_node(second)
    assert failed == {} and killed and outcome(tmp_path) == {f"job{n}": "36 1" for n in range(3)}
    assert sorted(begun(tmp_path).values()) == [1, 1, 2]


@pytest.mark.slow
def test_a_signal_ends_the_tasks_and_a_second_call_goes_on(cluster, tmp_path):
    (tmp_path / "waits").touch()
    told = []

    class Stopping(OnRay):
        def look(self, job):
            if not told and waiting(tmp_path, 2):
                told.append(os.kill(os.getpid(), signal.SIGTERM))
            return super().look(job)

    with pytest.raises(Interrupted, match="a checkpoint is written, go on with: again"):
        hand_out(counting_jobs(tmp_path, 2, 9), Stopping(cluster.address, tmp_path, None), resume_command="again")
    pids = [int(path.read_text().split()[0]) for path in tmp_path.glob("job*/pid")]
    until(lambda: not any(map(lives, pids)), "the processes have ended")
    (tmp_path / "waits").unlink()
    assert hand_out(counting_jobs(tmp_path, 2, 9), OnRay(cluster.address, tmp_path, None), resume_command="") == {}
    assert begun(tmp_path) == {"job0": 2, "job1": 2}


@pytest.mark.slow
def test_a_killed_command_leaves_no_process_and_a_second_call_does_the_rest(cluster, tmp_path):
    (tmp_path / "waits").touch()
    driver = driver_of(f"ray:{cluster.address}", tmp_path, 3, 9)
    until(lambda: waiting(tmp_path, 2), "two jobs run")
    driver.kill()
    driver.wait(30)
    pids = [int(path.read_text().split()[0]) for path in tmp_path.glob("job*/pid")]
    until(lambda: not any(map(lives, pids)), "the processes have followed")
    (tmp_path / "waits").unlink()
    assert hand_out(counting_jobs(tmp_path, 3, 9), OnRay(cluster.address, tmp_path, None), resume_command="") == {}
    assert len(outcome(tmp_path)) == 3 and sorted(begun(tmp_path).values()) == [1, 2, 2]


def lives(pid):
    try:  # what was killed and not waited for yet runs no more
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
