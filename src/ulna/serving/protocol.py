"""HTTP/1.1 of uvicorn with the patience that it lacks: for headers that come slowly, and for answers that nobody takes."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

from ulna.serving.limits import Limits
from ulna.serving.uploading import MOST_DISCARDED

READ_AT_ONCE = 32768  # bytes of one connection, before the others have their turn


def protocol_of(limits: Limits) -> type[H11Protocol]:
    """The protocol of a server with these limits."""

    class Watched(H11Protocol):
        """A connection that is closed where it waits for its client for too long."""

        _waiting: asyncio.TimerHandle | None = None  # for a whole request
        _stalled: asyncio.TimerHandle | None = None  # until the client takes what was written
        _discarded = 0

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            transport.max_size = READ_AT_ONCE  # type: ignore[attr-defined]
            super().connection_made(transport)
            if len(self.connections) > 2 * limits.connections:  # half of them are told 503
                transport.abort()
                return
            self._wait()

        def connection_lost(self, exc: Exception | None) -> None:
            self._wait_no_more()
            self._stall_no_more()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self._wait_no_more()
                return
            self._discarded += len(data)
            if self._discarded > MOST_DISCARDED:
                self.transport.abort()
            elif self._waiting is None:
                self._wait()

        def on_response_complete(self) -> None:
            self._wait_no_more()
            super().on_response_complete()
            if self.cycle is None or self.cycle.response_complete:
                self._wait()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._stalled = self._stalled or self.loop.call_later(limits.silent_s, self._give_up)

        def resume_writing(self) -> None:
            self._stall_no_more()
            super().resume_writing()

        def _wait(self) -> None:
            self._waiting = self.loop.call_later(limits.header_s, self._give_up)

        def _wait_no_more(self) -> None:
            if self._waiting is not None:
                self._waiting.cancel()
                self._waiting = None

        def _stall_no_more(self) -> None:
            if self._stalled is not None:
                self._stalled.cancel()
                self._stalled = None

        def _give_up(self) -> None:
            self._waiting = self._stalled = None
            self.transport.abort()

    return Watched
