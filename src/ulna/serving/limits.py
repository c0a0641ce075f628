"""What a server takes: sizes, times and numbers. Each is looked at before a byte is understood."""

from __future__ import annotations

from typing import NamedTuple

MB = 1_000_000
TOKEN = "ULNA_TOKEN"  # the variable; a word of a command line is seen by everybody on the machine


class Limits(NamedTuple):
    """Bounds of one server.

    Args:
        body: bytes of an upload.
        unpacked: bytes that a zip may unpack to.
        members: files in a zip.
        ratio: bytes that one packed byte may unpack to, over a whole zip.
        pixels: pixels or voxels of an image, channels included.
        ram: bytes that the worker may take.
        disk: bytes of all uploads and results together.
        left_free: bytes of the disk that uploads and what a zip unpacks to leave free.
        seconds: that an image may take in the worker.
        queue: jobs that wait or are computed, uploads that still come included.
        ended: jobs that are remembered after they ended.
        kept_s: how long.
        connections: open at a time.
        header_bytes: of the first line and all headers of a request.
        header_s: in which they must have come.
        silent_s: without a byte of a body, or without a byte of an answer taken.
        slowest: bytes a second of a body, once `silent_s` have passed.
        upload_s: in which a body must have come.
        start_s: in which a worker must be ready.
        streams: event streams open at a time.
    """

    body: int = 512 * MB
    unpacked: int = 2048 * MB
    members: int = 5000
    ratio: int = 100
    pixels: int = 300_000_000
    ram: int = 8000 * MB
    disk: int = 8000 * MB
    left_free: int = 512 * MB  # a server must not be what fills it
    seconds: float = 600.0
    queue: int = 16
    ended: int = 1000
    kept_s: float = 3600.0
    connections: int = 256
    header_bytes: int = 16384
    header_s: float = 10.0
    silent_s: float = 10.0
    slowest: int = 16384
    upload_s: float = 600.0
    start_s: float = 300.0
    streams: int = 32


class Refused(Exception):
    """A request that is not carried out, with the status and the sentence of its answer.

    Args:
        status: of HTTP.
        text: what is wrong and what to do.
        retry_s: seconds after which it may be tried again; 0: it would be refused again.
    """

    def __init__(self, status: int, text: str, retry_s: int = 0) -> None:
        super().__init__(text)
        self.status, self.text, self.retry_s = status, text, retry_s
