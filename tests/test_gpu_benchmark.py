"""`benchmarks/gpu.py`: every part runs with tiny sizes, also without a GPU; one that fails stops no other."""

import importlib.util
import json
import subprocess
import sys

import pytest
import torch

from tests.places import ROOT
from tests.share import ALL

PROGRAM = ROOT / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def gpu():
    """The program as a module; it needs nothing but Python."""
    specification = importlib.util.spec_from_file_location("gpu_benchmark", PROGRAM)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_a_part_that_takes_too_long_is_cut_off_and_named(gpu, capfd):
    found = gpu.measure("device", 0.05, ["--tiny"])
    assert found["failed"] == "cut off after 0 s, its limit"
    assert found["rows"] == []
    assert "device: cut off" in capfd.readouterr().out


def test_what_parts_found_is_kept_with_those_that_failed_or_had_no_time(gpu, tmp_path, monkeypatch, capsys):
    asked = []

    def measured(name, limit_s, arguments):
        asked.append((name, limit_s))
        if name == "device":
            return {"gpu": "a GPU", "rows": []}
        if name == "predictions":
            return {"rows": [1], "failed": "ended with 1; what it said stands above"}
        return {"rows": [2]}

    monkeypatch.setattr(gpu, "measure", measured)
    out = tmp_path / "results.json"
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(out)])
    assert gpu.main() == 1
    kept = json.loads(out.read_text())
    assert [*kept["parts"]] == [name for name, part in gpu.PARTS.items() if not part.alone]
    assert kept["parts"]["predictions"]["rows"] == [1]
    assert kept["parts"]["memory"] == {"rows": [2]}
    assert "not all of it: predictions" in capsys.readouterr().out
    assert all(limit <= gpu.PARTS[name].limit_s for name, limit in asked[1:])
    monkeypatch.setattr(gpu, "ALL_S", 3)
    assert gpu.main() == 1
    assert all("no time left" in part["failed"] for part in json.loads(out.read_text())["parts"].values())
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(out), "--part", "compiled-3d"])
    assert gpu.main() == 0
    assert [*json.loads(out.read_text())["parts"]] == ["compiled-3d"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.slow
def test_without_a_gpu_nothing_is_measured_and_it_says_so(tmp_path):
    command = [sys.executable, str(PROGRAM), "--out", str(tmp_path / "results.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "not measured: no GPU" in done.stdout
    assert not (tmp_path / "results.json").exists()


@pytest.mark.slow(longest=True)
@pytest.mark.timeout(1500)
def test_every_part_runs_with_tiny_sizes(gpu, tmp_path):
    """Of the two that compile a peer the smaller one; ULNA_TEST_ALL=1: both."""
    out, parts = tmp_path / "results.json", [name for name in gpu.PARTS if ALL or name != "compiled-3d"]
    command = [sys.executable, str(PROGRAM), "--tiny", "--out", str(out), *(f"--part={name}" for name in parts)]
    done = subprocess.run(command, capture_output=True, text=True)
    found = json.loads(out.read_text())
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert [*found["parts"]] == parts
    assert found["versions"]["ulna"]
    for name in {"steps", "predictions", "compiled", "compiled-3d"}.intersection(parts):
        ours = [row["contenders"]["ulna"] for row in found["parts"][name]["rows"]]
        assert ours
        assert all(one["ms"][0] > 0 and all(share > 0 for share in one["shares"]) for one in ours)
        first = found["parts"][name]["rows"][0]
        assert name == "compiled-3d" or first["ratio"]["median"] > 0  # MONAI is at hand, nnU-Net's networks may not be
    trained, absent = found["parts"]["busy"]["rows"]
    assert len(trained["epochs_s"]) == 3
    assert "does not exist" in absent["skipped"]
    assert found["parts"]["memory"]["rows"][0]["forecast_mb"] > 0
