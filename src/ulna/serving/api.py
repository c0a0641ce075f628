"""What clients ask: a small interface over HTTP, described by its own /openapi.json."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException

from ulna.serving.guard import extra_headers
from ulna.serving.jobs import ENDED, Job, Jobs
from ulna.serving.limits import Refused
from ulna.serving.supervising import Supervisor
from ulna.serving.uploading import Discarding, Gone, receive_upload
from ulna.version import version
from ulna.viewer.page import ABOUT, about_body, page_files, read_page

SWEEP_S = 1.0  # how often results are looked at that were kept for long enough
HEARTBEAT_S = 15.0  # of an event stream
EXPLAINED = {400: "wrong", 401: "token", 403: "origin", 404: "no such job", 408: "too slow", 413: "too large"}
BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {"type": "object", "properties": {"file": {"type": "string", "format": "binary"}}}
            },
        },
    },
    "parameters": [
        {
            "name": "X-File-Name",
            "in": "header",
            "schema": {"type": "string"},
            "description": "Name of the file, percent-encoded; its ending says what it is. A form has it already.",
        }
    ],
}


class JobTold(BaseModel):
    """A job: where it is, and, when it is done, what is said of its mask (docs/serving.md)."""

    model_config = ConfigDict(extra="allow")
    id: str
    state: Literal["uploading", "queued", "running", "done", "failed", "cancelled"]
    place: int | None = None
    stage: str | None = None
    progress: float | None = None
    error: str | None = None
    file: str | None = None
    size: list[int] | None = None
    classes: list[str] | None = None
    notes: list[str] | None = None
    seconds: float | None = None
    trust: dict[str, Any] | None = None


class Model(BaseModel):
    """What is served."""

    model_config = ConfigDict(extra="allow")
    model: str
    classes: list[str]
    dimensions: int
    channels: list[str]


def make_api(jobs: Jobs, supervisor: Supervisor, *, token: bool = False) -> FastAPI:
    """The application, without its guard; its tasks run while it does.

    Args:
        token: whether requests must bring one, which the page asks for.
    """

    @asynccontextmanager
    async def alive(_: FastAPI) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(supervisor.work()), asyncio.create_task(_sweep(jobs))]
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await supervisor.stop()

    about = "An image goes in, its mask comes out. Research use only; not a medical device."
    api = FastAPI(
        title="ulna serve",
        version=version("ulna"),
        description=about,
        docs_url=None,  # its pages load scripts from the network
        redoc_url=None,
        lifespan=alive,
        telemetry={
            "tracing": False,
            "metrics": False,
            "logs": False,
            "auto_configure": False,
        },  # nothing is sent anywhere
    )
    _add_errors(api)
    _add_page(api, token=token)
    _add_state(api, jobs, supervisor)
    _add_jobs(api, jobs)
    return api


async def _sweep(jobs: Jobs) -> None:
    while True:
        await asyncio.sleep(SWEEP_S)
        jobs.expire(time.monotonic())


def _add_errors(api: FastAPI) -> None:
    def told(status: int, text: str, headers: Any = None) -> JSONResponse:
        return JSONResponse({"error": text}, status, dict(headers or {}))

    async def refused(_: Request, error: Any) -> JSONResponse:
        return told(error.status, error.text, extra_headers(error))

    async def other(_: Request, error: Any) -> JSONResponse:
        texts = {404: "there is nothing here; /openapi.json lists what there is", 405: "not with this method"}
        return told(error.status_code, texts.get(error.status_code, "the request is wrong"), error.headers)

    async def wrong(_: Request, error: Any) -> JSONResponse:
        names = ", ".join(dict.fromkeys(str(one["loc"][-1])[:40] for one in error.errors()[:4]))
        return told(400, f"the request is wrong in: {names}; /openapi.json says what may be asked")

    async def defect(_: Request, error: Exception) -> JSONResponse:
        return told(500, "a defect of ulna serve, whose log has more; please report it")

    api.add_exception_handler(Refused, refused)
    api.add_exception_handler(HTTPException, other)
    api.add_exception_handler(RequestValidationError, wrong)
    api.add_exception_handler(Exception, defect)


def _add_page(api: FastAPI, *, token: bool) -> None:
    body = about_body("serve", token=token)

    @api.get(ABOUT, include_in_schema=False)
    async def about() -> Response:
        return Response(body, media_type="application/json")

    def serve(path: str) -> None:
        @api.get(path, include_in_schema=False)
        async def file(request: Request) -> Response:
            page = read_page(path)
            known = request.headers.get("if-none-match") == page.headers["ETag"]
            return Response(b"" if known else page.body, 304 if known else 200, page.headers)

    for path in page_files():
        serve(path)


def _add_state(api: FastAPI, jobs: Jobs, supervisor: Supervisor) -> None:
    @api.get("/health")
    async def health() -> dict[str, Any]:
        """Whether it runs: `starting` while the worker is begun or replaced, else `ready` or `busy`."""
        return {
            "status": "ok",
            "worker": supervisor.state,
            "queued": jobs.queued,
            "running": int(jobs.running is not None),
        }

    @api.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> str:
        """Counters in the text format of Prometheus."""
        now = {
            "jobs_queued": jobs.queued,
            "jobs_running": int(jobs.running is not None),
            "jobs_kept": len(jobs),
            "disk_bytes": jobs.taken,
            "worker_memory_bytes": supervisor.memory,
        }
        return jobs.metrics.text(now)

    @api.get("/model", response_model=Model)
    async def model() -> dict[str, Any]:
        """What is served: the network, its classes and channels, and what may be sent."""
        limits = jobs.limits
        most = {"bytes": limits.body, "pixels": limits.pixels, "seconds": limits.seconds, "queue": limits.queue}
        return {**supervisor.about, "limits": most, "kept_seconds": limits.kept_s}


def _add_jobs(api: FastAPI, jobs: Jobs) -> None:
    streams, discarding = 0, Discarding(jobs.limits)

    def told(job: Job) -> dict[str, Any]:
        return job.to_json(jobs.place(job))

    @api.post("/jobs", response_model=JobTold, response_model_exclude_unset=True, openapi_extra=BODY)
    async def send(request: Request, format: Literal["seg", "rtstruct", "nifti"] | None = None) -> Any:
        """Send an image (PNG, JPEG, BMP, TIFF, NIfTI, .mha, .nrrd, .npy, .npz, .dcm, or a .zip of a DICOM series)."""
        try:
            job = jobs.new(format)
        except Refused:
            await discarding.rest(request)
            raise
        try:
            name = await receive_upload(request, job.folder, jobs.limits, lambda count: jobs.grow(job, count))
        except Gone:
            jobs.forget(job)
            return Response(status_code=400)
        except OSError:
            jobs.forget(job)
            raise Refused(503, "the upload cannot be stored now; send it again later", retry_s=60) from None
        except Refused as refused:
            jobs.forget(job)
            if refused.status != 408:
                await discarding.rest(request)
            raise
        except BaseException:
            jobs.forget(job)
            raise
        job.stem, job.suffix = name
        jobs.put(job)
        return told(job)

    @api.get("/jobs/{id}", response_model=JobTold, response_model_exclude_unset=True)
    async def look(id: str) -> dict[str, Any]:
        """Where a job is."""
        return told(jobs.find(id))

    @api.get("/jobs/{id}/events", response_class=StreamingResponse)
    async def events(id: str) -> StreamingResponse:
        """Every change of a job as a server-sent event, to its end."""
        job = jobs.find(id)
        if streams >= jobs.limits.streams:
            raise Refused(503, "too many event streams are open; ask for the job itself from time to time", retry_s=5)

        async def changes() -> AsyncIterator[str]:
            nonlocal streams
            streams += 1
            try:
                while True:
                    changed = job.changed
                    yield f"data: {json.dumps(told(job))}\n\n"
                    if job.state in ENDED:
                        return
                    with suppress(TimeoutError):
                        await asyncio.wait_for(changed.wait(), HEARTBEAT_S)
            finally:
                streams -= 1

        return StreamingResponse(changes(), media_type="text/event-stream")

    @api.get("/jobs/{id}/mask", response_class=FileResponse)
    async def mask(id: str) -> FileResponse:
        """The mask, in the format of the image or in that which was asked for."""
        found = jobs.find(id).mask()
        if found is None or not found[0].is_file():
            raise Refused(409, "the job has no mask; ask for the job to see where it is")
        return FileResponse(found[0], filename=found[1], media_type="application/octet-stream")

    @api.get("/jobs/{id}/view/{what}", response_class=FileResponse)
    async def view(id: str, what: Literal["image", "mask", "shown", "overlay"]) -> FileResponse:
        """Image or mask as a browser shows it: PNG in 2D, NIfTI in 3D; `image` and `mask` of a DICOM series are NIfTI."""
        job = jobs.find(id)
        name = job.answer.get("view", {}).get(what)
        if job.state != "done" or not isinstance(name, str):
            raise Refused(
                409, "the job has no such view; one of an .npz has none, nor one that is not done or whose notes say so"
            )
        suffix = name[name.index(".") :]
        media = "image/png" if suffix == ".png" else "application/octet-stream"
        return FileResponse(job.result / name, filename=f"{job.stem}_{what}{suffix}", media_type=media)

    @api.delete("/jobs/{id}", status_code=204, response_class=Response)
    async def remove(id: str) -> None:
        """End a job, and remove its upload and its mask."""
        jobs.forget(jobs.find(id))
