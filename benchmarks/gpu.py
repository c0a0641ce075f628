"""Everything that is measured on a GPU, in at most six minutes: a table a part, and one JSON.

    python benchmarks/gpu.py                                  # all parts but tiles and compiled-3d
    python benchmarks/gpu.py --part steps --part predictions  # some of them
    python benchmarks/gpu.py --data FOLDER                    # with nuclei96/ and hippocampus/ below it: `ulna train` too
    python benchmarks/gpu.py --part compiled-3d               # alone: torch compiles for minutes
    python benchmarks/gpu.py --tiny                           # does the program itself work? tiny sizes, also on a CPU

From a checkout, installed or not (PYTHONPATH=src). Every part is a process of its own with a limit of its own: one that
fails, or is cut off there, is named and stops no other. Peers that are not installed are named too; they are those of
benchmarks/requirements.txt.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
ALL_S = 350  # of all parts together
# torch's profiler begins and ends more than once in a process that replays CUDA graphs: what it looks through must stay
WATCHED = {"TEARDOWN_CUPTI": "0", "DISABLE_CUPTI_LAZY_REINIT": "1"}


class Part(NamedTuple):
    """A part: how long it may take, and what it shows; `alone` parts are run where they are asked for."""

    limit_s: float
    what: str
    alone: bool = False


PARTS = {
    "tests": Part(65, "the tests marked gpu"),
    "sweeps": Part(40, "sweeps against the published loop, as called and inside a CUDA graph; C = 150, batch 20, bf16"),
    "steps": Part(80, "training steps beside MONAI and nnU-Net"),
    "predictions": Part(50, "predictions beside MONAI and nnU-Net"),
    "compiled": Part(70, "the peer compiled, 32×3×256×256"),
    "busy": Part(60, "share of the time that the GPU is busy in `ulna train`"),
    "memory": Part(40, "memory of a training step beside the plan's estimate"),
    "tiles": Part(60, "the Triton kernels of the sweep with other tiles than they take", alone=True),
    "compiled-3d": Part(300, "the peer compiled, 2×1×128×128×128", alone=True),
}


def measure(name: str, limit_s: float, arguments: list[str]) -> dict[str, Any]:
    """What a part found, and why it did not end well where it did not."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "found.json"
        command = [sys.executable, str(Path(__file__).parent / "gpu_parts.py"), name, "--found", str(found), *arguments]
        environment = os.environ | WATCHED
        paths = [str(ROOT / "src"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        start, failed = time.perf_counter(), ""
        environment["PYTHONPATH"] = os.pathsep.join(paths)
        child = subprocess.Popen(command, env=environment, cwd=ROOT, start_new_session=True)
        try:
            code = child.wait(timeout=limit_s)
            failed = f"ended with {code}; what it said stands above" if code else ""
        except subprocess.TimeoutExpired:
            failed = f"cut off after {limit_s:.0f} s, its limit"
        finally:
            if child.poll() is None:
                stop(child)
        facts: dict[str, Any] = json.loads(found.read_text(encoding="utf-8")) if found.exists() else {"rows": []}
    facts["seconds"] = round(time.perf_counter() - start, 1)
    if failed:
        facts["failed"] = failed
        print(f"{name}: {failed}", flush=True)
    return facts


def stop(child: subprocess.Popen[bytes]) -> None:
    """End a part with all that it has started: its workers would keep the GPU."""
    if hasattr(os, "killpg"):
        os.killpg(child.pid, signal.SIGKILL)
    child.kill()
    child.wait()


def main() -> int:
    """Read the flags, run the parts, keep what they found; 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=PARTS, help="only this part; may be given again")
    parser.add_argument("--data", type=Path, help="a folder with nuclei96/ and hippocampus/, for `busy`")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, on a CPU too: the figures mean nothing")
    parser.add_argument(
        "--out", default="gpu", help="name of the file in benchmarks/results, or a path ending in .json"
    )
    flags = parser.parse_args()
    start = time.perf_counter()
    arguments = ["--tiny"] if flags.tiny else []
    arguments += ["--data", str(flags.data.resolve())] if flags.data else []
    facts = measure("device", 600 if flags.tiny else 60, arguments)
    if "failed" in facts or not (facts.get("gpu") or flags.tiny):
        print("not measured: no GPU that torch can use; --tiny tests the program without one")
        return 1
    path = Path(flags.out) if flags.out.endswith(".json") else RESULTS / f"{flags.out}.json"
    facts = {**facts, "tiny": flags.tiny, "parts": {}}
    wanted = flags.part or [name for name, part in PARTS.items() if not part.alone]
    slack = 10 if flags.tiny else 1  # for processors that do other things beside
    end = start + slack * ALL_S if not flags.part else math.inf
    for name in wanted:
        print(f"\n## {name}: {PARTS[name].what}\n", flush=True)
        left = end - time.perf_counter()
        if left < 5:
            print(f"{name}: not begun: no time left")
            facts["parts"][name] = {"rows": [], "failed": "not begun: no time left"}
        else:
            facts["parts"][name] = measure(name, min(slack * PARTS[name].limit_s, left), arguments)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    failed = [name for name, part in facts["parts"].items() if "failed" in part]
    print(f"\n{path}" + (f"; not all of it: {', '.join(failed)}" if failed else ""))
    return bool(failed)


if __name__ == "__main__":
    raise SystemExit(main())
