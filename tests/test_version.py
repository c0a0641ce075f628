"""ulna runs from a checkout that was never installed."""

import os
import subprocess
import sys
import tomllib

import pytest

from tests.places import ROOT

UNINSTALLED = """
from importlib import metadata

found = metadata.version
def without_ulna(name):
    if name == "ulna":
        raise metadata.PackageNotFoundError(name)
    return found(name)
metadata.version = without_ulna
import ulna
print(ulna.__version__)
import ulna.inference.cases, ulna.training.summary, ulna.study.publishing
"""


@pytest.mark.slow
def test_without_an_installation_the_version_is_that_of_the_project_file():
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", UNINSTALLED], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert done.stdout.split() == [stated]


def test_what_is_not_installed_is_an_error_as_ever():
    from importlib.metadata import PackageNotFoundError

    from ulna.version import version

    with pytest.raises(PackageNotFoundError):
        version("no-package-has-this-name")
