"""The templates of pages: what is put into them is escaped, and no name in it moves the text."""

from __future__ import annotations

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, Template

from ulna.errors import printable_text


def page(package: str, name: str) -> Template:
    """The template of a package by its file name; `shell.html` is the page around it."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package, "."), PackageLoader("ulna.pages", ".")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,
    )
    return environment.get_template(name)


def _printable(value: object) -> object:
    return printable_text(value) if type(value) is str else value  # markup stays markup
