"""Print what a server of exported files needs beside this repository: pyproject.toml without torch and what trains."""

import re
import sys
import tomllib
from pathlib import Path

LEFT_OUT = ("torch", "safetensors", "matplotlib", "jinja2")
EXTRAS = ("dicom", "serve")


def requirements() -> list[str]:
    """The lines of a requirements file."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(one for extra in EXTRAS for one in project["optional-dependencies"][extra])]
    return [one for one in wanted if re.split(r"[<>=!~\[ ]", one)[0] not in LEFT_OUT]


if __name__ == "__main__":
    sys.stdout.write("\n".join(requirements()) + "\n")
