"""Memory is told before it is taken, and what this machine does not have is refused before anything is written."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import ulna
from tests.inference.test_predict import images, run_folder  # noqa: F401
from ulna.errors import UsageError
from ulna.networks.build import build
from ulna.networks.profile.memory import peak_bytes
from ulna.planning.memory import GPU_OVERHEAD, MemoryEstimate, step_memory
from ulna.recipe import Recipe
from ulna.system.device import Device

# Peak memory of this process (VmHWM, in bytes) after a verb, beside what was forecast for it
MEASURED = """
import json, re, sys
import ulna
if int(sys.argv[4]):
    ulna.tune_memory()
run = ulna.train(sys.argv[1], model=sys.argv[2], out=sys.argv[3], epochs=2, set=sys.argv[5:])
text = open(sys.argv[3] + "/log.txt").read()
peak = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps([float(re.search("memory: about ([0-9.]+) GB", text)[1]) * 1e9, peak]))
"""


def test_parts_are_told_largest_first_and_too_much_is_refused(monkeypatch):
    need = MemoryEstimate({"maps": 1.2e9, "weights": 3.4e9})
    assert str(need) == "4.6 GB (weights 3.4, maps 1.2)"
    monkeypatch.setattr("ulna.planning.memory.memory", lambda: 5e9)
    need.check("this", "do that")
    monkeypatch.setattr("ulna.planning.memory.memory", lambda: 4e9)
    with pytest.raises(UsageError, match=r"this needs about 4\.6 GB .*has 4\.0 GB; do that"):
        need.check("this", "do that")


def test_what_lies_on_a_gpu_is_compared_with_its_memory(monkeypatch):
    need = MemoryEstimate({"maps of a step": 9e9, "cases kept": 3e9})
    monkeypatch.setattr("ulna.planning.memory.memory", lambda: 4e9)
    need.check("this", "do that", Device("cuda", 10e9))
    with pytest.raises(UsageError, match=r"9\.0 GB of GPU memory .*the GPU has 8\.0 GB; do that"):
        need.check("this", "do that", Device("cuda", 8e9))
    monkeypatch.setattr("ulna.planning.memory.memory", lambda: 2e9)
    with pytest.raises(UsageError, match=r"this machine has 2\.0 GB; do that"):
        need.check("this", "do that", Device("cuda", 10e9))


def test_on_a_gpu_what_the_loss_keeps_is_counted():
    """One-hot targets and probabilities of a hundred classes are more than the maps of a small network."""
    network, patch = build("unet", classes=105, channels=(8, 16)), (64, 64)
    bf16 = {"training": True, "bf16": True, "batch": 2}
    maps = peak_bytes(network, patch, **bf16)
    taken = step_memory(network, patch, 2, Recipe(), Device("cuda", 80e9))["maps of a step"]
    assert taken > 1.2 * GPU_OVERHEAD * maps


@pytest.mark.parametrize("gpu", [True, False])
def test_a_loss_that_reads_the_whole_batch_takes_the_logits_of_all_devices(gpu):
    device = Device("cuda", 80e9) if gpu else Device("cpu", 0)
    network = build("unet", classes=50, channels=(4, 8))

    def taken(reduction, batch, **shared):
        recipe = Recipe.model_validate({"loss": {"kind": "dice_ce", "options": {"reduction": reduction}}})
        return step_memory(network, (64, 64), batch, recipe, device, **shared)["maps of a step"]

    # one by one, half of the batch is all that a device sees
    assert taken("image", 4, devices=2) == taken("image", 2)
    logits = 2 * 50 * 64 * 64 * 2  # of two samples, in half precision at least
    assert taken("batch", 4, devices=2) > taken("batch", 2) + logits
    assert taken("image", 4, devices=2, ignored=True) > taken("image", 2) + logits


def test_a_training_that_cannot_fit_leaves_no_folder(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "d.npz",
        images=rng.integers(0, 255, (8, 32, 32), np.uint8),
        masks=np.tile(np.eye(32, dtype=np.uint8), (8, 1, 1)),
    )
    monkeypatch.setattr("ulna.planning.memory.memory", lambda: 10**8)
    with pytest.raises(UsageError, match=r"this training needs about .*planning\.batch=1"):
        ulna.train(tmp_path / "d.npz", model="unet", out=tmp_path / "run", epochs=1)
    assert not (tmp_path / "run").exists()


def test_an_image_that_cannot_fit_fails_alone(tmp_path, images, monkeypatch):  # noqa: F811
    run = run_folder(tmp_path / "run", 0)
    Image.fromarray(np.zeros((900, 800), np.uint8)).save(images / "huge.png")
    monkeypatch.setattr("ulna.planning.memory.program_bytes", lambda: 0.0)  # grows as libraries are loaded
    small = ulna.load(run).forecast(ulna.load(run)._volume(images / "a.png"), probabilities=False).total
    monkeypatch.setattr("ulna.planning.memory.memory", lambda: 2 * small)
    with pytest.raises(ulna.PartialFailure, match="900 x 800 needs about"):
        ulna.predict(run, images, out=tmp_path / "masks")
    assert len(json.loads((tmp_path / "masks/predict.json").read_text())["cases"]) == 4


def test_probabilities_and_classes_take_more(tmp_path):
    from ulna.recipe import Labels

    few = ulna.load(run_folder(tmp_path / "few", 0, patch=(16, 16), whole_image_limit=1))
    many = ulna.load(
        run_folder(
            tmp_path / "many", 0, patch=(16, 16), whole_image_limit=1, labels=Labels(names=tuple(map(str, range(30))))
        )
    )
    volume = few._volume(np.zeros((1, 640, 64), np.float32))
    mask, everything = (many.forecast(volume, probabilities=p).parts for p in (False, True))
    assert mask["slab"] < everything["result"] / 5  # slab by slab: a 40th of the image at a time, twice
    assert few.forecast(volume, probabilities=False).parts["slab"] < mask["slab"]
    both = ulna.load([tmp_path / "few", tmp_path / "few"])
    assert both.forecast(volume, probabilities=False).total >= few.forecast(volume, probabilities=False).total


def test_without_an_allocator_that_leaves_no_holes_more_is_forecast(tmp_path, monkeypatch):
    segmenter = ulna.load(run_folder(tmp_path / "run", 0))
    volume = segmenter._volume(np.zeros((1, 64, 64), np.float32))
    needs = {}
    for allocator in ("ulna", "torch", "glibc"):
        monkeypatch.setattr("ulna.planning.memory.allocator_in_use", lambda allocator=allocator: allocator)
        needs[allocator] = segmenter.forecast(volume, probabilities=False).parts["maps of a window"]
    assert needs["torch"] / needs["ulna"] == pytest.approx(1.55 / 1.25)
    assert needs["glibc"] > needs["torch"]


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak of a process is read from /proc")
@pytest.mark.parametrize("tuned", [0, 1])
@pytest.mark.parametrize(("model", "size"), [("unet", (12, 256, 256)), ("nnunet", (6, 48, 48, 48))])
def test_the_forecast_of_a_training_is_near_its_peak(tmp_path, model, size, tuned):
    rng = np.random.default_rng(0)
    masks = (rng.random(size) > 0.5).astype(np.uint8)
    np.savez(tmp_path / "d.npz", images=rng.integers(0, 255, size, np.uint8), masks=masks)
    words = [tmp_path / "d.npz", model, tmp_path / "run", tuned, "training.min_steps=4"]
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *map(str, words)], check=True, capture_output=True, text=True
    )
    forecast, peak = json.loads(done.stdout.splitlines()[-1])
    assert 0.7 < forecast / peak < 1.4, (forecast, peak)
