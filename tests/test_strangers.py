"""Run folders that somebody else wrote: whatever their files hold, a command works or says what is wrong."""

import json
import math
import random
import shutil

import pytest
import yaml

import ulna
from tests.training.tiny import TINY
from ulna.errors import PartialFailure, UsageError
from ulna.system.files import Tensors, read_tensors, write_tensors
from ulna.training.train import train

ODD = (
    None, True, 0, -1, 1, 2, 3, 7, 10**9, -(10**9), 10**30, 0.0, -0.5, 0.5, 1e-300, 1e300, math.nan, math.inf, "", "x",
    "1e3", "\x1b[2J", "a\nb", "x" * 5000, [], {}, [[]], [0], [1, 2], [1, 2, 3, 4], {"a": 1}, [{"a": [1]}] * 50,
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(discs, tmp_path_factory):
    """A finished run, and masks that it predicted."""
    root = tmp_path_factory.mktemp("strangers")
    train(discs, model="unet", out=root / "run", epochs=1, set=TINY)
    ulna.predict(root / "run", discs, out=root / "masks", split="val")
    return root


def places(value, path=()):
    """Every place in nested lists and dicts."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield from places(one, (*path, key))


def put(value, path, new, rng):
    """The same with one place changed: replaced, removed, or with something beside it."""
    if not path:
        return new
    key, changed = path[0], value.copy()
    if len(path) > 1:
        changed[key] = put(value[key], path[1:], new, rng)
    elif (act := rng.random()) < 0.75:
        changed[key] = new
    elif act < 0.9:
        del changed[key]
    elif isinstance(changed, dict):
        changed["stranger\x1b"] = new
    else:
        changed.append(new)
    return changed


def mutated(content, rng):
    """Plain values with up to three odd places."""
    for _ in range(rng.randint(1, 3)):
        content = put(content, rng.choice(list(places(content))), rng.choice(ODD), rng)
    return content


def damage(folder, name, rng):
    path = folder / name
    if rng.random() < 0.15:  # bytes
        data = bytearray(path.read_bytes())
        for _ in range(rng.randint(1, 5)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data)
    elif name.endswith(".yaml"):
        content = mutated(yaml.safe_load(path.read_text()), rng)
        path.write_text(yaml.safe_dump(content, allow_unicode=True))
    elif name.endswith(".json"):
        path.write_text(json.dumps(mutated(json.loads(path.read_text()), rng)))
    else:  # a checkpoint or weights, with a checksum that is right
        stored = read_tensors(path)
        if rng.random() < 0.5:
            tensors = dict(stored.tensors)
            chosen = rng.choice(list(tensors))
            tensors[chosen] = rng.choice(
                [tensors[chosen].double() * 1e200, tensors[chosen].flatten()[:1], tensors[chosen].int()]
            )
            write_tensors(path, stored._replace(tensors=tensors))
        else:
            state = mutated(stored.state, rng)
            write_tensors(path, Tensors(stored.tensors, state if isinstance(state, dict) else {}))


def clear(work):
    """Run something; what it says when it fails must be short and harmless to a terminal."""
    try:
        work()
    except (UsageError, PartialFailure) as error:
        said = str(error)
        assert "defect" not in said
        assert all(c.isprintable() or c == "\n" for c in said), said
        assert len(said) < 20_000


FILES = ("recipe.yaml", "plan.yaml", "splits.json", "weights.safetensors")
MANY = [pytest.param(range(n, n + 50), marks=pytest.mark.slow) for n in range(50, 650, 50)]


@pytest.mark.parametrize("seeds", [range(40), *MANY])
def test_predicting_with_a_damaged_run_works_or_says_why(whole, discs, tmp_path, seeds):
    for seed in seeds:
        rng = random.Random(seed)
        run, masks = tmp_path / f"run{seed}", tmp_path / f"masks{seed}"
        shutil.copytree(whole / "run", run, ignore=shutil.ignore_patterns("checkpoints", "figures"))
        damage(run, rng.choice(FILES), rng)
        clear(lambda run=run, masks=masks: ulna.predict(run, discs, out=masks, split="val"))


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [range(n, n + 25) for n in range(0, 200, 25)])
def test_going_on_with_a_damaged_run_works_or_says_why(whole, discs, tmp_path, seeds):
    for seed in seeds:
        rng = random.Random(seed)
        run = tmp_path / f"run{seed}"
        shutil.copytree(whole / "run", run)
        name = rng.choice([*FILES[:3], "data.json", "checkpoints"])
        if name == "checkpoints":
            for path in (run / name).iterdir():
                damage(run, f"{name}/{path.name}", random.Random(seed))
        else:
            damage(run, name, rng)
        clear(lambda run=run: train(discs, out=run, resume=True))


@pytest.mark.parametrize("seeds", [range(20), pytest.param(range(20, 200), marks=pytest.mark.slow)])
def test_evaluating_with_a_damaged_note_works_or_says_why(whole, discs, tmp_path, seeds):
    for seed in seeds:
        masks = tmp_path / f"masks{seed}"
        shutil.copytree(whole / "masks", masks)
        damage(masks, "predict.json", random.Random(seed))
        clear(lambda masks=masks: ulna.evaluate(masks, discs))
