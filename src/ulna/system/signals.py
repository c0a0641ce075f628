"""SIGTERM and Ctrl-C: heard once, at a moment when nothing is lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Stopped(BaseException):
    """Raised where the signal arrives; not an Exception, so that nothing on the way takes it for a failure."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(number)


@contextmanager
def on_first_signal(act: Callable[[int], None]) -> Iterator[None]:
    """Call `act` with the number of the first SIGTERM or Ctrl-C; a second one acts as if nobody listened."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may listen
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def heard(number: int, frame: object) -> None:
        restore()
        act(number)

    for number in before:
        signal.signal(number, heard)
    try:
        yield
    finally:
        restore()


@contextmanager
def leaving(*numbers: int) -> Iterator[None]:
    """Let signals leave as Ctrl-C does, so that what is to be removed is; one that is ignored (`nohup`) stays ignored.

    Raises:
        SystemExit: of 128 and the number, where the signal arrives.
    """
    if threading.current_thread() is not threading.main_thread():  # only the main thread may listen
        yield
        return

    def leave(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.getsignal(number) for number in numbers}
    heard = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}
    for number in heard:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number, handler in heard.items():
            signal.signal(number, handler)


class Interruption:
    """Stops work at once where the first signal arrives, except inside `held`.

    Example:
        with Interruption() as interruption:
            compute()
            with interruption.held():
                write()
    """

    def __init__(self) -> None:
        self._holds = 0
        self._number = 0

    def __enter__(self) -> Interruption:
        self._listening = on_first_signal(self._note)
        self._listening.__enter__()
        return self

    def __exit__(self, *raised: object) -> None:
        self._listening.__exit__(None, None, None)

    @contextmanager
    def held(self) -> Iterator[None]:
        """What stands in here is done to its end; the signal stops the work after it.

        Raises:
            Stopped: on leaving, if a signal has come.
        """
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1
        if self._number and not self._holds:
            raise Stopped(self._number)

    def _note(self, number: int) -> None:
        self._number = number
        if not self._holds:
            raise Stopped(number)
