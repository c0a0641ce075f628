"""What the worker and its supervisor do where neither a server nor a process is needed to see it."""

import asyncio
import zipfile
from types import SimpleNamespace

import pytest

from ulna.errors import UsageError
from ulna.serving import supervising
from ulna.serving.archive import unpack
from ulna.serving.engine import runtime
from ulna.serving.jobs import Jobs
from ulna.serving.limits import Limits, Refused
from ulna.serving.metrics import Metrics
from ulna.serving.worker import places_of, without_place


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


def test_a_sentence_for_clients_has_no_place_of_the_model(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "model").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    absolute = (tmp_path / "model", tmp_path / "real")
    for run, named in (("model", ("model",)), ("./model/", ("model",)), (str(tmp_path / "model"), ())):
        for place in (*named, *absolute):
            said = without_place(f"{place}/fold_0: NaN; this model reads 2D images", "/job", places_of(run))
            assert said == "the model/fold_0: NaN; this model reads 2D images"
    zoo = runtime("zoo").located("zoo:nuclei")
    assert without_place(f"{zoo}: 3 values are NaN", "/job", places_of("zoo:nuclei")) == "the model: 3 values are NaN"
    assert without_place("/job/upload.png: is damaged", "/job", places_of("model")) == "upload.png: is damaged"


def test_a_disk_that_is_nearly_full_takes_no_more(tmp_path):
    """Neither pieces of an upload nor members of a zip."""
    jobs = Jobs(tmp_path / "jobs", Limits(left_free=0), Metrics())
    jobs.folder.mkdir()
    job = jobs.new(None)
    jobs.grow(job, 10)
    jobs.limits = Limits(left_free=1 << 60)
    with pytest.raises(Refused, match="no room"):
        jobs.grow(job, 10)
    assert job.bytes == 10
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", b"x")
    with pytest.raises(UsageError, match=r"a\.zip: .*no room"):
        unpack(path, tmp_path / "series", jobs.limits._asdict())
    assert not (tmp_path / "series").exists()
