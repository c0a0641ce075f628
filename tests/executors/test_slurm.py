"""Arrays of SLURM, by commands that stand in for its own: what is asked for, what is waited for, what is found again."""

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests.executors import fake_slurm
from tests.executors.handed import begun, counting_jobs, driver_of, outcome, until, waiting
from ulna.errors import Interrupted, UsageError
from ulna.executors.handing import hand_out
from ulna.executors.job import Job, Need, passed_variables
from ulna.executors.places import unknown_need
from ulna.executors.slurm import Slurm
from ulna.executors.slurm_script import Ask, read_options, script, told_time
from ulna.system.device import Device


def test_jobs_are_an_array_and_their_files_say_what_was_done(slurm, tmp_path, caplog):
    (tmp_path / "job1").mkdir()
    (tmp_path / "job1" / "fails").touch()
    done = []
    with caplog.at_level("INFO"):
        failed = hand_out(
            counting_jobs(tmp_path, 3, threads=2), Slurm(tmp_path, {}, None), resume_command="", on_done=done.append
        )
    assert failed == {"job 1": "no image in it"}
    assert outcome(tmp_path) == {"job0": "10 2", "job2": "10 2"} and len(done) == 2
    assert [told["state"] for told in fake_slurm.states(slurm).values()] == ["COMPLETED", "FAILED", "COMPLETED"]
    assert "job 0: begins as job 1000_0" in caplog.text
    # a second call submits what is missing alone, and nothing where nothing is
    (tmp_path / "job1" / "fails").unlink()
    assert hand_out(counting_jobs(tmp_path, 3), Slurm(tmp_path, {}, None), resume_command="") == {}
    assert hand_out(counting_jobs(tmp_path, 3), Slurm(tmp_path, {}, None), resume_command="") == {}
    assert sorted(fake_slurm.states(slurm)) == ["1000_0", "1000_1", "1000_2", "1001_0"]


def test_jobs_that_ask_alike_share_an_array(tmp_path):
    gb = 10**9
    jobs = [*counting_jobs(tmp_path / "a", 2, need=Need(2 * gb), seconds=3600.0),
            *counting_jobs(tmp_path / "b", 1, need=Need(2 * gb, 5 * gb), threads=4)]  # fmt: skip
    small, gpu = re.split(r"(?m)^#!/bin/bash\n", Slurm(tmp_path, {"partition": "long"}, 1).describe(jobs))[1:]
    assert {"array=0-1%1", "mem=2816M", "time=01:40:00", "cpus-per-task=1", "partition=long"} <= _options(small)
    assert {"array=0-0", "gres=gpu:1", "cpus-per-task=4", "requeue", "signal=B:TERM@120"} <= _options(gpu)
    assert not any(option.startswith(("time", "%")) for option in _options(gpu))
    assert not (tmp_path / "slurm").exists()


def _options(text):
    return set(re.findall(r"(?m)^#SBATCH --(.*)$", text))


def test_what_a_person_asks_for_takes_the_place_of_the_estimate(tmp_path):
    (job,) = counting_jobs(tmp_path, 1, need=Need(1e9, 1e9), seconds=60.0)
    asked = read_options(["mem=8G", "--time=1-00:00:00", "gpus=a100:1", "no-requeue", "comment=two words"])
    options = _options(script("a", [job], Ask.of(job), tmp_path, asked, None))
    assert {"mem=8G", "time=1-00:00:00", "gpus=a100:1", "no-requeue", "comment='two words'"} <= options
    assert not {"requeue", "gres=gpu:1"} & options
    unknown = Job("a", [], tmp_path, tmp_path, bool, need=unknown_need(Device("cpu")))
    assert Ask.of(unknown) == Ask(1, None, None, gpu=False)


