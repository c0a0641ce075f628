"""Outputs that are not finite are an error, not a mask of background."""

import numpy as np
import pytest
import torch

from tests import plans
from ulna.data.pipeline.preprocess import prepare
from ulna.data.volume import Volume
from ulna.errors import UsageError
from ulna.inference.volume import predict_slabs
from ulna.networks.build import build
from ulna.recipe import Inference

NETWORKS = {"unet": {"channels": (4, 8, 16)}, "implicit_unet": {"channels": (4, 8, 16)}}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("value", [float("nan"), 3e38])
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("tta", [False, True])
def test_answers_that_are_not_finite_are_an_error_that_names_the_run(name, value, precision, tta):
    network = build(name, **NETWORKS[name]).eval()
    network.origin = "runs/a"
    with torch.no_grad():
        next(network.parameters()).fill_(value)
    volume = Volume(np.random.default_rng(0).normal(size=(1, 32, 32)).astype(np.float32), (1.0, 1.0), "px")
    prepared, settings = prepare(volume, plans.make()), Inference(tta=tta)
    slabs = predict_slabs(
        network, plans.make(), prepared, settings=settings, device=torch.device("cpu"), precision=precision
    )
    with pytest.raises(UsageError, match=r"runs/a: .* values that it computed are NaN or infinite"):
        slabs.maps()


def test_large_finite_answers_are_answers():
    """Their sum is infinite, they are not."""
    network = build("unet", channels=(4, 8)).eval()
    with torch.no_grad():
        for module in network.head.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.weight.zero_()
                module.bias.fill_(3e38)
    volume = Volume(np.zeros((1, 32, 32), np.float32), (1.0, 1.0), "px")
    prepared = prepare(volume, plans.make())
    slabs = predict_slabs(network, plans.make(), prepared, settings=Inference(), device=torch.device("cpu"))
    assert bool((slabs.maps() == 1).all())
