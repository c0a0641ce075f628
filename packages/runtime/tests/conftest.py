"""Networks exported once, to be put behind plans of many kinds; and small exported files made by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.plans import make
from ulna.exporting.graphs import make_graphs
from ulna.inference.segmenter import Segmenter, network_for
from ulna.recipe import Inference, Labels, Recipe
from ulna_runtime import bundle
from ulna_runtime.segmenter import Segmenter as Exported

torch.set_num_threads(1)
SOURCE = Path(__file__).parents[1] / "src"
CLASSES = Labels(names=("background", "x", "y"))
OVERLAPPING = Labels(names=("a", "b", "c"), multilabel=True)
UNET = {"channels": (4, 6), "strides": ((2, 2),)}
POINTS = {"channels": (4, 6), "strides": ((2, 2),), "head": {"kind": "points", "options": {"width": 16, "depth": 3}}}


def recipe_of(model, architecture, **inference):
    training = {"precision": "fp32"}
    made = Recipe(model=model).replaced(
        training=Recipe().training.replaced(**training), inference=Inference(**inference)
    )
    return made.replaced(architecture=architecture)


def plan_for(dims, **changes):
    """Of three channels (one in three neighbouring slices), for the networks of the fixtures."""
    channels = changes.pop("in_channels", 3 if dims == 2 else 1)
    fields = {
        "in_channels": channels,
        "channel_names": tuple(f"c{n}" for n in range(channels)),
        "labels": CLASSES,
        "strides": ((2,) * dims,),
        "patch": (16, 14, 12)[:dims],
        "normalization": make().normalization * channels,
        "mirror_axes": tuple(range(dims)),
    }
    return make(spatial_dims=dims, **(fields | changes))


class Pair:
    """A network in torch and its graphs, to be put behind a plan."""

    def __init__(self, model, architecture, plan):
        self.model, self.architecture = model, architecture
        self.network = network_for(recipe_of(model, architecture), plan, torch.Generator().manual_seed(1)).eval()
        self.graphs = make_graphs(self.network, plan)

    def members(self, plan, recipe):
        files = [f"networks/{n}.onnx" for n in range(len(self.graphs.models))]
        values = recipe.model_dump(mode="json")
        member = {
            "plan": plan.to_json(),
            "inference": values["inference"],
            "graphs": {**self.graphs.facts, "files": files},
            "recipe": values,
            "maps_per_voxel": 100.0,
        }
        members = {"pipeline.json": json.dumps({"members": [member]}).encode(), "card.json": b'{"model": "unet"}'}
        return members | dict(zip(files, self.graphs.models, strict=True))

    def both(self, plan, **inference):
        """ulna's segmenter and the runtime's, for one plan."""
        recipe = recipe_of(self.model, self.architecture, **inference)
        members = self.members(plan, recipe)
        values = json.loads(members["pipeline.json"])
        graphs = {name: data for name, data in members.items() if name.startswith("networks/")}
        return (
            Segmenter(self.network, plan, recipe, torch.device("cpu")),
            Exported(bundle.Bundle("file", "", values, {}, graphs), threads=1),
        )

    def write(self, path, plan, **inference):
        """An exported file."""
        bundle.write_bundle(path, self.members(plan, recipe_of(self.model, self.architecture, **inference)))
        return path


@pytest.fixture(scope="session")
def flat():
    """A 2D network that reads three channels."""
    return Pair("unet", UNET, plan_for(2))


@pytest.fixture(scope="session")
def deep():
    """A 3D network that reads one channel."""
    return Pair("unet", {"channels": (3, 4), "strides": ((2, 2, 2),)}, plan_for(3))


@pytest.fixture(scope="session")
def points():
    """A 2D network whose head reads points."""
    return Pair("implicit_unet", POINTS, plan_for(2))


@pytest.fixture
def rng():
    return np.random.default_rng(0)
