"""The wheel that `make wheel` makes: its kernels work without a compiler, on every kind of processor that this one is."""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, version

import pytest

from tests.places import ROOT
from ulna.kernels import native
from ulna.kernels.instruction_sets import FOLDER, INSTRUCTION_SETS, PACKAGED, file_name, usable
from ulna.recipe.library import names

USED = """
import torch
from torch.nn import functional as F
from ulna.kernels import native, normalize
from ulna.kernels.sweep import dispatch as sweeps
from ulna.kernels.sweep import native as compiled
import ulna
print(ulna.__file__)
torch.manual_seed(0)
for name in ("sweep", "sweep_matrices", "convolution", "normalize"):
    assert native.library(name) is not None, name
    print(native.versions()[name])
net = ulna.build("sdnu_net", channels=(8, 16, 32, 64), in_channels=1)
image = torch.randn(2, 1, 32, 40)
net.eval()
with torch.no_grad():
    found = net(image)
with torch.no_grad(), sweeps.force("reference"):
    wanted = net(image)
torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)  # float32 by another order of sums
"""


linux = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64",
    reason="compiled kernels are packaged for Linux on x86-64",
)


def copied(source):
    """What a wheel is built from; a copy, because a build leaves files behind."""
    try:
        if int(version("setuptools").partition(".")[0]) < 77:
            raise PackageNotFoundError
    except PackageNotFoundError:
        pytest.skip("setuptools 77 or newer is not here to build with")
    source.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "src" / "ulna", source / "src" / "ulna", ignore=shutil.ignore_patterns("__pycache__"))
    return source


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    if not any(map(shutil.which, native.COMPILERS)):
        pytest.skip("no compiler")
    folder = tmp_path_factory.mktemp("wheel")
    source = copied(folder / "source")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "--wheel-dir"]
    subprocess.run([*command, str(folder), str(source)], env={**os.environ, "ULNA_WHEEL": "1"}, check=True, timeout=900)
    (wheel,) = folder.glob("*.whl")
    assert wheel.name.startswith("ulna-")
    assert wheel.name.endswith("-py3-none-linux_x86_64.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder


@linux
@pytest.mark.slow
@pytest.mark.parametrize("kind", [None, *(one.name for one in INSTRUCTION_SETS)])
def test_packaged_kernels_work_without_a_compiler(unpacked, kind, tmp_path):
    here = [one.name for one in usable(native._instructions())]
    if kind is not None and kind not in here:
        pytest.skip("this processor lacks the instructions")
    if not list((unpacked / "site" / "ulna" / "kernels" / FOLDER).glob(f"*-{kind or here[0]}-*.so")):
        pytest.skip("the compiler does not know this kind of processor")
    environment = {
        **os.environ,
        "PYTHONPATH": str(unpacked / "site"),
        "PATH": str(tmp_path),
        "XDG_CACHE_HOME": str(tmp_path),
    }
    environment.pop("ULNA_NATIVE", None)  # a machine without a compiler uses them all the same
    environment.pop(native.ARCHITECTURE, None)
    if kind is not None:
        environment[native.ARCHITECTURE] = kind
    done = subprocess.run([sys.executable, "-c", USED], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    path, *names = done.stdout.split()
    assert path.startswith(str(unpacked))
    assert [name.rpartition("-")[0] for name in names] == [
        f"{kernel.rpartition('/')[2]}-{kind or here[0]}"
        for kernel in ("sweep/sweep", "sweep/sweep_matrices", "convolution/convolution", "normalize/normalize")
    ]
    assert not list(tmp_path.iterdir())  # nothing was compiled


def test_every_kernel_without_headers_of_torch_is_packaged():
    """A new kernel is brought by the wheel, or is left to the allocator's way on purpose."""
    found = {path.stem for path in native.source("sweep").parents[1].rglob("*.cpp")}
    assert found == {kernel.rpartition("/")[2] for kernel in PACKAGED} | {"allocator"}


def test_a_wheel_brings_the_recipes(tmp_path):
    source = copied(tmp_path / "source")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "--wheel-dir"]
    plain = {name: value for name, value in os.environ.items() if name != "ULNA_WHEEL"}
    subprocess.run([*command, str(tmp_path), str(source)], env=plain, check=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    assert sorted(path.stem for path in (site / "ulna" / "recipe" / "files").iterdir()) == list(names())
    code = "import ulna; print(ulna.__file__); print(ulna.recipes('laird')[0].values['model'], len(ulna.recipes()))"
    environment = {**plain, "PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=100)
    assert done.stdout.splitlines() == [str(site / "ulna" / "__init__.py"), f"laird/unet {len(names())}"], done.stderr


def test_a_processor_takes_the_best_that_it_runs():
    amx, bf16, v4, v3, v2 = INSTRUCTION_SETS
    assert [one.name for one in usable(amx.needs)] == [one.name for one in INSTRUCTION_SETS]
    assert usable(amx.needs)[0] is amx
    assert usable(bf16.needs)[0] is bf16
    assert usable(v4.needs | {"amx_tile"})[0] is v4
    assert usable(v3.needs)[0] is v3
    assert usable(v2.needs, "x86-64-v3") == []
    assert usable(v4.needs, "x86-64-v3") == [v3]
    assert usable({"neon"}) == []


def test_a_packaged_kernel_of_another_source_is_left_alone(tmp_path, monkeypatch):
    """An edited source is compiled; nothing that was made from the old one answers for it."""
    folder, one = tmp_path / FOLDER, INSTRUCTION_SETS[-1]
    folder.mkdir()
    source = b"int ulna_edited;"
    (tmp_path / "normalize.cpp").write_bytes(source)
    monkeypatch.delenv(native.ARCHITECTURE, raising=False)
    monkeypatch.setattr(native, "__file__", str(tmp_path / "native.py"))
    monkeypatch.setattr(native, "_instructions", lambda: one.needs)
    monkeypatch.setattr(native.ctypes, "CDLL", lambda path: path)  # whatever lies there could be loaded
    (folder / file_name("normalize", one.name, "0123456789abcdef")).write_bytes(b"of another source")
    assert native._packaged("normalize") is None
    own = folder / file_name("normalize", one.name, hashlib.sha256(source).hexdigest()[:16])
    own.write_bytes(b"of this source")
    assert native._packaged("normalize") == own


@linux
def test_a_wheel_without_any_kernel_is_not_made(tmp_path):
    """A compiler that compiles nothing must not leave a wheel of a platform that is as empty as one of none."""
    source = copied(tmp_path / "source")
    compiler = tmp_path / "bin" / "c++"
    compiler.parent.mkdir()
    compiler.write_text("#!/bin/sh\necho no such option >&2\nexit 1\n")
    compiler.chmod(0o755)
    environment = {**os.environ, "ULNA_WHEEL": "1", "PATH": str(compiler.parent) + os.pathsep + os.environ["PATH"]}
    command = [sys.executable, "setup.py", "--quiet", "build_py"]
    done = subprocess.run(command, env=environment, cwd=source, capture_output=True, text=True, timeout=300)
    assert done.returncode and "no kernel could be compiled (no such option)" in done.stderr, done.stderr
