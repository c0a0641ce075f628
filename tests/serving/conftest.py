"""One server for all tests that leave it as they found it; its workers find nothing that the container does not have."""

import os
import runpy

import pytest

from tests.places import ROOT


@pytest.fixture(scope="session")
def without_torch(tmp_path_factory):
    """The environment of a process in which nothing can be imported that the container does not have."""
    folder = tmp_path_factory.mktemp("no_torch")
    for name in runpy.run_path(str(ROOT / "container" / "requirements.py"))["LEFT_OUT"]:
        (folder / f"{name}.py").write_text(f"raise ModuleNotFoundError('not in the container', name={name!r})\n")
    places = [folder, ROOT / "src", ROOT / "packages" / "runtime" / "src"]
    before = {name: os.environ.get(name) for name in ("PYTHONPATH", "OMP_NUM_THREADS")}
    os.environ |= {"PYTHONPATH": os.pathsep.join(map(str, places)), "OMP_NUM_THREADS": "1"}
    yield dict(os.environ)
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture(scope="session")
def client(without_torch, tmp_path_factory):
    """One server of an exported file for all tests that leave it as they found it."""
    from tests.serving.servers import serving  # where the extra is absent, no test asks for it

    with serving("zoo:nuclei", tmp_path_factory.mktemp("served")) as client:
        yield client
