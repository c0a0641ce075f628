"""One server for all tests that leave it as they found it; its workers find nothing that the container does not have."""

import os
import runpy
from contextlib import ExitStack

import pytest

from tests.places import ROOT


@pytest.fixture(scope="session")
def without_torch(tmp_path_factory):
    """The environment of a process in which nothing can be imported that the container does not have."""
    folder = tmp_path_factory.mktemp("no_torch")
    for name in runpy.run_path(str(ROOT / "container" / "requirements.py"))["LEFT_OUT"]:
        (folder / f"{name}.py").write_text(f"raise ModuleNotFoundError('not in the container', name={name!r})\n")
    places = [folder, ROOT / "src", ROOT / "packages" / "runtime" / "src"]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, places)), "OMP_NUM_THREADS": "1"}


@pytest.fixture(autouse=True)
def _workers_without_torch(monkeypatch, without_torch):
    """Every worker that a test begins has that environment; other tests have their own."""
    for name in ("PYTHONPATH", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, without_torch[name])


@pytest.fixture(scope="session")
def client(without_torch, tmp_path_factory):
    """One server of an exported file for all tests that leave it as they found it."""
    from tests.serving.servers import serving  # where the extra is absent, no test asks for it

    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            for name in ("PYTHONPATH", "OMP_NUM_THREADS"):
                patch.setenv(name, without_torch[name])
            client = stack.enter_context(serving("zoo:nuclei", tmp_path_factory.mktemp("served")))
        yield client
