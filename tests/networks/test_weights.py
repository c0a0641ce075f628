"""Weights from a file: finite, of the network's own shapes, and compared before anything large is made."""

import pytest
import torch

from ulna.errors import UsageError
from ulna.networks.build import build
from ulna.networks.weights import load_network
from ulna.system.files import Tensors, write_tensors


def make():
    return build("unet", channels=(4, 8), conv="double_conv")


@pytest.fixture
def weights():
    return {name: tensor.clone() for name, tensor in make().state_dict().items()}


def stored(tmp_path, weights):
    write_tensors(tmp_path / "weights.safetensors", Tensors(weights, {}))
    return tmp_path / "weights.safetensors"


def test_what_was_stored_comes_back(tmp_path, weights):
    network = load_network(make, stored(tmp_path, weights))
    assert all(torch.equal(weights[name], tensor) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("ending", ["weight", "bias", "running_mean", "running_var"])
def test_one_value_that_is_not_finite_is_an_error_that_names_file_and_tensor(tmp_path, weights, value, ending):
    name = next(name for name in weights if name.endswith(ending))
    weights[name].view(-1)[0] = value
    with pytest.raises(UsageError, match=rf"weights\.safetensors: 1 of .* values of {name} are NaN or infinite"):
        load_network(make, stored(tmp_path, weights))


def test_a_negative_variance_is_an_error(tmp_path, weights):
    name = next(name for name in weights if name.endswith("running_var"))
    weights[name][0] = -1.0
    with pytest.raises(UsageError, match=f"{name} holds a negative variance"):
        load_network(make, stored(tmp_path, weights))


def test_weights_that_are_finite_in_the_file_alone_are_an_error(tmp_path, weights):
    name = next(name for name in weights if name.endswith("bias"))
    weights[name] = torch.full_like(weights[name], 1e300, dtype=torch.float64)
    with pytest.raises(UsageError, match="are NaN or infinite"):
        load_network(make, stored(tmp_path, weights))


def test_other_weights_are_an_error_that_names_them(tmp_path, weights):
    names = list(weights)
    weights["stranger"] = weights.pop(names[0])
    weights[names[1]] = torch.zeros(7)
    with pytest.raises(
        UsageError, match=rf"{names[0]} is missing; stranger belongs to no part .*; {names[1]} has the shape"
    ):
        load_network(make, stored(tmp_path, weights))


def test_whole_numbers_are_no_weights(tmp_path, weights):
    name = next(name for name in weights if name.endswith("weight"))
    weights[name] = weights[name].to(torch.int32)
    with pytest.raises(UsageError, match="holds int32 numbers"):
        load_network(make, stored(tmp_path, weights))


def test_a_network_of_hundreds_of_gb_is_refused_before_it_is_made(tmp_path, weights):
    def large():
        return build("unet", channels=(65536, 65536))  # 360 GB of weights

    with pytest.raises(UsageError, match="does not fit"):
        load_network(large, stored(tmp_path, weights))
