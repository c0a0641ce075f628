"""The body of a request to a file: counted while it comes, given up where it comes too slowly, never held in memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from ulna.serving.kinds import HEAD, Named, check_head, check_type, named
from ulna.serving.limits import MB, Limits, Refused
from ulna.serving.multipart import FilePart

BUFFERED = 256 * 1024  # bytes that are written at a time
MOST_DISCARDED = 64 * MB  # of a body that is refused
DISCARDED_AT_ONCE = 8


class Gone(Exception):
    """The client left before its body was whole."""


async def pieces(receive: Any, limits: Limits, promised: int | None) -> AsyncIterator[bytes]:
    """A body, read as a stream.

    Raises:
        Refused: if it is larger than it may be, or comes too slowly.
        Gone: if the client left.
    """
    began, count = time.monotonic(), 0
    if promised is not None and promised > limits.body:
        raise _too_large(limits)
    while True:
        try:
            message = await asyncio.wait_for(receive(), limits.silent_s)
        except TimeoutError:
            raise Refused(408, f"nothing came for {limits.silent_s:g} seconds; send the file again") from None
        if message["type"] == "http.disconnect":
            raise Gone
        data = message.get("body", b"")
        count += len(data)
        if count > limits.body:
            raise _too_large(limits)
        spent = time.monotonic() - began
        if spent > limits.upload_s or (spent > limits.silent_s and count < spent * limits.slowest):
            raise Refused(408, "the file comes too slowly; send it again over a faster line")
        if data:
            yield data
        if not message.get("more_body", False):
            return


def _too_large(limits: Limits) -> Refused:
    return Refused(413, f"the upload is larger than {limits.body / MB:g} MB; cut the image, or raise --max-megabytes")


class Discarding:
    """Takes the rest of bodies that are refused: most clients read an answer only when they have sent all.

    A few at a time, each within bounds: what is thrown away must not keep others waiting.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits, self._places = limits, asyncio.Semaphore(DISCARDED_AT_ONCE)

    async def rest(self, request: Any) -> None:
        """Take what still comes of a body."""
        if "expect" in request.headers:  # it waits for the answer before it sends
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(self.limits.silent_s), self._places:
                left = MOST_DISCARDED
                while left > 0:
                    message = await request.receive()
                    left -= len(message.get("body", b""))
                    if not message.get("more_body", False):
                        return


class Spool:
    """A file that is written in threads, in pieces of some size; its first bytes must be those of its kind.

    Args:
        file: open for writing.
        taken: called with the bytes of every piece before it is written; may refuse it.
    """

    def __init__(self, file: IO[bytes], taken: Callable[[int], object]) -> None:
        self.file, self.taken = file, taken
        self.bytes = 0
        self.suffix = ""
        self._buffer = bytearray()

    async def write(self, data: bytes) -> None:
        """Add bytes."""
        self._buffer += data
        if len(self._buffer) >= BUFFERED:
            await self._flush()

    async def end(self) -> None:
        """Write what is left."""
        if self._buffer or not self.bytes:
            await self._flush()

    async def _flush(self) -> None:
        if not self.bytes:
            check_head(bytes(self._buffer[:HEAD]), self.suffix)
        data, self._buffer = self._buffer, bytearray()
        self.taken(len(data))
        self.bytes += len(data)
        await asyncio.to_thread(self.file.write, data)


def promised_bytes(headers: Any) -> int | None:
    """What Content-Length says; None for a body in chunks."""
    value = headers.get("content-length", "")
    return int(value) if value.isascii() and value.isdigit() else None


async def receive_upload(request: Any, folder: Path, limits: Limits, taken: Callable[[int], object]) -> Named:
    """Write the file of a request into a folder, as `upload` and the ending of its kind.

    Args:
        request: of starlette; its body was not read.
        folder: of the job.
        limits: what it may be.
        taken: called with the bytes of every piece before it is written; may refuse it.

    Raises:
        Refused: if it is no file that is read here.
        Gone: if the client left.
    """
    content_type = request.headers.get("content-type", "")
    form = FilePart(content_type) if check_type(content_type) else None
    name = None if form is not None else named(request.headers.get("x-file-name"))
    body = pieces(request.receive, limits, promised_bytes(request.headers))
    path = folder / "upload"
    with path.open("wb") as file:
        spool = Spool(file, taken)
        if name is not None:
            spool.suffix = name.suffix
        async for data in body:
            if form is None:
                await spool.write(data)
                continue
            for piece in form.feed(data):
                if not spool.suffix:
                    name = named(form.file_name)
                    spool.suffix = name.suffix
                await spool.write(piece)
        if form is not None:
            form.end()
            name = named(form.file_name)
            spool.suffix = name.suffix
        await spool.end()
    assert name is not None
    path.rename(folder / f"upload{name.suffix}")
    return name
