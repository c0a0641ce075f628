"""Every command with its flags and an example, from the functions behind the verbs: what `ulna VERB --help` shows."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Sequence
from typing import Any

from ulna.cli.main import METAVARS, RESEARCH_USE
from ulna.verbs import VERBS, find


def split_docstring(function: Callable[..., Any]) -> tuple[str, dict[str, str], str]:
    """What it is, what each argument means, and the example."""
    text = inspect.getdoc(function) or ""
    parts = re.split(r"^(Args|Raises|Returns|Example):\n", text, flags=re.M)
    told = dict(zip(parts[1::2], parts[2::2], strict=True))
    arguments: dict[str, str] = {}
    name = ""
    for line in told.get("Args", "").splitlines():
        if found := re.match(r"    (\w+): (.*)", line):
            name, arguments[name] = found[1], found[2]
        elif line.strip():
            arguments[name] += " " + line.strip()
    return parts[0].strip(), arguments, inspect.cleandoc(told.get("Example", ""))


def page() -> str:
    """One section a verb, as Markdown."""
    return "\n\n".join(section(verb) for verb in VERBS) + f"\n\n{RESEARCH_USE}"


def section(verb: str) -> str:
    """A verb: what it does, how it is called, its flags, an example."""
    function = find(VERBS[verb].place)
    about, said, example = split_docstring(function)
    usage, rows = [f"ulna {verb}"], []
    hints = typing.get_type_hints(function)
    for name, parameter in inspect.signature(function).parameters.items():
        meaning = said.get(name, "").replace("|", "\\|").removesuffix(".")
        hint = hints[name]
        if parameter.kind is parameter.POSITIONAL_ONLY:
            shown = name.upper() + (f" [{name.upper()} ...]" if _several(hint) else "")
            usage.append(shown if parameter.default is parameter.empty else f"[{shown}]")
            rows.append(f"| `{name.upper()}` | | {meaning} |")
        else:
            value = _value(name, hint)
            repeated = "; may be repeated" if parameter.default == () else ""
            rows.append(
                f"| `--{name.replace('_', '-')}{value}` | {_default(parameter.default)} | {meaning}{repeated} |"
            )
    table = "| | default | |\n|---|---|---|\n" + "\n".join(rows)
    return (
        f"## `ulna {verb}`\n\n{about}\n\n```text\n{' '.join(usage)} [FLAGS]\n```\n\n{table}\n\n```bash\n{example}\n```"
    )


def _several(hint: Any) -> bool:
    return any(typing.get_origin(option) is Sequence for option in typing.get_args(hint))


def _value(name: str, hint: Any) -> str:
    """What stands behind a flag."""
    if hint is bool:
        return ""
    if name in METAVARS:
        return f" {METAVARS[name]}"
    kinds = [one for one in (typing.get_args(hint) or (hint,)) if one is not type(None)]
    first = kinds[0]
    return f" {'TEXT' if first is str else getattr(first, '__name__', 'TEXT').upper()}"


def _default(value: Any) -> str:
    if value is inspect.Parameter.empty:
        return "required"
    if value is None or value is False or value == ():
        return ""
    return f"`{value}`"
