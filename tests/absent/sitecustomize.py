"""Python as other systems have it: without the modules, functions and signals that POSIX alone has.

A process with this folder on its path, and its children, import ulna so. What ulna depends on is imported before: those
libraries go by `sys.platform`, which cannot be imitated.
"""

import importlib
import os
import signal
import sys

MODULES = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog"}
FUNCTIONS = (
    "fork",
    "forkpty",
    "register_at_fork",
    "getuid",
    "geteuid",
    "getgid",
    "getegid",
    "pwrite",
    "pread",
    "killpg",
    "getpgid",
    "setsid",
    "sysconf",
    "sched_getaffinity",
    "sync",
    "getloadavg",
    "O_NOFOLLOW",
    "O_DIRECTORY",
    "mkfifo",
    "chown",
    "fchown",
    "lchown",
    "wait4",
    "setpgid",
    "nice",
    "fdatasync",
)
SIGNALS = (
    "SIGKILL",
    "SIGHUP",
    "SIGQUIT",
    "SIGUSR1",
    "SIGUSR2",
    "SIGPIPE",
    "SIGALRM",
    "SIGCHLD",
    "setitimer",
    "alarm",
    "pthread_sigmask",
)
BEFORE = (
    "torch",
    "numpy",
    "scipy.ndimage",
    "scipy.stats",
    "nibabel",
    "PIL.Image",
    "tifffile",
    "pydantic",
    "matplotlib.pyplot",
    "matplotlib.backends.backend_agg",
    "tyro",
    "rich.console",
    "rich.progress",
    "safetensors.torch",
    "jinja2",
    "yaml",
    "asyncio",
    "tempfile",
    "subprocess",
    "threading",
    "multiprocessing",
    "torch.utils.flop_counter",
    "random",
    "concurrent.futures",
)


class Absent:
    """Hides what is absent from the first import of ulna on."""

    begun = False

    def find_spec(self, name, path=None, target=None):
        """None: others find it."""
        if name == "ulna" and not self.begun:
            self.begun = True
            for library in BEFORE:
                importlib.import_module(library)
            hide()
        if self.begun and name in MODULES and name not in sys.modules:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def hide():
    """Take away what POSIX alone has."""
    import subprocess

    subprocess.Popen.kill = subprocess.Popen.terminate  # as on Windows; that of POSIX sends SIGKILL by its name
    for name in MODULES:
        sys.modules.pop(name, None)
    for module, names in ((os, FUNCTIONS), (signal, SIGNALS)):
        for name in names:
            if hasattr(module, name):
                delattr(module, name)


if os.environ.get("ULNA_TEST_ABSENT"):  # a collection of tests imports this file too
    sys.meta_path.insert(0, Absent())
