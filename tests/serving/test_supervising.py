"""What the worker and its supervisor do where neither a server nor a process is needed to see it."""

import asyncio
from types import SimpleNamespace

import pytest

from ulna.serving import supervising
from ulna.serving.jobs import Jobs
from ulna.serving.limits import Limits
from ulna.serving.metrics import Metrics


@pytest.mark.parametrize("limit", [{"seconds": 0.0}, {}])
def test_a_worker_that_was_ended_behind_its_last_line_gets_no_further_job(tmp_path, monkeypatch, limit):
    """It said that it had done the job, and was killed before that was read: for its time, or because the job was removed."""
    monkeypatch.setattr(supervising, "LOOK_S", 0.0)

    async def work():
        jobs = Jobs(tmp_path, Limits(**limit), Metrics())
        job = jobs.new(None)
        jobs.put(job)
        await jobs.take()
        killed = asyncio.Event()

        async def nothing(*_):
            if not limit:
                jobs.forget(job)

        async def read():
            await killed.wait()
            return {"job": job.id, "done": True}

        worker = SimpleNamespace(
            process=SimpleNamespace(kill=killed.set), send=nothing, read=read, kill=nothing, memory=0
        )
        supervisor = supervising.Supervisor("run", 1, jobs, Metrics(), tmp_path)
        supervisor._worker = worker
        await asyncio.wait_for(supervisor._do(worker, job), 20)
        return supervisor._worker, job.state

    assert asyncio.run(work()) == (None, "failed" if limit else "cancelled")
