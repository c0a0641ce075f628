"""A job that counts to a number, a step at a time, with a checkpoint after each: `python counting.py FOLDER STEPS`.

`FOLDER/steps` says how far it is, `FOLDER/begun` how often it was begun, `FOLDER/done` the sum, `FOLDER/pid` its process and
what began that. It holds a lock meanwhile, as every job must.
"""

import fcntl
import os
import signal
import sys
import threading
import time
from pathlib import Path

STEP_S = float(os.environ.get("COUNTING_STEP_S", "0.01"))
WAITS_AT = 3  # as long as there is FOLDER/../waits


def follow():
    parent = os.environ.get("ULNA_PARENT", "")
    while parent and os.getppid() == int(parent):
        time.sleep(0.05)
    if parent:
        os.kill(os.getpid(), signal.SIGTERM)


def main(folder, steps):
    threading.Thread(target=follow, daemon=True).start()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / "done").exists():
            return
        with (folder / "begun").open("a") as begun:
            begun.write("x")
        (folder / "pid").write_text(f"{os.getpid()} {os.getppid()}")
        at, total = map(int, (folder / "steps").read_text().split()) if (folder / "steps").exists() else (0, 0)
        if (folder / "fails").exists():
            sys.exit("error: no image in it")
        while at < steps:
            time.sleep(STEP_S)
            while at == WAITS_AT and (folder.parent / "waits").exists():
                time.sleep(0.01)
            at, total = at + 1, total + at
            (folder / "steps.new").write_text(f"{at} {total}")
            (folder / "steps.new").replace(folder / "steps")
        (folder / "done.new").write_text(f"{total} {os.environ['OMP_NUM_THREADS']}")
        (folder / "done.new").replace(folder / "done")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(143))
    main(Path(sys.argv[1]), int(sys.argv[2]))
