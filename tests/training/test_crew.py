"""What the first process of a training does when another one has gone, without GPUs and without that other one."""

from types import SimpleNamespace

import pytest
import torch

from tests.training.test_sharing import NETWORKS, of_data
from ulna.inference.segmenter import network_for
from ulna.system.ranks import Joined, Lost
from ulna.training import crew as room
from ulna.training.crew import Processes
from ulna.training.loop import Loop
from ulna.training.stopping import Stop

RESUME = "ulna train data --out run --resume --devices 2"


class Ended(Exception):
    pass


def crew_of_one(monkeypatch):
    """The other process has ended, and this one is on a GPU; what becomes of it, in its order."""
    acts, others = [], object.__new__(Processes)
    others._resume, others._lost, others._closing = RESUME, "", False
    others._others = [SimpleNamespace(rank=1, say=lambda values: acts.append((values["order"], others._closing)))]

    def leave():
        with pytest.raises(Lost, match="process 2 of the training has ended"):
            others.check_whole()
        acts.append("left")

    def end(code):
        raise Ended(code)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(room, "abandon", leave)
    monkeypatch.setattr(room, "NOTICE_S", 0.0)
    monkeypatch.setattr(room.os, "_exit", end)
    monkeypatch.setattr(room.os, "write", lambda _, text: acts.append(text.decode()))
    return others, acts


def gone(others):
    others._listen(SimpleNamespace(rank=1, listen=lambda: None))


def test_a_sum_that_others_left_is_told_as_one_that_failed():
    with pytest.raises(Lost, match="process group"):
        Joined(0, 2).add([torch.zeros(1)])


def test_a_process_that_has_gone_is_noted_before_sums_are_given_up(monkeypatch):
    others, acts = crew_of_one(monkeypatch)
    others.check_whole()
    with pytest.raises(Ended):
        gone(others)
    left, told = acts
    assert left == "left" and told.startswith("error: process 2 of the training has ended")
    assert told.endswith(f"go on with: {RESUME}\n")


def test_a_process_that_ends_as_it_is_told_to_is_not_missed(monkeypatch):
    others, acts = crew_of_one(monkeypatch)
    others.close()
    gone(others)
    others.check_whole()
    assert acts == [("end", True)]


def test_nothing_is_saved_of_a_sum_that_may_lack_a_part(discs, tmp_path, monkeypatch):
    recipe, plan, parts = of_data(discs, *NETWORKS["pooled loss"])
    samples, val = parts()
    network = network_for(recipe, plan, torch.Generator().manual_seed(0))
    loop = Loop(network, plan, recipe, val=val, samples=samples, folder=tmp_path, stop=Stop(""))
    loop.crew, _ = crew_of_one(monkeypatch)
    loop.crew._lost = "process 2 of the training has ended"
    loop.state.rows.append({"epoch": 1})
    for write in (loop._save, lambda: loop._rank({"dice": 0.9, "iou": 0.8})):
        with pytest.raises(Lost):
            write()
    assert not list(tmp_path.rglob("*.safetensors"))
