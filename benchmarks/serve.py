"""Many uploads at once against `ulna serve`: what is answered, how long the health check takes meanwhile, and the memory.

    python benchmarks/serve.py [--uploads 100] [--rounds 10] [--side 1150] [--queue 16] [--out serve.json]

A server of zoo:nuclei is begun. In every round all uploads (pictures of side x side noise, 4 MB each as they are) begin at
once; the rounds follow each other without waiting for the masks. A process of its own asks for the health all the time.
What was taken is waited for at the end; with --cancel it is removed instead. Memory is the peak of each process.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import io
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

EVERY_S = 0.02  # between two health checks


def picture(side: int) -> bytes:
    """Noise, which packs to no less than it is."""
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (side, side, 3), np.uint8)
    Image.fromarray(pixels).save(file, "PNG", compress_level=0)
    return file.getvalue()


async def upload(port: int, data: bytes) -> tuple[int, str]:
    """Status and job of one upload; 0 where the connection broke."""
    writer = None
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"POST /jobs HTTP/1.1\r\nHost: localhost\r\nX-File-Name: a.png\r\nContent-Length: {len(data)}\r\n"
        writer.write(f"{head}Connection: close\r\n\r\n".encode())
        for start in range(0, len(data), 65536):
            writer.write(data[start : start + 65536])
            await writer.drain()
        said = await asyncio.wait_for(reader.read(), 60)
    except (OSError, TimeoutError):
        return 0, ""
    finally:
        if writer is not None:
            writer.close()
    status = int(said.split(b" ", 2)[1]) if said else 0
    found = re.search(rb'"id":"([\w-]+)"', said)
    return status, found[1].decode() if found else ""


def ask(port: int, method: str, path: str) -> tuple[int, bytes]:
    """Status and body of a small request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def check_health(port: int, begun: Any, stop: Any, told: Any) -> None:
    """Seconds of every health check until it is told to stop, and the statuses."""
    begun.set()
    seconds, statuses = [], Counter[int]()
    while not stop.is_set():
        began = time.perf_counter()
        try:
            statuses[ask(port, "GET", "/health")[0]] += 1
        except OSError:
            statuses[0] += 1
        seconds.append(time.perf_counter() - began)
        time.sleep(EVERY_S)
    told.put((seconds, dict(statuses)))


def peak_mb(pid: int) -> float:
    """The most memory that a process had, in MB."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
    return float("nan")


def children(pid: int) -> list[int]:
    """Processes that one began."""
    with contextlib.suppress(OSError):
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def measure(
    uploads: int, rounds: int, side: int, queue: int, *, cancel: bool = False, served: str = "zoo:nuclei"
) -> dict[str, Any]:
    """Begin a server, load it, and end it."""
    data = picture(side)
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "ulna",
            "serve",
            served,
            "--port",
            "0",
            "--queue",
            str(queue),
            "--threads",
            "1",
        ]
        environment = {**os.environ, "TMPDIR": folder}
        server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        try:
            assert server.stderr is not None
            port = int(re.search(r":(\d+); Ctrl-C", server.stderr.readline())[1])  # type: ignore[index]
            found = _loaded(server.pid, port, data, uploads, rounds, cancel)
            found["files_left"] = _files(folder)
        finally:
            server.terminate()
            server.communicate(timeout=30)
        found["files_after_the_end"] = _files(folder)
    return {"upload_bytes": len(data), "uploads": uploads, "rounds": rounds, "queue": queue, **found}


def _files(folder: str) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file()]


def _loaded(pid: int, port: int, data: bytes, uploads: int, rounds: int, cancel: bool) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    begun, stop, told = context.Event(), context.Event(), context.Queue()
    checking = context.Process(target=check_health, args=(port, begun, stop, told))
    checking.start()
    begun.wait(60)

    async def one_round() -> list[tuple[int, str]]:
        return await asyncio.gather(*(upload(port, data) for _ in range(uploads)))

    before, start = peak_mb(pid), time.perf_counter()
    answers = [answer for _ in range(rounds) for answer in asyncio.run(one_round())]
    spent = time.perf_counter() - start
    workers = [round(peak_mb(child), 1) for child in children(pid)]
    ids = [id for status, id in answers if status == 200]
    states: Counter[str] = Counter()
    for id in ids:
        if cancel:
            ask(port, "DELETE", f"/jobs/{id}")
            continue
        while (state := json.loads(ask(port, "GET", f"/jobs/{id}")[1])["state"]) not in ("done", "failed"):
            time.sleep(0.05)
        states[state] += 1
        ask(port, "DELETE", f"/jobs/{id}")
    stop.set()
    seconds, statuses = told.get(timeout=30)
    checking.join()
    return {
        "answers": dict(Counter(status for status, _ in answers)),
        "jobs": dict(states),
        "seconds": round(spent, 2),
        "health_checks": len(seconds),
        "health_answers": statuses,
        "health_ms": {f"p{q}": round(1000 * float(np.percentile(seconds, q)), 1) for q in (50, 95, 99, 100)},
        "server_mb": {"before": round(before, 1), "peak": round(peak_mb(pid), 1)},
        "worker_mb": workers,
    }


def main() -> None:
    """Run it, and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--uploads", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--side", type=int, default=1150)
    parser.add_argument("--queue", type=int, default=16)
    parser.add_argument("--cancel", action="store_true")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    text = json.dumps(measure(asked.uploads, asked.rounds, asked.side, asked.queue, cancel=asked.cancel), indent=1)
    print(text)
    if asked.out is not None:
        asked.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
