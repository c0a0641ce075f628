import pytest
import torch

from ulna import build
from ulna.inference.folding import fuse_batchnorm
from ulna.networks.heads.decoder import WeightNormLinear


def trained(name: str, dims: int, **changes) -> torch.nn.Module:
    """A network whose batch norms have seen data and have weights of their own."""
    torch.manual_seed(0)
    net = build(name, in_channels=2, spatial_dims=dims, channels=(4, 6, 8), **changes)
    net(torch.randn(3, 2, *(16,) * dims) * 3 + 1)
    for parameter in net.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=0.5)
    return net.eval()


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", ["unet", "unetpp", "nnunet", "zhou/unet", "implicit_unet"])
def test_a_folded_network_gives_the_same_answers_and_leaves_the_other_alone(name, dims):
    net = trained(name, dims)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    image = torch.randn(1, 2, *(13, 20, 9)[:dims])
    with torch.inference_mode():
        torch.testing.assert_close(fuse_batchnorm(net)(image), net(image), rtol=1e-4, atol=1e-4)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def test_the_weights_of_the_implicit_decoder_are_normalised_once():
    net = trained("implicit_unet", 2)
    layers = [[m for m in n.modules() if isinstance(m, WeightNormLinear)] for n in (net, fuse_batchnorm(net))]
    for before, after in zip(*layers, strict=True):
        rows = before.v / before.v.norm(dim=1, keepdim=True) * before.g[:, None]
        torch.testing.assert_close(after.weight(), rows)
        assert after.weight() is after.v and after.g is None and before.g is not None


def test_batch_norm_is_gone_where_it_follows_a_convolution():
    net = trained("unet", 2)
    kinds = {type(module).__name__ for module in fuse_batchnorm(net).modules()}
    assert "BatchNorm2d" in {type(module).__name__ for module in net.modules()}
    assert "BatchNorm2d" not in kinds
