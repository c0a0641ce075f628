"""The verb `serve`: an address where an image or a DICOM series goes in and its mask comes out."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ulna.data.formats.limits import memory
from ulna.errors import UsageError
from ulna.serving.folder import private_folder
from ulna.serving.guard import LOOPBACK, Guard, is_everywhere, is_loopback
from ulna.serving.jobs import Jobs
from ulna.serving.limits import MB, TOKEN, Limits
from ulna.serving.metrics import Metrics
from ulna.system.names import is_of_the_zoo
from ulna.system.signals import leaving
from ulna.viewer.page import page_paths

log = logging.getLogger(__name__)

SHORTEST_TOKEN = 16
EXTRA = ("fastapi", "uvicorn", "python_multipart", "starlette", "h11", "anyio")


def serve(
    run: Path | str,
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    name: Sequence[str] = (),
    queue: int = 16,
    keep_minutes: float = 60.0,
    max_megabytes: float = 512.0,
    max_pixels: int = 300_000_000,
    max_seconds: float = 600.0,
    max_ram: float | None = None,
    max_disk: float = 8.0,
    threads: int | None = None,
) -> None:
    """Serve a segmenter over HTTP: send an image or a zip of a DICOM series, get its mask in its own format.

    Answers this machine alone, unless --host and a token say otherwise. Images are predicted one after the other by a
    process that may die and is replaced; what does not fit into the queue is told 503. Nothing is kept for longer than
    --keep-minutes, or beyond the end of the server; what a killed one leaves is removed by the next. An exported file is
    served without torch. docs/serving.md has the requests.

    Args:
        run: a run folder of `ulna train`, a file of `ulna export`, or zoo:NAME, see `ulna zoo`.
        host: the address that is listened to; 0.0.0.0 for all of this machine's.
        port: of that address; 0 for any that is free.
        token: that every request must bring, as `Authorization: Bearer TOKEN`; at least 16 signs. Better given as the
            variable ULNA_TOKEN: other people of a machine can read its command lines.
        name: a host name under which the server is reached beside --host and localhost; may be given several times.
            Requests for other names are refused.
        queue: images that wait or are predicted, uploads that still come included.
        keep_minutes: how long a mask is kept.
        max_megabytes: of an upload.
        max_pixels: pixels or voxels of an image, channels included.
        max_seconds: that predicting an image may take.
        max_ram: GB that predicting may take; left out, half of the memory of the machine.
        max_disk: GB that uploads and masks may take together.
        threads: that compute; left out, all cores (of a run folder: those that are free).

    Raises:
        UsageError: if the segmenter cannot be read, or the address is not free or may not be offered without a token.

    Example:
        ulna serve liver.ulna
    """
    limits = limits_of(queue, keep_minutes, max_megabytes, max_pixels, max_seconds, max_ram, max_disk)
    token = check_token(host, os.environ.get(TOKEN) if token is None else token)
    names = known(host, name)
    check_extra()
    if threads is not None and not 1 <= threads <= 4096:
        raise UsageError(f"--threads {threads}: a number of threads, from 1 to 4096; left out, all cores")
    if not is_of_the_zoo(run) and not os.path.lexists(run):
        raise UsageError(f"{run}: does not exist; check the path")
    with bound(host, port) as listening, leaving(signal.SIGTERM), private_folder() as folder:
        server = Server(str(run), threads, listening, folder, limits, token, names)
        asyncio.run(server.run())


def limits_of(
    queue: int = 16,
    keep_minutes: float = 60.0,
    max_megabytes: float = 512.0,
    max_pixels: int = 300_000_000,
    max_seconds: float = 600.0,
    max_ram: float | None = None,
    max_disk: float = 8.0,
) -> Limits:
    """The limits that a command line states.

    Raises:
        UsageError: for one that is not above 0.
    """
    given = {
        "--queue": queue,
        "--keep-minutes": keep_minutes,
        "--max-megabytes": max_megabytes,
        "--max-pixels": max_pixels,
        "--max-seconds": max_seconds,
        "--max-ram": max_ram,
        "--max-disk": max_disk,
    }
    for flag, value in given.items():
        if value is not None and not 0 < value < math.inf:
            raise UsageError(f"{flag} {value}: must be above 0")
    body = int(max_megabytes * MB)
    return Limits(
        body=body,
        unpacked=max(4 * body, 1),
        pixels=max_pixels,
        ram=memory() // 2 if max_ram is None else int(max_ram * 1000 * MB),
        disk=int(max_disk * 1000 * MB),
        seconds=max_seconds,
        queue=queue,
        kept_s=keep_minutes * 60,
    )


def check_token(host: str, token: str | None) -> str | None:
    """The token of a server at an address.

    Raises:
        UsageError: if there is none where one is needed, or it is easily guessed.
    """
    if token is None or not token:
        if is_loopback(host):
            return None
        raise UsageError(f"--host {host}: is reached from other machines; give a --token, or a secret in {TOKEN}")
    if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError(
            f"the token: needs at least {SHORTEST_TOKEN} letters, digits or signs without spaces; make one with "
            "python3 -c 'import secrets; print(secrets.token_urlsafe())'"
        )
    return token


def known(host: str, names: Sequence[str]) -> tuple[str, ...]:
    """The names under which a server is reached.

    Raises:
        UsageError: for one that is no name of a host.
    """
    for one in names:
        if not one or any(sign in one for sign in "/:@* "):
            raise UsageError(f"--name {one}: is no name of a host; give the name alone, such as segment.clinic.example")
    return (*LOOPBACK, *(() if is_everywhere(host) else (host,)), *names)


def check_extra() -> None:
    """Say which extra brings what is missing.

    Raises:
        UsageError: if a package is not installed.
    """
    from importlib.util import find_spec

    missing = next((package for package in EXTRA if find_spec(package) is None), None)
    if missing is not None:
        raise UsageError(f"ulna serve needs {missing}, which is not installed; pip install 'ulna[serve]'")


def bound(host: str, port: int) -> socket.socket:
    """A socket at an address.

    Raises:
        UsageError: if there is no such address, or it is taken.
    """
    if not 0 <= port <= 65535:
        raise UsageError(f"--port {port}: is no port; choose one from 1 to 65535, or 0 for any that is free")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UsageError(f"--host {host} --port {port}: is no address here ({error}); choose another") from None
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        listening.close()
        raise UsageError(
            f"--host {host} --port {port}: cannot be listened to ({error.strerror or error}); choose another --port"
        ) from None
    return listening


class Server:
    """A server at an address that is listened to already.

    Args:
        run: what predicts.
        threads: that compute.
        listening: the socket.
        folder: private, for uploads and masks.
        limits: what it takes.
        token: that requests must bring.
        names: under which it is reached.

    Attributes:
        ready: set when the first worker is.
        supervisor: of the workers, from then on.
    """

    def __init__(
        self,
        run: str,
        threads: int | None,
        listening: socket.socket,
        folder: Path,
        limits: Limits,
        token: str | None = None,
        names: Sequence[str] = LOOPBACK,
    ) -> None:
        self.served, self.threads, self.listening, self.folder = run, threads, listening, folder
        self.limits, self.token, self.names = limits, token, names
        self.ready = threading.Event()
        self.supervisor: Any = None
        self._server: Any = None

    @property
    def jobs_folder(self) -> Path:
        """Where a folder a job is made."""
        return self.folder / "jobs"

    @property
    def address(self) -> str:
        """Where it answers, as a URL."""
        host, port = self.listening.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def run(self) -> None:
        """Answer until a signal comes, or `stop` is called.

        Raises:
            UsageError: if the segmenter cannot be read.
        """
        import uvicorn

        from ulna.serving.api import make_api
        from ulna.serving.protocol import protocol_of
        from ulna.serving.supervising import Supervisor

        metrics = Metrics()
        for part in (self.jobs_folder, self.folder / "tmp"):
            part.mkdir(mode=0o700)
        jobs = Jobs(self.jobs_folder, self.limits, metrics)
        self.supervisor = Supervisor(self.served, self.threads, jobs, metrics, self.folder / "tmp")
        await self.supervisor.first()
        api = make_api(jobs, self.supervisor, token=self.token is not None)
        config: Any = uvicorn.Config(
            Guard(api, self.names, self.token, metrics, self.limits.header_bytes, page_paths()),
            http=protocol_of(self.limits),
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=self.limits.connections,
            h11_max_incomplete_event_size=self.limits.header_bytes,
            timeout_keep_alive=5,
            timeout_graceful_shutdown=5,
            backlog=self.limits.connections,
        )
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        log.info("serving %s at %s; Ctrl-C ends it", self.served, self.address)
        self._server = uvicorn.Server(config)
        self.ready.set()
        await self._server.serve(sockets=[self.listening])

    def stop(self) -> None:
        """Let it end, from another thread."""
        self._server.should_exit = True
