"""What a training depends on beside its own state is stored with it, and taken over or named."""

import pytest
import torch

from tests.training.tiny import TINY
from ulna.errors import UsageError
from ulna.kernels import native
from ulna.system.files import Tensors, write_tensors
from ulna.training.checkpoint import load_checkpoint
from ulna.training.reproducing import environment, restore_environment
from ulna.training.train import train

CPU = torch.device("cpu")


@pytest.fixture
def one_thread():
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(1)


@pytest.mark.slow
def test_a_run_goes_on_with_its_own_number_of_threads(discs, tmp_path, one_thread, caplog):
    whole = train(discs, model="unet", out=tmp_path / "whole", epochs=2, threads=2, set=TINY)
    part = train(discs, model="unet", out=tmp_path / "part", epochs=1, threads=2, set=TINY)
    train(discs, out=part.folder, resume=True, epochs=2)
    assert torch.get_num_threads() == 1, "what calls a training computes as before"
    assert "threads: 2, as this run began" in caplog.text
    assert load_checkpoint(part.folder / "checkpoints").state["arithmetic"]["threads"] == 2
    assert whole.summary["threads"] == 2


def test_a_process_that_cannot_take_as_many_threads_is_told_what_to_do(monkeypatch, one_thread):
    stored = {**environment(CPU, "fp32"), "threads": 3}
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    with pytest.raises(UsageError, match="keeps to 1: start it with OMP_NUM_THREADS=3"):
        restore_environment(stored, CPU, "fp32")


def test_another_device_or_version_is_said(caplog, one_thread):
    stored = environment(CPU, "fp32")
    restore_environment(stored, CPU, "fp32")
    assert caplog.text == ""
    restore_environment({**stored, "precision": "bf16", "torch": "1.0"}, CPU, "fp32")
    assert "precision bf16 before, fp32 now; torch 1.0 before" in caplog.text


def test_another_ulna_or_another_compiled_kernel_is_said(caplog, one_thread):
    native.library("normalize")
    stored = environment(CPU, "fp32")
    before = {"ulna": "0.0.1", "kernel convolution": "convolution-0", "kernel normalize": "normalize-0"}
    assert before.keys() <= stored.keys()
    restore_environment(stored | before, CPU, "fp32")
    for name, value in before.items():
        assert f"{name} {value} before, {stored[name]} now" in caplog.text


def test_a_kernel_that_was_stored_is_compared_before_it_is_used(caplog, one_thread, monkeypatch):
    monkeypatch.setattr(native, "_versions", {})
    native.library.cache_clear()
    stored = {**environment(CPU, "fp32"), "kernel normalize": "normalize-0"}
    assert "normalize" not in native.versions()
    restore_environment(stored, CPU, "fp32")
    assert "kernel normalize normalize-0 before" in caplog.text
    native.library.cache_clear()


@pytest.mark.slow
@pytest.mark.skipif(not native.available(), reason="no native kernels here")
def test_a_kernel_compiled_otherwise_has_another_name(tmp_path, monkeypatch):
    native.library("normalize")
    before = native.versions()["normalize"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path.resolve()))
    monkeypatch.setattr(native, "_versions", {})
    assert native.library.__wrapped__("normalize") and native.versions()["normalize"] == before
    monkeypatch.setattr(native, "FLAGS", (*native.FLAGS, "-fno-math-errno"))
    assert native.library.__wrapped__("normalize") and native.versions()["normalize"] != before


def test_the_same_weights_are_the_same_file(tmp_path):
    content = Tensors({"b": torch.ones(3), "a": torch.zeros(2)}, {"epoch": 3})
    for number in range(10):
        write_tensors(tmp_path / str(number), content)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_a_training_that_was_killed_while_it_began_can_begin_again(discs, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "plan.yaml").write_text("half of a st")
    (folder / "log.txt").write_text("stopping at the next step")
    (folder / ".tmp-123-splits.json").write_text("")
    with pytest.raises(UsageError, match="nothing was trained there yet; leave --resume out"):
        train(discs, out=folder, resume=True)
    train(discs, model="unet", out=folder, epochs=1, set=TINY)
    assert not list(folder.glob(".tmp-*"))
