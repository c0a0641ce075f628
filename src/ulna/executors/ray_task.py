"""What runs on a node of a Ray cluster: the process of a job, for as long as the task lives. The standard library alone:

it is sent by value, so that a node needs ulna for the job, and not for this.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

LOOK_S = 0.2
PATIENCE_S = 110.0  # a process leaves a checkpoint at its next step


def sees(token: str, content: str, here: str, program: str) -> str:
    """What a node does not see of what the command sees; empty where it sees all.

    Args:
        token: a file in the folder of the study.
        content: of it.
        here: the working folder of the command.
        program: the interpreter of the command.
    """
    name = socket.gethostname()
    try:
        same = Path(token).read_text(encoding="utf-8") == content
    except OSError:
        same = False
    if not same:
        return f"{name} does not see {Path(token).parent}"
    if not Path(here).is_dir():
        return f"{name} does not see {here}"
    if not Path(program).exists():
        return f"{name} has no {program}"
    return ""


def run(argv: Sequence[str], variables: Mapping[str, str], output: str, seen: Sequence[str]) -> dict[str, Any]:
    """Begin the process of a job and wait for it; when the task is cancelled, it is asked to stop, and waited for.

    Args:
        argv: of the process.
        variables: of its environment, beside those of the node.
        output: the file that takes what it says.
        seen: the arguments of `sees`.

    Returns:
        `unseen`, or the exit `code` and the `host`.

    Raises:
        RuntimeError: if it was killed: Ray tries the task again.
    """
    unseen = sees(*seen)
    if unseen:
        return {"unseen": unseen}
    environment = {**os.environ, **variables, "ULNA_PARENT": str(os.getpid())}
    with Path(output).open("wb") as file:
        process = subprocess.Popen(
            list(argv), stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment, cwd=seen[2],
            start_new_session=True,
        )  # fmt: skip
    try:
        while process.poll() is None:
            time.sleep(LOOK_S)  # in Python, where a cancellation is heard
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    if process.returncode == -9:
        raise RuntimeError(f"killed from outside on {socket.gethostname()}: most likely the memory was full")
    return {"code": process.returncode, "host": socket.gethostname()}
