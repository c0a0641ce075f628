"""SLURM's commands as a small script: arrays run here, two jobs at a time, and their states lie in files.

`install` puts `sbatch`, `squeue`, `sacct` and `scancel` into a folder; FAKE_SLURM names where the states lie. A job whose
runner was killed is one whose node was lost: it is begun again where its script says `--requeue`.
"""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

SLOTS = 2


def install(folder, *, sacct=True):
    """The commands, in a folder for PATH; without `sacct` SLURM keeps no accounts."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("sbatch", "squeue", "scancel", *(["sacct"] if sacct else [])):
        script = folder / name
        script.write_text(f'#!/bin/sh\nexec {sys.executable} -ISE {Path(__file__).resolve()} {name} "$@"\n')
        script.chmod(0o755)
    return folder


def states(root):
    """Every job that was ever submitted, by its id."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(root.glob("*_*.json"))}


def _write(root, name, **changes):
    path = root / f"{name}.json"
    told = {**(json.loads(path.read_text()) if path.exists() else {}), **changes}
    beside = path.with_suffix(f".{os.getpid()}")
    beside.write_text(json.dumps(told))
    beside.replace(path)


def _begin(root, name):
    _write(root, name, runner=0, state="PENDING")  # 0: it is about to say it itself
    words = [sys.executable, "-ISE", __file__, "run", name]
    subprocess.Popen(words, start_new_session=True, stdin=subprocess.DEVNULL,
                     stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip


def sbatch(root, *words):
    if (root / "refuses").exists():
        sys.exit("sbatch: error: Batch job submission failed: Invalid partition name specified")
    path = Path(words[-1])
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", path.read_text(), flags=re.MULTILINE))
    number = 1000 + len(list(root.glob("*.array")))
    (root / f"{number}.array").write_text(path.read_text())
    first, last = map(int, options["array"].partition("%")[0].split("-"))
    for index in range(first, last + 1):
        name = f"{number}_{index}"
        _write(root, name, array=options["job-name"], index=index, requeue="requeue" in options, begun=0,
               output=options["output"].replace("%a", str(index)), code="0:0")  # fmt: skip
        _begin(root, name)
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()
    if (root / "dies").exists():  # whoever called is killed before it has read the answer
        os.kill(os.getppid(), signal.SIGKILL)


def run(root, name):
    _write(root, name, runner=os.getpid())
    told = json.loads((root / f"{name}.json").read_text())
    held = None
    while held is None:
        for slot in range(SLOTS):
            file = (root / f"slot{slot}").open("w")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held = file
                break
            except OSError:
                file.close()
        else:
            time.sleep(0.02)
    script = root / f"{name.partition('_')[0]}.array"
    with Path(told["output"]).open("a") as out:
        job = subprocess.Popen(["bash", str(script)], stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                               env={**os.environ, "SLURM_ARRAY_TASK_ID": str(told["index"])})  # fmt: skip
        _write(root, name, state="RUNNING", job=job.pid, begun=told["begun"] + 1)
        code = job.wait()
    told = json.loads((root / f"{name}.json").read_text())
    state = told.get("asked") or ("COMPLETED" if code == 0 else "FAILED")
    _write(root, name, state=state, code=f"0:{-code}" if code < 0 else f"{code}:0")


def _lives(pid):
    if not pid:
        return True
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _looked(root, wanted):
    for name, told in states(root).items():
        if told["array"] not in wanted:
            continue
        if told["state"] in ("PENDING", "RUNNING") and not _lives(told["runner"]):
            told = json.loads((root / f"{name}.json").read_text())  # it may have ended just now
            if told["state"] in ("PENDING", "RUNNING"):
                if told["requeue"]:
                    _begin(root, name)
                    told["state"] = "PENDING"
                else:
                    told["state"] = "NODE_FAIL"
                    _write(root, name, state="NODE_FAIL")
        yield name, told


def squeue(root, *words):
    if (root / "silent").exists():
        sys.exit("slurm_load_jobs error: Unable to contact slurm controller")
    for name, told in _looked(root, words[words.index("-n") + 1].split(",")):
        if told["state"] in ("PENDING", "RUNNING"):
            sys.stdout.write(f"{told['array']}|{told['index']}|{name}|{told['state']}|Resources" + "\n")


def sacct(root, *words):
    wanted = next(word for word in words if word.startswith("--name=")).removeprefix("--name=").split(",")
    for name, told in _looked(root, wanted):
        sys.stdout.write(f"{told['array']}|{name}|{told['state']}|{told['code']}" + "\n")


def scancel(root, *words):
    for _, told in _looked(root, words[words.index("-n") + 1].split(",")):
        if "job" in told and told["state"] == "RUNNING":
            os.kill(told["job"], signal.SIGTERM)


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    globals()[what](Path(os.environ["FAKE_SLURM"]), *rest)
