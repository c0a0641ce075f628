"""A machine with SLURM: commands that stand in for its own; and a Ray cluster of two nodes, processes of this machine."""

import os
import signal
from contextlib import suppress

import pytest

from tests.executors import fake_slurm
from ulna.executors import handing
from ulna.executors.slurm import Slurm

# Ray takes 127.0.0.1 for "wherever I am", and would go by the address of the network
NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "memory": 10**9, "node_ip_address": "127.0.0.2"}


@pytest.fixture(scope="module")
def cluster():
    pytest.importorskip("ray", reason="the extra ray is not installed: too large for every run of the tests")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    made.add_node(**NODE)
    made.wait_for_nodes()
    yield made
    made.shutdown()


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A machine with SLURM, whose states lie in the folder that is given."""
    root = tmp_path / "controller"
    root.mkdir()
    monkeypatch.setenv("FAKE_SLURM", str(root))
    monkeypatch.setenv("PATH", f"{fake_slurm.install(tmp_path / 'bin')}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(Slurm, "look_s", 0.2)
    monkeypatch.setattr(handing.Late, "patience_s", 1.0)
    yield root
    for told in fake_slurm.states(root).values():
        for pid in (told["runner"], told.get("job")):
            if pid and told["state"] in ("PENDING", "RUNNING"):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