def test_no_secret_of_the_environment_is_written_into_a_script(tmp_path, monkeypatch):
    monkeypatch.setenv("ULNA_TOKEN", "abracadabra")
    monkeypatch.setenv("ULNA_NATIVE", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://tracking.example.org/x@y")
    (job,) = counting_jobs(tmp_path, 1)
    text = script("a", [job], Ask.of(job), tmp_path, {}, None)
    assert "\nexport ULNA_NATIVE=0\n" in text and "abracadabra" not in text
    assert "\nexport MLFLOW_TRACKING_URI=https://tracking.example.org/x@y\n" in text
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:abracadabra@tracking.example.org/x")
    assert "MLFLOW" not in script("a", [job], Ask.of(job), tmp_path, {}, None)
    assert passed_variables()["MLFLOW_TRACKING_URI"].startswith("https://me:")  # in memory, by Ray


def test_wrong_options_are_all_told_at_once():
    with pytest.raises(UsageError) as error:
        read_options(["partition=gpu", "array=0-9", "Time=3", "mem=", "gres=gpu:1\n#SBATCH --wrap=x", "wrap=x"])
    assert [line.split(":")[0].strip() for line in str(error.value).splitlines()] == [
        "--slurm array=0-9", "--slurm Time=3", "--slurm mem=", "--slurm gres=gpu", "--slurm wrap=x",
    ]  # fmt: skip


def test_a_length_is_written_as_slurm_reads_it():
    assert [told_time(s) for s in (60, 3599, 86400, 200000)] == ["00:01:00", "00:59:59", "1-00:00:00", "2-07:33:20"]


@pytest.mark.parametrize("name", ["it's", "a b; touch X", "$(touch X)", "x\ny"])
def test_the_shell_takes_every_word_as_it_is(tmp_path, name):
    """Whoever chose the names of data and folders."""
    folder = tmp_path / name
    (job,) = counting_jobs(folder, 1, environment={"ODD": name})
    folder.mkdir()
    text = script("a", [job], Ask.of(job), tmp_path, {}, None)
    subprocess.run(["bash", "-c", text], env={**os.environ, "SLURM_ARRAY_TASK_ID": "0"}, cwd=tmp_path, check=True)
    assert (folder / "job0" / "done").exists() and not list(tmp_path.rglob("X"))


def test_a_refused_script_and_a_machine_without_slurm_are_one_sentence(slurm, tmp_path, monkeypatch):
    (slurm / "refuses").touch()
    with pytest.raises(UsageError, match=r"sbatch refused it .*Invalid partition name"):
        hand_out(counting_jobs(tmp_path, 1), Slurm(tmp_path, {}, None), resume_command="")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UsageError, match="there is no sbatch and no squeue here"):
        hand_out(counting_jobs(tmp_path, 1), Slurm(tmp_path, {}, None), resume_command="")


def test_a_killed_command_is_called_again_and_waits_for_what_still_runs(slurm, tmp_path, caplog):
    """Nothing is begun twice, whether it ran or waited; and a job that ended meanwhile is not begun either."""
    (tmp_path / "waits").touch()
    driver = driver_of("slurm", tmp_path, 4, 9)
    until(lambda: waiting(tmp_path, 2), "two jobs run, and two wait")
    driver.kill()
    driver.wait(30)
    (tmp_path / "waits").unlink()
    with caplog.at_level("INFO"):
        assert hand_out(counting_jobs(tmp_path, 4, 9), Slurm(tmp_path, {}, None), resume_command="") == {}
    assert set(begun(tmp_path).values()) == {1} and len(outcome(tmp_path)) == 4
    assert "is with SLURM already" in caplog.text and len(fake_slurm.states(slurm)) == 4


def test_an_array_that_was_submitted_by_a_command_that_never_read_its_number_is_found(slurm, tmp_path):
    (slurm / "dies").touch()
    (tmp_path / "waits").touch()
    driver = driver_of("slurm", tmp_path, 3, 9)
    assert driver.wait(60) == -signal.SIGKILL
    (slurm / "dies").unlink()
    (tmp_path / "waits").unlink()
    assert hand_out(counting_jobs(tmp_path, 3, 9), Slurm(tmp_path, {}, None), resume_command="") == {}
    assert set(begun(tmp_path).values()) == {1} and len(fake_slurm.states(slurm)) == 3


def test_a_signal_leaves_the_jobs_with_slurm_and_says_how_to_end_them(slurm, tmp_path):
    (tmp_path / "waits").touch()
    jobs, told = counting_jobs(tmp_path, 2, 9), []

    class Stopping(Slurm):
        def look(self, job):
            if not told and waiting(tmp_path, 2):
                told.append(os.kill(os.getpid(), signal.SIGTERM))
            return super().look(job)

    with pytest.raises(Interrupted) as stopped:
        hand_out(jobs, Stopping(tmp_path, {}, None), resume_command="ulna again")
    (array,) = {told["array"] for told in fake_slurm.states(slurm).values()}
    assert str(stopped.value) == (
        f"stopped by signal 15; the jobs of SLURM go on; `scancel -n {array}` ends them, go on with: ulna again"
    )
    assert all(told["state"] == "RUNNING" for told in fake_slurm.states(slurm).values())
    subprocess.run(["scancel", "-n", array], check=True)
    until(lambda: "RUNNING" not in str(fake_slurm.states(slurm)), "both are ended")
    assert {told["code"] for told in fake_slurm.states(slurm).values()} == {"143:0"}
    (tmp_path / "waits").unlink()
    assert hand_out(jobs, Slurm(tmp_path, {}, None), resume_command="") == {}


