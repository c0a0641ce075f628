"""The tests under settings that imitate other processors: `make processors`; CI adds `--quick` and a limit of minutes.

Each setting takes something away from this machine: instructions from torch's libraries and from ulna's own kernels, the
kernels themselves, the compiler; or it adds a thread. A setting that changes no bit of a few typical computations, or asks
for instructions that are not there, is one that this machine cannot imitate: it is named, and its tests are not counted.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
COMPILERS = re.compile(r"(.*-)?(c\+\+|g\+\+|gcc|cc|clang|clang\+\+)(-[0-9.]+)?")

MODULES = ("--dist", "loadscope", "--no-loadscope-reorder")  # tests of a module share what they trained
NO_COMPILER = "no compiler"
SETTINGS: dict[str, dict[str, str]] = {
    "AVX-512 without bf16": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    "AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "ULNA_NATIVE_ARCH": "x86-64-v3"},
    "SSE4": {
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_CBWR": "COMPATIBLE",
        "ULNA_NATIVE_ARCH": "x86-64-v2",
    },
    "AVX-512 with bf16, no AMX": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16", "ULNA_NATIVE_ARCH": "cooperlake"},
    "no native kernels": {"ULNA_NATIVE": "0"},
    NO_COMPILER: {},  # made by `without_compiler`
    "two threads": {"ULNA_TEST_THREADS": "2"},
}

# What CI has time for: other orders of sums, and no kernels at all (without a compiler there are none; processors without AMX
# are common, so that the tests as they are meet them)
QUICK = ("AVX2", NO_COMPILER)

# What a processor decides: the order of sums in products and convolutions, and whether there are kernels at all.
PROBE = """
import hashlib, os, torch
from torch.nn import functional as F
from ulna.kernels import native
from ulna.kernels.convolution import convolve
torch.manual_seed(0)
a, b, x, w = torch.randn(300, 700), torch.randn(700, 200), torch.randn(2, 32, 40, 40), torch.randn(32, 32, 3, 3)
low = [t.bfloat16() for t in (a, b, x, w)]
made = [a @ b, a.double() @ b.double(), F.conv2d(x, w), a.exp(), a.sum(0), convolve(x, w, None)]
made += [low[0] @ low[1], F.conv2d(low[2], low[3])]
bits = hashlib.sha256(b"".join(t.double().numpy().tobytes() for t in made)).hexdigest()
print(bits, native.available(), os.environ.get("ULNA_TEST_THREADS", "1"))
"""


class Outcome(NamedTuple):
    """What pytest said under one setting."""

    setting: str
    passed: int
    failed: int
    skipped: int
    seconds: float


def without_compiler(folder: Path) -> dict[str, str]:
    """A PATH with every program of this one but the compilers, and no compiled kernels from earlier."""
    programs = folder / "bin"
    programs.mkdir()
    for place in os.environ["PATH"].split(os.pathsep):
        for program in Path(place).glob("*"):
            link = programs / program.name
            if not COMPILERS.fullmatch(program.name) and not link.is_symlink():
                link.symlink_to(program)
    return {"PATH": str(programs), "XDG_CACHE_HOME": str(folder / "cache")}


class Probe(NamedTuple):
    """What a few computations give, bit by bit, whether there are native kernels, and the number of threads."""

    bits: str
    native: str
    threads: str


def probe(settings: dict[str, str]) -> Probe | None:
    """What these settings give; None where this processor lacks the instructions that they ask for."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE], cwd=ROOT, env={**os.environ, **settings}, capture_output=True, text=True
    )
    if done.returncode < 0:  # ended by a signal: an illegal instruction
        return None
    if done.returncode:
        sys.exit(f"the probe failed under {settings}:\n{done.stderr}")
    return Probe(*done.stdout.split())


def why_not(settings: dict[str, str], usual: Probe) -> str:
    """Why the tests under these settings would tell nothing here; nothing if they tell something."""
    found = probe(settings)
    if found is None:
        return "asks for instructions that this processor lacks"
    if "ULNA_NATIVE_ARCH" in settings and usual.native != found.native:
        return "the compiler does not know this processor"
    return "changes nothing on this machine" if found == usual else ""


def limited(minutes: float) -> dict[str, str]:
    """A limit for the tests of one setting (tests/budget.py)."""
    return {"ULNA_TEST_MINUTES": f"{minutes:.1f}", "ULNA_TEST_LIMITED": "all"}


def tested(name: str, settings: dict[str, str], arguments: list[str]) -> Outcome:
    """The tests under these settings; what failed is printed at once."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "pytest", "-n", "auto", *MODULES, "--timeout", "1800", *arguments]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **settings}, capture_output=True, text=True)
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr
    counts = {what: int(n) for n, what in re.findall(r"(\d+) (passed|failed|skipped|error)", last)}
    failed = counts.get("failed", 0) + counts.get("error", 0)
    if done.returncode:
        print(f"--- {name}\n{done.stdout[-20000:]}{done.stderr[-2000:]}")
        failed = max(failed, 1)
    return Outcome(name, counts.get("passed", 0), failed, counts.get("skipped", 0), time.perf_counter() - began)


def main() -> None:
    """Every setting that this machine can imitate; exit code 1 if a test failed under one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="quick tests marked `processor`, fewer settings")
    parser.add_argument("--slow", action="store_true", help="the slow tests too")
    parser.add_argument("--minutes", type=float, help="of all settings together; what is not begun by then is skipped")
    parser.add_argument("--only", action="append", metavar="SETTING", choices=SETTINGS, help="one setting, or several")
    parser.add_argument("pytest", nargs="*", help="further arguments for pytest")
    options = parser.parse_args()
    chosen = "processor and not slow" if options.quick else "slow or not slow" if options.slow else "not slow"
    began = time.perf_counter()
    usual = probe({})
    if usual is None:
        sys.exit("the computations of the probe end in a signal on this machine, without any setting")
    outcomes, left_out = [], {}
    with tempfile.TemporaryDirectory() as folder:
        names = options.only or [*(QUICK if options.quick else SETTINGS)]
        for place, name in enumerate(names):
            settings = without_compiler(Path(folder)) if name == NO_COMPILER else SETTINGS[name]
            reason = why_not(settings, usual)
            if reason:
                left_out[name] = reason
                continue
            if options.minutes is not None:
                left = options.minutes - (time.perf_counter() - began) / 60
                settings = {**settings, **limited(max(0.5, left / (len(names) - place)))}
            outcomes.append(tested(name, settings, ["-m", chosen, *options.pytest]))
            print(f"{name}: {outcomes[-1].passed} passed, {outcomes[-1].failed} failed", flush=True)
    print(f"\n| {'setting':27} | passed | failed | skipped | time |\n|{'-' * 29}|---|---|---|---|")
    for one in outcomes:
        print(f"| {one.setting:27} | {one.passed} | {one.failed} | {one.skipped} | {one.seconds:.0f} s |")
    for name, reason in left_out.items():
        print(f"{name}: {reason}, not counted")
    passed, failed = sum(one.passed for one in outcomes), sum(one.failed for one in outcomes)
    print(f"{passed} passed, {failed} failed")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
