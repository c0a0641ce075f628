"""One part of `benchmarks/gpu.py`, in the process that it is given.

python benchmarks/gpu_parts.py steps --found FILE
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from gpu_timing import GPU, Found, device, limits

TINY_TESTS = "tests/kernels/sweep/test_triton.py"


def describe(found: Path, flags: argparse.Namespace) -> None:
    """The device, its versions and limits."""
    facts = device()
    print(f"{facts['gpu'] or 'no GPU'}; " + ", ".join(f"{name} {what}" for name, what in facts["versions"].items()))
    if GPU or flags.tiny:
        facts["limits"] = most = limits(tiny=flags.tiny)
        print(f"bf16 products {most['flops'] / 1e12:.3g} TFLOP/s, copies {most['bytes'] / 1e12:.3g} TB/s")
    Found(found).note(**facts)
    missing = [name for name, what in facts["versions"].items() if what == "missing"]
    if missing:
        print(f"missing, and so not measured: {', '.join(missing)}")


def tests(found: Path, flags: argparse.Namespace) -> None:
    """The tests marked gpu, by pytest."""
    start = time.perf_counter()
    options = ["-m", "gpu", "-p", "no:cacheprovider", "--no-header", "-rf", "--tb=short"]
    command = [sys.executable, "-m", "pytest", *options]
    done = subprocess.run(
        [*command, TINY_TESTS if flags.tiny else "tests"], capture_output=True, text=True, encoding="utf-8"
    )
    taken = time.perf_counter() - start
    counts = {what: int(n) for n, what in re.findall(r"(\d+) (passed|failed|skipped|error)", done.stdout[-500:])}
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    report = Found(found, ("passed", "failed", "skipped", "seconds"))
    row = {**counts, "failures": failed, "code": done.returncode, "seconds": round(taken, 1)}
    cells = (str(counts.get(name, 0)) for name in ("passed", "failed", "skipped"))
    report.add(row, *cells, f"{taken:.0f}")
    for name in failed:
        print(f"failed: {name}")
    if done.returncode not in (0, 1, 5):  # 5: no test was chosen
        raise SystemExit(f"pytest ended with {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def sweeps(found: Path, flags: argparse.Namespace) -> None:
    """Sweeps beside the published loop, or with other tiles."""
    import gpu_sweeps

    (gpu_sweeps.compare if flags.part == "sweeps" else gpu_sweeps.compare_tiles)(found, tiny=flags.tiny)


def networks(found: Path, flags: argparse.Namespace) -> None:
    """Steps or predictions beside the peers, or those with the peer compiled."""
    import gpu_networks

    if flags.part in ("steps", "predictions"):
        kind = flags.part.removesuffix("s")
        works = [*gpu_networks.WORKS][:: 3 if flags.tiny else 1]
        gpu_networks.compare(found, works, [kind], compiled=False, tiny=flags.tiny)
        return
    if GPU and importlib.util.find_spec("triton") is None:
        raise SystemExit("torch compiles for a GPU by Triton, which is not installed")
    work = "nnunet 2×1×128³" if flags.part == "compiled-3d" else "unet 32×3×256²"
    gpu_networks.compare(found, [work], ["step", "prediction"], compiled=True, tiny=flags.tiny)


def training(found: Path, flags: argparse.Namespace) -> None:
    """`ulna train` on real data, or the memory of single steps."""
    import gpu_training

    if flags.part == "busy":
        gpu_training.busy(found, flags.data, tiny=flags.tiny)
    else:
        gpu_training.memory(found, tiny=flags.tiny)


PARTS: dict[str, Callable[[Path, argparse.Namespace], None]] = {
    "device": describe,
    "tests": tests,
    **dict.fromkeys(("sweeps", "tiles"), sweeps),
    **dict.fromkeys(("steps", "predictions", "compiled", "compiled-3d"), networks),
    **dict.fromkeys(("busy", "memory"), training),
}


def main() -> None:
    """Run the part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--found", type=Path, required=True, help="where what is found is kept, as JSON")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--tiny", action="store_true")
    flags = parser.parse_args()
    PARTS[flags.part](flags.found, flags)


if __name__ == "__main__":
    main()
