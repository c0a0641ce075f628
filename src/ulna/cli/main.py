"""The command line: `ulna VERB ...` calls the function of that name, and its errors become exit codes.

Exit codes: 0 done; 2 the input or the usage is wrong; 3 some cases failed, the rest is written; 130 and 143 stopped by a
signal; 1 a defect of ulna.
"""

from __future__ import annotations

import functools
import inspect
import json
import logging
import os
import re
import sys
import traceback
import types
import typing
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from ulna.cli.early import check_early
from ulna.errors import DryRun, Interrupted, PartialFailure, UsageError, printable_lines, printable_text, unknown
from ulna.verbs import VERBS, find

EVERYWHERE = ("--quiet", "--json")
METAVARS = {
    "budget": "quick|standard|full",
    "jobs": "N|auto",
    "on": "local|ray[:ADDRESS]|slurm",
    "slurm": "KEY=VALUE",
    "set": "KEY=VALUE",
    "vary": "KEY=V1,V2",
    "beside": "STUDY",
    "rename": "OLD=NEW",
}
FOR_ALL = "every verb: --quiet (no bars, no log), --json (plain values instead of a table)"
RESEARCH_USE = "Research use only; not a medical device."


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and leave with its exit code."""
    try:
        code = run(sys.argv[1:] if arguments is None else list(arguments))
        sys.stdout.flush()
    except BrokenPipeError:  # who read has gone, as in `ulna models | head`; the work is done
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run one command; returns the exit code."""
    first = next((n for n, word in enumerate(arguments) if word not in EVERYWHERE), len(arguments))
    arguments = [*arguments[first:], *arguments[:first]]  # `ulna --quiet VERB` is `ulna VERB --quiet`
    if not arguments or arguments[0] in ("-h", "--help", *EVERYWHERE):
        print(overview())
        return 0
    if arguments[0] == "--version":
        from ulna.version import version

        print(f"ulna {version('ulna')}. {RESEARCH_USE}")
        return 0
    try:
        return _call(arguments[0], arguments[1:])
    except PartialFailure as error:
        _complain(str(error))
        return 3
    except UsageError as error:
        _complain(str(error))
        return 2
    except Interrupted as error:
        _complain(str(error))
        return 128 + error.signal
    except KeyboardInterrupt:
        _complain("stopped")
        return 130
    except BrokenPipeError:
        raise
    except Exception as error:
        if _out_of_memory(error):
            _complain("this needs more memory than is free; take smaller images or patches, or a machine with more")
            return 2
        if isinstance(error, FileNotFoundError) and "temporary directory" in str(error):  # of what torch writes there
            _complain(
                f"temporary files cannot be written ({error.strerror}); free some space, or name a folder in TMPDIR"
            )
            return 2
        sys.stderr.write(printable_lines(traceback.format_exc()))
        _complain("this is a defect of ulna; please report it with the lines above")
        return 1


def _out_of_memory(error: Exception) -> bool:
    from ulna.data.formats.limits import is_memory_error  # only where something failed: starting is quick

    return is_memory_error(error)


def overview() -> str:
    """What `ulna --help` prints."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:<{width}}  {verb.summary}" for name, verb in VERBS.items())
    return (
        "usage: ulna VERB ...      ulna VERB --help shows a verb's options and an example\n\n"
        "From a folder of medical images to a trained, evaluated segmenter: the U-Net family in 2D and 3D.\n\n"
        f"{verbs}\n\n"
        f"{FOR_ALL}\n{RESEARCH_USE}"
    )


def _call(name: str, arguments: list[str]) -> int:
    if name not in VERBS:
        raise unknown("verb", name, VERBS)
    as_json, arguments = _take(arguments, "--json")
    quiet, arguments = _take(arguments, "--quiet")
    _listen(quiet)
    if not {"-h", "--help"}.intersection(arguments):
        check_early(name, arguments)
    import tyro  # no sooner: what is wrong so far is told at once

    function = find(VERBS[name].place)
    bounded = name in ("predict", "train", "plan") and any(
        word.split("=")[0] in ("--max-ram", "--max_ram") for word in arguments
    )
    call = functools.partial(
        tyro.cli,
        for_command_line(function, _tune_memory if VERBS[name].computes and not bounded else None),
        prog=f"ulna {name}",
        description=description(function),
        args=arguments,
        config=(tyro.conf.UseAppendAction, tyro.conf.FlagCreatePairsOff),
    )
    try:
        result = call()
    except SystemExit as leaving:  # tyro has printed help (0) or what is wrong (2)
        return int(leaving.code or 0)
    except DryRun as would:
        print(json.dumps(would.to_json(), indent=1) if as_json else printable_text(would.text))
        return 0
    except PartialFailure as error:
        if as_json and error.result is not None:
            _print_json(error.result)
        elif error.result is not None and name == "evaluate":  # which may write nothing
            _show(name, error.result)
        raise
    if result is None:  # a server that has ended
        return 0
    if as_json:
        _print_json(result)
    else:
        _show(name, result)
    return 0 if getattr(result, "ok", True) else 2


def _show(name: str, result: Any) -> None:
    from ulna.cli.tables import show

    show(name, result)


def _tune_memory() -> None:
    from ulna.kernels.allocator import tune_memory  # torch, which takes over a second to import

    tune_memory()


def _print_json(result: Any) -> None:
    values = [one.to_json() for one in result] if isinstance(result, list) else result.to_json()
    print(json.dumps(values, indent=1, allow_nan=False))


def description(function: Callable[..., Any]) -> str:
    """A verb's docstring up to its arguments, its example, and the flags that all verbs have."""
    text = inspect.getdoc(function) or ""
    before = text.split("\nArgs:")[0].strip()
    example = text.split("\nExample:\n")[1].split("\n\n")[0] if "\nExample:\n" in text else ""
    return before + (f"\n\nExample:\n{example}" if example else "") + f"\n\n{FOR_ALL}"


