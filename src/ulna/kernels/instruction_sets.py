"""Processors that a wheel brings compiled kernels for. `setup.py` reads this too, so it imports nothing but Python's own."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

# Kernels that need no headers of torch, as files below this folder without extension
PACKAGED = ("sweep/sweep", "sweep/sweep_matrices", "convolution/convolution", "normalize/normalize")
FOLDER = "compiled"  # beside this file, in a wheel
# OpenMP is compiled in but not linked: the symbols come from the runtime that torch has loaded, so that both share
# one pool of threads. A machine where they are missing fails to load, and goes on without.
FLAGS = ("-O3", "-ffp-contract=fast", "-std=c++17", "-fPIC", "-fopenmp")

_V2 = {"cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3"}
_V3 = _V2 | {"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"}
_V4 = _V3 | {"avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"}


class InstructionSet(NamedTuple):
    """A kind of processor."""

    name: str
    flags: tuple[str, ...]  # of the compiler
    needs: frozenset[str]  # as in /proc/cpuinfo


# The best first
INSTRUCTION_SETS = (
    InstructionSet(
        "x86-64-v4-amx",
        ("-march=x86-64-v4", "-mavx512bf16", "-mamx-tile", "-mamx-bf16"),
        frozenset(_V4 | {"avx512_bf16", "amx_tile", "amx_bf16"}),
    ),
    InstructionSet("x86-64-v4-bf16", ("-march=x86-64-v4", "-mavx512bf16"), frozenset(_V4 | {"avx512_bf16"})),
    InstructionSet("x86-64-v4", ("-march=x86-64-v4",), frozenset(_V4)),
    InstructionSet("x86-64-v3", ("-march=x86-64-v3",), frozenset(_V3)),
    InstructionSet("x86-64-v2", ("-march=x86-64-v2",), frozenset(_V2)),
)


def usable(instructions: Collection[str], wanted: str | None = None) -> list[InstructionSet]:
    """What a processor with these instructions runs, the best first; `wanted` alone, if it is one of them.

    Example:
        >>> [one.name for one in usable({"avx2", *INSTRUCTION_SETS[-1].needs})]
        ['x86-64-v2']
    """
    return [one for one in INSTRUCTION_SETS if one.needs <= set(instructions) and wanted in (None, one.name)]


def file_name(kernel: str, instruction_set: str, digest: str) -> str:
    """Of a compiled kernel in a wheel; `digest` is that of its source.

    Example:
        >>> file_name("sweep/sweep", "x86-64-v3", "0123456789abcdef")
        'sweep-x86-64-v3-0123456789abcdef.so'
    """
    return f"{kernel.rpartition('/')[2]}-{instruction_set}-{digest}.so"
