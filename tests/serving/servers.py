"""Servers in a thread, and clients as plain as sockets; what imports this skips where the extra is absent."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import socket
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="fastapi is not installed (extra serve)")
pytest.importorskip("uvicorn", reason="uvicorn is not installed (extra serve)")
pytest.importorskip("python_multipart", reason="python-multipart is not installed (extra serve)")

from ulna.serving.limits import Limits
from ulna.serving.serve import Server, bound

SMALL = Limits(
    body=400_000,
    unpacked=1_000_000,
    members=20,
    pixels=40_000,
    disk=20_000_000,
    seconds=20.0,
    queue=30,
    header_s=0.5,
    silent_s=0.5,
    slowest=20_000,
    connections=40,
)


class Client:
    """Asks one server."""

    def __init__(self, server):
        self.server = server
        self.port = server.listening.getsockname()[1]
        self.folder = server.jobs_folder

    def ask(self, method, path, body=None, headers=None):
        """Status, headers and body of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            headers = {name.lower(): value for name, value in answer.headers.items()}
            return answer.status, headers, answer.read()
        finally:
            connection.close()

    def get(self, path):
        """The JSON of an answer that must be one."""
        status, _, body = self.ask("GET", path)
        assert status == 200, body
        return json.loads(body)

    def send(self, name, data, query="", **headers):
        """Status and JSON of an upload."""
        status, _, body = self.ask("POST", f"/jobs{query}", data, {"X-File-Name": name, **headers})
        return status, json.loads(body)

    def ended(self, id, seconds=30):
        """A job, once it has ended."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            job = self.get(f"/jobs/{id}")
            if job["state"] in ("done", "failed", "cancelled"):
                return job
            time.sleep(0.02)
        raise AssertionError(job)

    def raw(self, data, *, wait=8.0):
        """All that the server says to bytes, until it closes the connection or says no more; empty where it says nothing."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=wait) as connection:
            said = b""
            try:
                connection.sendall(data)
                while piece := connection.recv(65536):
                    said += piece
            except OSError:
                pass
            return said

    def settled(self):
        """Wait until nothing is done any more; the files that lie in the server's folder then."""
        until = time.monotonic() + 20
        while time.monotonic() < until:
            health = self.get("/health")
            if health["worker"] == "ready" and not health["queued"] and not health["running"]:
                break
            time.sleep(0.05)
        return sorted(path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file())


@contextmanager
def serving(run, folder, limits=SMALL, **options):
    """A server in a thread."""
    server = Server(str(run), 1, bound("127.0.0.1", 0), Path(folder), limits, **options)
    failed = []

    def work():
        try:
            asyncio.run(server.run())
        except BaseException as error:
            failed.append(error)
            server.ready.set()

    thread = threading.Thread(target=work)
    thread.start()
    server.ready.wait(60)
    try:
        if failed:
            raise failed[0]
        client = Client(server)
        until = time.monotonic() + 10
        while time.monotonic() < until:
            try:
                client.ask("GET", "/health")
                break
            except OSError:
                time.sleep(0.02)
        yield client
    finally:
        if not failed:
            server.stop()
        thread.join(20)
        server.listening.close()


def png(size=(24, 30), seed=0):
    """A picture in colour."""
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
