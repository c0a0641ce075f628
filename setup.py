"""`make wheel`: a wheel that brings the C++ kernels compiled, for Linux on x86-64. Everything else stands in pyproject.toml.

Without ULNA_WHEEL=1 nothing is compiled here: from source, kernels are compiled on the machine that runs them.
"""

import hashlib
import os
import platform
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

KERNELS = Path("src/ulna/kernels")
COMPILERS = ("c++", "g++", "clang++")


class BuildWithKernels(build_py):
    """Compile every kernel for every kind of processor that the compiler knows."""

    def run(self) -> None:
        super().run()
        known = runpy.run_path(str(KERNELS / "instruction_sets.py"))
        compiler = next((found for name in COMPILERS if (found := shutil.which(name))), None)
        if compiler is None:
            sys.exit(f"no C++ compiler found: looked for {', '.join(COMPILERS)}")
        folder = Path(self.build_lib) / "ulna" / "kernels" / known["FOLDER"]
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        made, said = 0, ""
        for one in known["INSTRUCTION_SETS"]:
            for kernel in known["PACKAGED"]:
                source = KERNELS / f"{kernel}.cpp"
                digest = hashlib.sha256(source.read_bytes()).hexdigest()[:16]
                target = folder / known["file_name"](kernel, one.name, digest)
                command = [compiler, *known["FLAGS"], *one.flags, "-shared", str(source), "-o", str(target)]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:  # an older compiler; what it cannot make is left out
                    said = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[0]
                    print(f"{target.name}: left out ({said})")
                    target.unlink(missing_ok=True)
                else:
                    made += 1
        if not made:
            sys.exit(f"no kernel could be compiled ({said}); without ULNA_WHEEL=1 the wheel has none")
        print(f"{made} compiled kernels in {folder}")


class PlatformWheel(bdist_wheel):
    """The kernels bind to no Python and to no torch, but to Linux on x86-64."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


class WithKernels(Distribution):
    """Has compiled files, so that the wheel is one of a platform."""

    def has_ext_modules(self) -> bool:
        return True


if os.environ.get("ULNA_WHEEL") == "1":
    if sys.platform != "linux" or platform.machine() != "x86_64":
        sys.exit("compiled kernels are packaged for Linux on x86-64 alone; without ULNA_WHEEL=1 the wheel has none")
    setup(distclass=WithKernels, cmdclass={"build_py": BuildWithKernels, "bdist_wheel": PlatformWheel})
else:
    setup()