@pytest.mark.parametrize(
    ("lost", "accounts"), [("job", True), ("job", False), ("node", True), ("node without requeue", True)]
)
def test_a_lost_job_or_node_costs_what_it_did_since_its_checkpoint(slurm, tmp_path, lost, accounts):
    if not accounts:
        (tmp_path / "bin" / "sacct").unlink()
    (tmp_path / "waits").touch()
    killed = []

    class Losing(Slurm):
        def look(self, job):
            if not killed and waiting(tmp_path, 2):
                told = fake_slurm.states(slurm)["1000_0"]
                killed.append(told)
                (tmp_path / "waits").unlink()
                for pid in [told["job"], *([told["runner"]] if lost != "job" else [])][::-1]:
                    os.kill(pid, signal.SIGKILL)
            return super().look(job)

    options = {"no-requeue": None} if lost == "node without requeue" else {}
    failed = hand_out(counting_jobs(tmp_path, 2, 12), Losing(tmp_path, options, None), resume_command="")
    assert failed == {} and killed and outcome(tmp_path) == {"job0": "66 1", "job1": "66 1"}
    assert begun(tmp_path) == {"job0": 2, "job1": 1}


def test_a_job_that_had_too_little_asks_for_more(tmp_path):
    executor, (job,) = Slurm(tmp_path, {}, None), counting_jobs(tmp_path, 1, need=Need(1e9), seconds=3600.0)
    first = Ask.of(job)
    again = executor._ended(job, fake("TIMEOUT", "0:0"))
    assert again.again == "cut off (SLURM says TIMEOUT, exit code 0:0); it goes on as a new job"
    assert executor._ended(job, fake("OUT_OF_MEMORY", "0:125")).again
    more = Ask.of(job, *executor._more[job.name])
    assert more.seconds == pytest.approx(2 * first.seconds, rel=0.01) and more.memory > 1.8 * first.memory
    assert executor._ended(job, fake("PREEMPTED", "0:0")).again, "the third try"
    assert not executor._ended(job, fake("NODE_FAIL", "0:0")).again
    for state, code in (("CANCELLED", "0:15"), ("FAILED", "2:0"), ("COMPLETED", "0:0")):
        assert not Slurm(tmp_path, {}, None)._ended(job, fake(state, code)).again


def fake(state, code):
    from ulna.executors.slurm_states import Known

    return Known("1_0", state, code)


def test_a_controller_that_does_not_answer_is_waited_for(slurm, tmp_path, caplog):
    class Silent(Slurm):
        def begin(self, jobs):
            super().begin(jobs)
            (slurm / "silent").touch()

        def look(self, job):
            ended = all((tmp_path / f"job{n}" / "done").exists() for n in range(2))
            if ended and "does not answer" in caplog.text:  # however fast they end, it was asked in vain
                (slurm / "silent").unlink(missing_ok=True)
            return super().look(job)

    with caplog.at_level("INFO"):
        assert hand_out(counting_jobs(tmp_path, 2), Silent(tmp_path, {}, None), resume_command="") == {}
    assert caplog.text.count("squeue does not answer; waiting for it") == 1 and set(begun(tmp_path).values()) == {1}
    # at the beginning nobody knows what still runs
    (slurm / "silent").touch()
    jobs = counting_jobs(tmp_path, 3)
    Path(tmp_path / "slurm" / "submitted.json").write_text(json.dumps([{"array": "ulna-1", "jobs": ["job 2"]}]))
    with pytest.raises(UsageError, match="squeue does not answer, and jobs of this study may still run"):
        hand_out(jobs, Slurm(tmp_path, {}, None), resume_command="")


def test_a_damaged_note_of_what_was_submitted_is_named(slurm, tmp_path):
    (tmp_path / "slurm").mkdir()
    for text in ("{}", "[1]", '{"a": 1}', '[{"array": "x"}]'):
        (tmp_path / "slurm" / "submitted.json").write_text(text)
        if text == "{}":
            continue
        with pytest.raises(UsageError, match=r"submitted\.json: is damaged"):
            hand_out(counting_jobs(tmp_path, 1), Slurm(tmp_path, {}, None), resume_command="")