def for_command_line(function: Callable[..., Any], prepare: Callable[[], object] | None = None) -> Callable[..., Any]:
    """The same function with `X | None` shown as X in the help: None is only "not given".

    A positional that may be one or several (`predict RUN [RUN ...] INPUT`) takes all words but those of the positionals
    after it. `prepare` is called before the function.
    """
    import tyro

    hints = typing.get_type_hints(function)
    signature = inspect.signature(function)
    parameters, positional = [], []
    for parameter in signature.parameters.values():
        hint = hints[parameter.name]
        if parameter.kind is parameter.POSITIONAL_ONLY:
            positional.append((parameter.name, _plain(hint), _several(hint)))
        parameters.append(parameter.replace(annotation=_annotated(parameter, hint)))
    together = any(several for _, _, several in positional)
    if together:
        metavar = " ".join(f"{n.upper()} [{n.upper()} ...]" if several else n.upper() for n, _, several in positional)
        said = "; ".join(f"{name.upper()}: {_said(function, name)}" for name, _, _ in positional)
        words = inspect.Parameter(
            "_".join(name for name, _, _ in positional),
            inspect.Parameter.POSITIONAL_ONLY,
            annotation=Annotated[
                tuple[positional[0][1], ...],  # type: ignore[misc]
                tyro.conf.arg(metavar=metavar, help=said, help_behavior_hint=""),
            ],
        )
        parameters = [words, *(p for p in parameters if p.kind is not p.POSITIONAL_ONLY)]

    def command(*args: Any, **kwargs: Any) -> Any:
        if prepare is not None:
            prepare()
        return function(*(_shared_out(args[0], positional) if together else args), **kwargs)

    # not functools.wraps: the parser would look through to the function and its own hints
    command.__name__, command.__doc__ = function.__name__, function.__doc__
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def _annotated(parameter: inspect.Parameter, hint: Any) -> Any:
    """The hint with what the help shows for a value: the name of a positional, in brackets where it may be left out."""
    import tyro

    plain, optional = _plain(hint), parameter.default is None
    if parameter.kind is parameter.POSITIONAL_ONLY:
        name = parameter.name.upper()
        shown = name if parameter.default is parameter.empty else f"[{name}]"
    elif parameter.name in METAVARS:
        shown = METAVARS[parameter.name]
    elif optional:
        shown = "TEXT" if plain is str else plain.__name__.upper()
    else:
        return plain
    if optional:
        return Annotated[plain | None, tyro.conf.arg(metavar=shown, help_behavior_hint="")]
    return Annotated[plain, tyro.conf.arg(metavar=shown)]


def _said(function: Callable[..., Any], name: str) -> str:
    """What the docstring says of an argument, in however many lines."""
    found = re.search(rf"^    {name}: (.*(?:\n {{5,}}.*)*)", inspect.getdoc(function) or "", flags=re.M)
    return " ".join(found[1].split()).rstrip(".") if found else ""


def _plain(hint: Any) -> Any:
    """`Path | str | None` on the command line: Python takes text for a path too, the command line makes it one."""
    if not isinstance(hint, types.UnionType):
        return hint
    return next(option for option in typing.get_args(hint) if option is not types.NoneType)


def _several(hint: Any) -> bool:
    return any(typing.get_origin(option) is Sequence for option in typing.get_args(hint))


def _shared_out(words: tuple[Any, ...], positional: list[tuple[str, Any, bool]]) -> list[Any]:
    """The words of a command line for its positionals, of which the first may take several."""
    if len(words) < len(positional):
        missing = ", ".join(name.upper() for name, _, _ in positional[len(words) :])
        raise UsageError(f"missing: {missing}; --help shows an example")
    several = len(words) - len(positional) + 1
    return [list(words[:several]), *words[several:]]


def _take(arguments: list[str], flag: str) -> tuple[bool, list[str]]:
    return flag in arguments, [a for a in arguments if a != flag]


def _listen(quiet: bool) -> None:
    """Log lines and bars to standard error, or neither."""
    from ulna.system import progress

    progress.quiet(quiet)
    logger = logging.getLogger("ulna")
    logger.handlers.clear()
    logger.propagate = False
    logger.setLevel(logging.INFO)
    if not quiet:
        handler = _ToConsole()
        handler.setFormatter(progress.Lines())
        logger.addHandler(handler)


class _ToConsole(logging.Handler):
    """Log lines above the bars."""

    def emit(self, record: logging.LogRecord) -> None:
        from ulna.system import progress

        style = "yellow" if record.levelno >= logging.WARNING else None
        progress.console().print(self.format(record), style=style, markup=False, highlight=False, soft_wrap=True)


def _complain(message: str) -> None:
    from ulna.system import progress

    console = progress.console()
    console.print("error:", style="bold red", end=" ")
    console.print(printable_lines(message), markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
