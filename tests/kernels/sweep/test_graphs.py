"""Sweeps recorded as CUDA graphs: what is recorded, kept and copied, without a GPU; and on one, the values."""

import logging

import pytest
import torch

from tests.kernels.sweep.test_sweep import case
from ulna.kernels.sweep import graphs as sweep_graphs
from ulna.kernels.sweep.dispatch import Direction, Gates, describe, force, sweep
from ulna.kernels.sweep.graphs import Recording


@pytest.fixture
def recorded(monkeypatch):
    """Recordings that compute when they are replayed, as a graph does, into memory that they keep."""
    made = []

    def record(work, tensors, *settings):
        inputs = tuple(t.detach().clone().fill_(torch.nan) for t in tensors)
        outputs = tuple(t.clone().fill_(torch.nan) for t in work(tensors, *settings))

        def replay():
            for memory, answer in zip(outputs, work(inputs, *settings), strict=True):
                memory.copy_(answer)

        made.append(work.__name__)
        return Recording(replay, inputs, outputs)

    monkeypatch.setattr(sweep_graphs, "_record", record)
    monkeypatch.setattr(sweep_graphs, "_kept", {})
    monkeypatch.setattr(sweep_graphs, "_met", set())
    monkeypatch.setattr(sweep_graphs, "_broken", [])
    monkeypatch.setattr(sweep_graphs, "available", lambda x: not sweep_graphs._broken)
    return made


def gradients(path, x, gates, direction, weights):
    with force(path):
        y = sweep(x, gates, direction)
        return y, *torch.autograd.grad((y * weights).sum(), (x, *gates))


@pytest.mark.parametrize(("neighbours", "size"), [(3, (6, 5)), (9, (3, 4, 5))])
def test_the_answer_is_that_of_the_lines_and_is_not_written_again(recorded, neighbours, size):
    for axis in range(len(size)):
        for reverse in (False, True):
            kept = []
            for number in range(3):
                x, gates, weights = case(4, neighbours, size, 2, torch.float64)
                x = (x.detach() + number).requires_grad_()
                expected = gradients("lines", x, gates, Direction(axis, reverse), weights)
                kept.append((expected, gradients("graphs", x, gates, Direction(axis, reverse), weights)))
            for expected, got in kept:
                assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))
    assert recorded == ["_forward", "_backward"] * 2 * len(size)  # once for every direction


def test_what_comes_twice_is_recorded_as_long_as_there_is_room(recorded, monkeypatch):
    monkeypatch.setattr(sweep_graphs, "MOST", 2)
    maps = {length: case(2, 1, (length, 3), 1, torch.float32)[:2] for length in (2, 3, 4)}
    with force("graphs"), torch.no_grad():
        for length in (2, 3, 4, 2, 2, 3, 4, 4):
            sweep(*maps[length], Direction(0))
    assert len(recorded) == len(sweep_graphs._kept) == 2


def test_what_was_recorded_in_inference_mode_serves_outside_it(recorded):
    x, gates, _ = case(4, 3, (5, 4), 2, torch.float64)
    with force("graphs"):
        with torch.inference_mode():
            for _ in range(2):
                sweep(x, gates, Direction(0))
        with torch.no_grad():
            again = sweep(x + 1, gates, Direction(0))
    assert recorded == ["_forward"]
    with force("lines"), torch.no_grad():
        assert torch.equal(again, sweep(x + 1, gates, Direction(0)))


def test_where_recording_fails_lines_go_on_and_the_log_says_it_once(recorded, monkeypatch, caplog):
    def fails(*arguments):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(sweep_graphs, "_record", fails)
    x, gates, weights = case(4, 3, (5, 4), 2, torch.float64)
    expected = gradients("lines", x, gates, Direction(1), weights)
    with caplog.at_level(logging.WARNING, "ulna"):
        for _ in range(3):
            got = gradients("graphs", x, gates, Direction(1), weights)
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))
    assert [record.message for record in caplog.records] == [
        "sweeps cannot be recorded as a CUDA graph, they run line by line (operation not permitted when stream is capturing)"
    ]


def test_a_cpu_has_none():
    assert not sweep_graphs.available(torch.empty(0))
    x, gates, _ = case(4, 3, (5, 4), 2, torch.float32)
    with force("graphs"):
        graphs = sweep(x, gates, Direction(0))
    with force("lines"):
        assert torch.equal(graphs, sweep(x, gates, Direction(0)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_gpu_equals_the_lines():
    for size in ((48, 48), (12, 12), (6, 7, 5)):
        x, gates, weights = case(20, 3 if len(size) == 2 else 9, size, 2, torch.float32)
        x, weights = x.detach().cuda().requires_grad_(), weights.cuda()
        gates = Gates(*(g.detach().cuda().requires_grad_() for g in gates))
        for _ in range(3):
            expected = gradients("lines", x, gates, Direction(0), weights)
            got = gradients("graphs", x, gates, Direction(0), weights)
            for a, b in zip(expected, got, strict=True):
                torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    with force("graphs"):
        assert "CUDA graph" in describe("cuda")
    assert not sweep_graphs._broken
