"""Costs of a study: measured in turn, kept for the same weights alone, measured again where they cannot be read."""

import json
import os
from types import SimpleNamespace

import pytest

from ulna.networks.build import build, count_parameters
from ulna.networks.profile.cost import count_gmacs
from ulna.planning.choosing import recommended
from ulna.recipe import Recipe
from ulna.study import costs, timing
from ulna.study.costs import ROUNDS, WARM_UP, measure_costs

CHANNELS = {"small": (2, 4), "points": (3, 4, 6)}


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Two runs whose networks take 2 and 6 ms an image, every fifth time 10 ms more, by a clock that they alone move."""
    clock, asked, memory = {"wall": 0.0, "cpu": 0.0}, [], {"small": 10.0, "points": 30.0}
    ms = {"small": 2.0, "points": 6.0}

    class Loaded:
        def __init__(self, run):
            self.name = run.parent.name
            self.network = network(self.name)
            self.plan = SimpleNamespace(patch=(16, 24))
            self.recipe = recommended("implicit_unet") if self.name == "points" else Recipe()

        def mask(self, volume):
            asked.append(self.name)
            number = asked.count(self.name) - WARM_UP
            seconds = 1e-3 * (ms[self.name] + 10 * (number % 5 == 0))
            if number <= 0:
                seconds *= 100  # kernels are loaded
            clock["wall"] += seconds
            clock["cpu"] += 2 * seconds

    monkeypatch.setattr(costs, "Segmenter", SimpleNamespace(load=Loaded))
    monkeypatch.setattr(costs, "prediction_mb", lambda run, *_: memory[run.parent.name])
    timed = SimpleNamespace(perf_counter=lambda: clock["wall"], process_time=lambda: clock["cpu"])
    monkeypatch.setattr(timing, "time", timed)
    runs = {}
    for name in ms:
        runs[name] = tmp_path / "runs" / name / "seed0"
        runs[name].mkdir(parents=True)
        (runs[name] / "weights.safetensors").write_bytes(b"")
    case = SimpleNamespace(read_image=lambda: SimpleNamespace(size=(40, 30)))
    return SimpleNamespace(
        measure=lambda runs=runs: measure_costs(runs, tmp_path, case, tmp_path / "costs.json"),
        asked=asked,
        ms=ms,
        runs=runs,
        kept=tmp_path / "costs.json",
    )


def in_turn(rounds):
    """Who is asked: both once a round, and each round begins with the other one."""
    return [name for number in range(rounds) for name in (("small", "points"), ("points", "small"))[number % 2]]


def network(name):
    return build("implicit_unet" if name == "points" else "unet", spatial_dims=2, channels=CHANNELS[name])


def test_networks_predict_in_turn_and_the_first_rounds_do_not_count(machine):
    measured = machine.measure()
    assert machine.asked == in_turn(ROUNDS + WARM_UP)
    points = 16 * 24 // 32
    for name, cost in measured.models.items():
        assert cost.wall_ms == pytest.approx((machine.ms[name], machine.ms[name] + 10)), "median and 95th percentile"
        assert cost.cpu_ms == pytest.approx(2 * machine.ms[name])
        assert cost.parameters == count_parameters(network(name))
        asked = points if name == "points" else None
        assert cost.gmacs == count_gmacs(network(name), (16, 24), points=asked)
    assert [cost.prediction_mb for cost in measured.models.values()] == [10.0, 30.0]
    said = measured.conditions
    assert (said["rounds"], said["points"], said["image"], said["patch"]) == (
        ROUNDS,
        {"points": points},
        [40, 30],
        [16, 24],
    )


def test_slow_networks_have_fewer_rounds_but_three(machine):
    machine.ms["points"] = 1e3 * costs.LONGEST_S
    measured = machine.measure()
    assert measured.conditions["rounds"] == 3
    assert machine.asked == in_turn(3 + WARM_UP)


def test_what_was_measured_is_kept_for_the_same_weights_wherever_the_study_lies(machine, tmp_path):
    first = machine.measure()
    machine.asked.clear()
    assert machine.measure() == first
    (tmp_path / "runs").rename(tmp_path / "moved")
    moved = {name: tmp_path / "moved" / name / "seed0" for name in machine.runs}
    assert machine.measure(moved) == first
    assert machine.asked == []
    weights = moved["points"] / "weights.safetensors"
    os.utime(weights, ns=(1, 1))
    machine.measure(moved)
    assert machine.asked, "other weights"
    machine.asked.clear()
    machine.measure({"points": moved["points"]})
    assert machine.asked, "other networks"


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"key": {}}', {"models": []}, {"models": {"small": {}}}, {"conditions": {}}]
)
def test_a_kept_file_that_cannot_be_read_is_measured_again(machine, content):
    """What is no text here are values of another ulna beside the right weights: the last one counted all voxels."""
    first = machine.measure()
    values = json.loads(machine.kept.read_text())
    machine.kept.write_text(content if isinstance(content, str) else json.dumps(values | content))
    machine.asked.clear()
    assert machine.measure().models["points"].wall_ms == pytest.approx(first.models["points"].wall_ms)
    assert machine.asked == in_turn(ROUNDS + WARM_UP)
    assert json.loads(machine.kept.read_text())["models"].keys() == first.models.keys()
