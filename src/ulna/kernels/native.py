"""Kernels in C++: brought compiled by a wheel, or compiled on the machine that runs them; everything works without them."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache as once
from pathlib import Path

import torch

from ulna.kernels import cache, instruction_sets

log = logging.getLogger(__name__)

SWITCH = "ULNA_NATIVE"  # environment variable: 0 switches native kernels off
ARCHITECTURE = "ULNA_NATIVE_ARCH"  # environment variable: the processor to compile for, as in -march; else this one
COMPILERS = ("c++", "g++", "clang++")
FLAGS = (*instruction_sets.FLAGS, f"-march={os.environ.get(ARCHITECTURE, 'native')}")
_versions: dict[str, str] = {}


@once
def library(name: str, *, with_torch: bool = False) -> ctypes.CDLL | None:
    """The compiled `NAME.cpp`, or None where it cannot be had (said once in the log).

    A wheel of ulna brings most of them (`instruction_sets.py`). Else the first call on a machine compiles, in about a second;
    the result is kept in the user's cache folder (`cache.py`) under a name that changes with source, compiler, flags and
    processor; `with_torch`: with the headers of torch, and its version.
    """
    _versions[name] = "torch's own"
    if not switched_on():
        log.debug("native kernels are switched off (%s=0)", SWITCH)
        return None
    packaged = _packaged(name)
    if packaged is not None:
        _versions[name] = packaged.stem
        return ctypes.CDLL(str(packaged))
    try:
        built = _built(source(name), *(_of_torch() if with_torch else (FLAGS, ())))
        loaded = ctypes.CDLL(str(built))
    except (OSError, RuntimeError, ValueError, subprocess.SubprocessError) as error:
        # RuntimeError: a user without a home
        log.info("native kernel %s is not used, torch's own is (%s)", name, first_line(error))
        return None
    _versions[name] = built.stem.rpartition("-")[0]  # without the checksum
    return loaded


def source(name: str) -> Path:
    """The file of a kernel: in this room, or in the one of its operation."""
    return next(Path(__file__).parent.glob(f"**/{name}.cpp"))


def _packaged(name: str) -> Path | None:
    """The kernel that a wheel brings for this processor, if it was made from the source that lies beside it and loads."""
    folder = Path(__file__).parent / instruction_sets.FOLDER
    if not folder.is_dir():
        return None
    digest = hashlib.sha256(source(name).read_bytes()).hexdigest()[:16]
    for one in instruction_sets.usable(_instructions(), os.environ.get(ARCHITECTURE)):
        file = folder / instruction_sets.file_name(name, one.name, digest)
        if file.exists():
            try:
                ctypes.CDLL(str(file))
            except OSError as error:  # no OpenMP runtime here, or another C library
                log.debug("%s cannot be loaded (%s)", file.name, first_line(error))
                return None
            return file
    return None


def first_line(error: Exception) -> str:
    """What an error says first, or what a compiler said; its kind where it says nothing."""
    return (str(getattr(error, "stderr", None) or error).strip() or type(error).__name__).splitlines()[0]


def versions() -> dict[str, str]:
    """Library -> a name that changes with source, compiler, flags and processor; of those that this process has asked for."""
    return dict(_versions)


def switched_on() -> bool:
    """Whether the user wants our own kernels."""
    return os.environ.get(SWITCH, "1") != "0"


def available() -> bool:
    """Whether this machine has native kernels."""
    return library("convolution") is not None


def _of_torch() -> tuple[Sequence[str], Sequence[str]]:
    """Flags to compile with torch's headers and to link with its core, which is loaded already."""
    root = Path(torch.__file__).parent
    abi = int(torch.compiled_with_cxx11_abi())
    compiling = ("-O2", "-std=c++20", "-fPIC", f"-D_GLIBCXX_USE_CXX11_ABI={abi}", f"-I{root / 'include'}")
    return (*compiling, f'-DULNA_TORCH="{torch.__version__}"'), (f"-L{root / 'lib'}", "-lc10")


def _built(source: Path, flags: Sequence[str], links: Sequence[str]) -> Path:
    """The shared library of a source file, compiled unless an earlier run did it."""
    compiler = next((found for name in COMPILERS if (found := shutil.which(name))), None)
    if compiler is None:
        raise OSError(f"no C++ compiler found: looked for {', '.join(COMPILERS)}")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True, timeout=60).stdout
    code = source.read_text(encoding="utf-8")
    facts = "\n".join([code, compiler, version, *flags, *links, platform.machine(), _processor()])

    def build(scratch: Path) -> Path:
        given, made, linked = scratch / source.name, scratch / "kernel.o", scratch / "kernel.so"
        given.write_text(code, encoding="utf-8")  # what the name of the result was made from, should the file change
        for step in ([*flags, "-c", str(given), "-o", str(made)], ["-shared", str(made), *links, "-o", str(linked)]):
            subprocess.run([compiler, *step], capture_output=True, text=True, check=True, timeout=300)
        return linked

    return cache.kept(f"{source.stem}-{hashlib.sha256(facts.encode()).hexdigest()[:32]}", build)


def _instructions() -> set[str]:
    """The instructions of this processor, as Linux names them; none where it does not say."""
    line = next((line for line in _cpuinfo() if line.startswith("flags")), "")
    return set(line.partition(":")[2].split())


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def _processor() -> str:
    """What tells one kind of processor from another: its model and its instructions."""
    lines = _cpuinfo()
    if not lines:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
