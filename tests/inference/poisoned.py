"""The process of a share, with cases that kill it (POISON, ids) and a pause before each image (PAUSE_S)."""

import os
import signal
import sys
import time
from pathlib import Path

from ulna.data.layout.case import Case
from ulna.inference.worker import main

read, poison, pause = Case.read_image, os.environ.get("POISON", "").split(), float(os.environ.get("PAUSE_S", 0))


def poisoned(case):
    time.sleep(pause)
    if case.id in poison:
        os.kill(os.getpid(), signal.SIGKILL)
    return read(case)


Case.read_image = poisoned
sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
