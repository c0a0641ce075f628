"""What SIGTERM and Ctrl-C do to a training: nothing is lost, and the message says how to go on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ulna.errors import Interrupted
from ulna.system.signals import Stopped, on_first_signal

log = logging.getLogger(__name__)


class Stop:
    """A request to stop, from the first SIGTERM or Ctrl-C; a second one acts as if nobody listened.

    Args:
        resume_command: what a person types to go on.
    """

    def __init__(self, resume_command: str) -> None:
        self.resume_command = resume_command
        self._signal = 0
        self._saved = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Note the first signal, for `check` to act on; after `everything_is_saved` it stops at once.

        Raises:
            Interrupted: on leaving, if a signal has stopped the work.
        """

        def note(number: int) -> None:
            self._signal = number
            if self._saved:
                raise Stopped(number)
            log.info("stopping at the next step; once more to stop at once")

        try:
            with on_first_signal(note):
                yield
        except Stopped:
            raise Interrupted(self._signal, self.resume_command) from None

    def check(self, save: Callable[[], None]) -> None:
        """At a place from where the training can go on: save and stop there, if a signal has come.

        Raises:
            Interrupted: with the resume command.
        """
        if self._signal:
            save()
            raise Interrupted(self._signal, self.resume_command)

    def everything_is_saved(self) -> None:
        """From now on nothing can be lost: a signal stops at once, one that has come stops here.

        Raises:
            Interrupted: with the resume command.
        """
        self._saved = True
        self.check(lambda: None)
