"""A training plans once: its network is built once without memory and once in earnest, its cases are divided once."""

import numpy as np
import pytest
from PIL import Image

import ulna.data.layout.dataset as dividing
import ulna.inference.segmenter as loading
import ulna.networks.build as building
from ulna.recipe import Recipe, from_yaml
from ulna.training.train import train

SHORT = ("training.min_steps=1", "planning.batch=2")


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    """Images in which every level of a U-Net finds its four pixels."""
    root = tmp_path_factory.mktemp("squares")
    rng = np.random.default_rng(0)
    for folder in ("images", "labels"):
        (root / folder).mkdir()
    for number in range(4):
        mask = np.zeros((64, 64), np.uint8)
        mask[20 + number : 40, 16:44] = 1
        image = np.clip(80 + 90 * mask + rng.normal(0, 15, mask.shape), 0, 255).astype(np.uint8)
        Image.fromarray(image).save(root / "images" / f"s{number}.png")
        Image.fromarray(mask).save(root / "labels" / f"s{number}.png")
    return root


@pytest.fixture
def made(monkeypatch):
    """What is built, as (without memory, architecture, shape), and the splits."""
    built, splits = [], []
    build, divide = building.from_architecture, dividing.choose_split

    def counted(architecture, *, generator=None, **shape):
        network = build(architecture, generator=generator, **shape)
        built.append((next(network.parameters()).is_meta, architecture.model_dump_json(), tuple(shape.items())))
        return network

    monkeypatch.setattr(building, "from_architecture", counted)
    monkeypatch.setattr(loading, "from_architecture", counted)
    monkeypatch.setattr(dividing, "choose_split", lambda *given: splits.append(given) or divide(*given))
    return built, splits


@pytest.mark.slow
def test_a_training_builds_and_divides_once(squares, tmp_path, made):
    built, splits = made
    run = train(squares, model="unet", out=tmp_path / "run", epochs=1, set=SHORT)
    assert [without_memory for without_memory, *_ in built] == [True, False]
    assert built[0][1:] == built[1][1:]
    assert built[0][1] == from_yaml(Recipe, run.folder / "recipe.yaml").architecture.model_dump_json()
    assert len(splits) == 1
    built.clear()
    train(squares, out=run.folder, resume=True, epochs=2)
    assert [without_memory for without_memory, *_ in built] == [True, False]
    assert len(splits) == 1


def test_nothing_is_built_twice_where_words_are_checked_and_levels_are_fewer(discs, tmp_path, made):
    """Names that a person states are tried before data are read; the memory of a step is asked of all levels."""
    built, splits = made
    changes = (*SHORT[:1], "architecture.base_channels=4")
    train(discs, model="unet", out=tmp_path / "run", epochs=1, set=changes)
    assert [without_memory for without_memory, *_ in built] == [True, True, True, False]
    assert len(set(built)) == len(built)
    assert len(splits) == 1
