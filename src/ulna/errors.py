"""The errors of ulna.

    UlnaError
    ├── UsageError (also a ValueError)   what a user can cause: exit code 2, one clear sentence
    │   └── DataError                    problems in files, all of them at once
    ├── PartialFailure                   some cases failed, the others are written: exit code 3
    ├── Interrupted                      stopped by a signal; what was done is written: 130 or 143
    └── DryRun                           was asked to say what would be done: exit code 0

Anything else that reaches a user is a defect of ulna (exit code 1).
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

LONGEST_SHOWN = 200  # characters of a name or a value in a message
MOST_LINES = 12  # of a list in a message


def printable(text: object) -> str:
    """A name as it can be shown: signs that move the cursor or the text, and bytes that are no text, become numbers.

    Whoever made a data set or a run chose its names; a terminal, a log and a page must not obey them.

    Example:
        >>> printable("liver\\x1b[31m\\n")
        'liver\\\\x1b[31m\\\\n'
    """
    shown = str(text)
    return shown if shown.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in shown)


def printable_text(text: str) -> str:
    """Text whose line breaks are meant, with all else that is not printable written as numbers."""
    return "\n".join(map(printable, text.split("\n")))


def printable_lines(text: str) -> str:
    """A message of several lines as it can be shown: its line breaks stay, and every further line is indented.

    So a name with a line break in it cannot pass for a message of its own.
    """
    lines = [line if line.isprintable() else printable(line.replace("\t", "    ")) for line in text.split("\n")]
    return "\n".join([lines[0], *(f"  {line}" if line and not line.startswith("  ") else line for line in lines[1:])])


def listed(names: Iterable[object], most: int = MOST_LINES) -> str:
    """The first names of a list, and how many there are more.

    Example:
        >>> listed(["a.png", "b.png"]), listed(range(5), most=3)
        ('a.png, b.png', '0, 1, 2 and 2 more')
    """
    shown = [printable(name) for name in names]
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "")


def counted(number: float, noun: str) -> str:
    """A number with its noun, in the plural where it is not one.

    Example:
        >>> counted(1, "case"), counted(1200, "training case"), counted(0, "class"), counted(2, "entry of the list")
        ('1 case', '1,200 training cases', '0 classes', '2 entries of the list')
    """
    if number == 1:
        return f"1 {noun}"
    named, of, rest = noun.partition(" of ")
    if named.endswith("y"):
        named, ending = named[:-1], "ies"
    else:
        ending = "es" if named.endswith(("s", "x", "tch")) else "s"
    return f"{number:,} {named}{ending}{of}{rest}"


def brief(value: object) -> str:
    """A value as a message shows it: its type is seen, its length is bounded, whatever was read from a file."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother, short.maxlong = 2, LONGEST_SHOWN // 2, LONGEST_SHOWN // 2, 40
    try:
        text = short.repr(value)
    except ValueError:  # a whole number of thousands of digits
        text = f"a {type(value).__name__} of great length"
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


class UlnaError(Exception):
    """Root of every error that ulna raises on purpose; its message can be shown as it is."""

    def __init__(self, message: str = "") -> None:
        super().__init__(printable_lines(str(message)))


class UsageError(UlnaError, ValueError):
    """The input or the usage is wrong; the message says what came, what was expected and what to do."""


class OtherDataError(UsageError):
    """The data are not in the state that a recipe requires, whatever the network."""


class Problem(NamedTuple):
    """One thing that is wrong with one file: where, what and what to do about it."""

    file: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}; {self.remedy}" if self.remedy else f"{self.file}: {self.what}"


class DataError(UsageError):
    """Everything that is wrong with a data set, all at once.

    Args:
        problems: one entry for every fault found.
        root: the data set the problems belong to, named first in the message.
    """

    def __init__(self, problems: Sequence[Problem], root: object = None) -> None:
        self.problems = tuple(problems)
        self.root = root
        lines = [str(problem) for problem in self.problems]
        if len(lines) == 1:
            message = lines[0]
        else:
            message = f"{root or 'data'}: {counted(len(lines), 'problem')}\n" + "\n".join(f"  {line}" for line in lines)
        super().__init__(message)


class PartialFailure(UlnaError):
    """Some cases, or some trainings of a study, failed; the rest is written.

    Args:
        failed: name -> reason.
        done: how many were written.
        what: the name for many of them.
        result: what was found without them, as the verb would have given it back.
    """

    def __init__(self, failed: dict[str, str], done: int, what: str = "cases", result: object = None) -> None:
        self.failed, self.done, self.result = dict(failed), done, result
        lines = "\n".join(f"  {name}: {reason}" for name, reason in self.failed.items())
        super().__init__(
            f"{len(self.failed)} of {len(self.failed) + done} {what} failed, the others are written\n{lines}"
        )


class Interrupted(UlnaError):
    """Stopped by a signal; what is done is on disk.

    Args:
        signal: the signal's number (2 for Ctrl-C, 15 for SIGTERM).
        resume: the command that goes on from there.
        done: what is on disk.
    """

    def __init__(self, signal: int, resume: str, done: str = "a checkpoint is written") -> None:
        self.signal, self.resume, self.done = signal, resume, done
        super().__init__(f"stopped by signal {signal}; {done}, go on with: {resume}")


class DryRun(UlnaError):
    """Raised by `dry_run=True` in place of doing anything: nothing was written, begun or submitted.

    Args:
        text: the script of SLURM as it would be submitted, or the commands of the jobs.
        jobs: names of what is to be done.
    """

    def __init__(self, text: str, jobs: Sequence[str]) -> None:
        self.text, self.jobs = text, list(jobs)
        super().__init__(text)

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        return {"jobs": self.jobs, "text": self.text}


def unknown(what: str, name: object, valid: Iterable[object]) -> UsageError:
    """The error for a name that does not exist: nearest match first, then all valid names.

    Example:
        >>> print(unknown("skip block", "concatt", ["concat", "additive"]))
        no skip block named 'concatt'; did you mean 'concat'?
          valid: additive, concat
    """
    names, given = sorted(printable(v) for v in valid), str(name)[:LONGEST_SHOWN]
    near = difflib.get_close_matches(given, names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return UsageError(f"no {what} named {given!r}{hint}\n  valid: {', '.join(names) or 'none'}")
