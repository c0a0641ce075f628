"""Children of the test process, which have all that it has imported."""

import os
import warnings
from collections.abc import Callable


def forked(work: Callable[[], object]) -> int:
    """A child that does some work and ends; its number."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, none of which the work needs
        child = os.fork()
    if child:
        return child
    try:
        work()
    except BaseException:
        os._exit(1)
    os._exit(0)


def wait_for(child: int) -> int:
    """Its exit code; below 0 the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
