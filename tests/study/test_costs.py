"""Costs of a study: measured in turn, kept for the same weights alone, measured again where they cannot be read."""

import json
import os
from types import SimpleNamespace

import pytest

from ulna.networks.build import build, count_parameters
from ulna.recipe import Recipe
from ulna.study import costs
from ulna.study.costs import ROUNDS, WARM_UP, measure_costs


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Two runs whose networks take 2 and 6 ms an image, by a clock that predictions alone move."""
    clock, asked, memory = {"wall": 0.0, "cpu": 0.0}, [], {"small": 10.0, "large": 30.0}
    ms = {"small": 2.0, "large": 6.0}

    class Loaded:
        def __init__(self, run):
            self.name = run.parent.name
            self.network = build("unet", spatial_dims=2, channels=(2, 4) if self.name == "small" else (4, 8))
            self.plan = SimpleNamespace(patch=(16, 24))
            self.recipe = Recipe()

        def mask(self, volume):
            asked.append(self.name)
            first = asked.count(self.name) <= WARM_UP  # kernels are loaded: a hundred times as long
            clock["wall"] += 1e-3 * ms[self.name] * (100 if first else 1)
            clock["cpu"] += 2e-3 * ms[self.name]

    monkeypatch.setattr(costs, "Segmenter", SimpleNamespace(load=Loaded))
    monkeypatch.setattr(costs, "prediction_mb", lambda run, *_: memory[run.parent.name])
    monkeypatch.setattr(costs.time, "perf_counter", lambda: clock["wall"])
    monkeypatch.setattr(costs.time, "process_time", lambda: clock["cpu"])
    runs = {}
    for name in ms:
        runs[name] = tmp_path / "runs" / name / "seed0"
        runs[name].mkdir(parents=True)
        (runs[name] / "weights.safetensors").write_bytes(b"")
    case = SimpleNamespace(read_image=lambda: SimpleNamespace(size=(16, 24)))
    return SimpleNamespace(
        measure=lambda runs=runs: measure_costs(runs, tmp_path, case, tmp_path / "costs.json"),
        asked=asked,
        ms=ms,
        runs=runs,
        kept=tmp_path / "costs.json",
    )


def test_networks_predict_in_turn_and_the_first_rounds_do_not_count(machine):
    measured = machine.measure()
    assert machine.asked == ["small", "large"] * (ROUNDS + WARM_UP)
    for name, cost in measured.models.items():
        assert cost.wall_ms == pytest.approx((machine.ms[name],) * 2)
        assert cost.cpu_ms == pytest.approx(2 * machine.ms[name])
        channels = (2, 4) if name == "small" else (4, 8)
        assert cost.parameters == count_parameters(build("unet", spatial_dims=2, channels=channels))
    assert measured.models["large"].gmacs > measured.models["small"].gmacs
    assert [cost.prediction_mb for cost in measured.models.values()] == [10.0, 30.0]
    assert measured.conditions["rounds"] == ROUNDS


def test_slow_networks_have_fewer_rounds_but_three(machine):
    machine.ms["large"] = 1e3 * costs.LONGEST_S
    measured = machine.measure()
    assert measured.conditions["rounds"] == 3
    assert machine.asked == ["small", "large"] * (3 + WARM_UP)


def test_what_was_measured_is_kept_for_the_same_weights_wherever_the_study_lies(machine, tmp_path):
    first = machine.measure()
    machine.asked.clear()
    assert machine.measure() == first
    (tmp_path / "runs").rename(tmp_path / "moved")
    moved = {name: tmp_path / "moved" / name / "seed0" for name in machine.runs}
    assert machine.measure(moved) == first
    assert machine.asked == []
    weights = moved["large"] / "weights.safetensors"
    os.utime(weights, ns=(1, 1))
    machine.measure(moved)
    assert machine.asked, "other weights"
    machine.asked.clear()
    machine.measure({"large": moved["large"]})
    assert machine.asked, "other networks"


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"key": {}}'])
def test_a_kept_file_that_cannot_be_read_is_measured_again(machine, content):
    first = machine.measure()
    machine.kept.write_text(content)
    machine.asked.clear()
    assert machine.measure().models["large"].wall_ms == pytest.approx(first.models["large"].wall_ms)
    assert machine.asked == ["small", "large"] * (ROUNDS + WARM_UP)
    assert json.loads(machine.kept.read_text())["models"].keys() == first.models.keys()
