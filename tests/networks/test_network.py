import pytest
import torch

from ulna.errors import UsageError
from ulna.networks.build import build, count_parameters
from ulna.networks.catalog import NAMED

WIDTHS = (4, 6, 8)
ODD = {2: (13, 21), 3: (7, 13, 9)}


def narrow(name, **options):
    generator = torch.Generator().manual_seed(0)
    return build(name, channels=WIDTHS, generator=generator, **options).eval()


def check_program(exported, net, image):
    """The answers agree to what float32 rounds over some thirty layers: how sums are ordered depends on the processor."""
    expected = net(image).detach()
    torch.testing.assert_close(exported(image), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("classes", [1, 5])
@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("name", NAMED)
@pytest.mark.share(3)
def test_every_network_answers_at_any_size_and_every_parameter_learns(name, spatial_dims, classes):
    net = narrow(name, in_channels=2, classes=classes, spatial_dims=spatial_dims).train()
    image = torch.randn(1, 2, *ODD[spatial_dims])
    outputs = net.outputs(image)
    assert outputs.logits.shape == (1, classes, *ODD[spatial_dims])
    sum(z.square().mean() for z in outputs.heads.values()).backward()
    assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize("name", [name for name, entry in NAMED.items() if entry.architecture.deep_supervision])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_pruned_network_equals_its_head_bit_for_bit_at_any_size(name, spatial_dims):
    net = narrow(name, in_channels=1, classes=3, spatial_dims=spatial_dims)
    for size in (ODD[spatial_dims], (16,) * spatial_dims, (1,) * spatial_dims):
        image = torch.randn(1, 1, *size)
        for head, logits in net.outputs(image).heads.items():
            if logits.shape[2:] == image.shape[2:]:
                assert torch.equal(net.prune(head)(image), logits)


def test_pruned_network_holds_only_its_own_weights_and_shares_them():
    net = narrow("unetpp")
    pruned = net.prune("x0_1")
    names = dict(pruned.named_parameters())
    assert not any("x2_0" in n or "x0_2" in n for n in names)
    assert all(p is net.get_parameter(n) for n, p in names.items())
    assert count_parameters(pruned) < count_parameters(net)


def test_pruned_weights_load_from_the_same_file():
    net = narrow("unetpp")
    pruned = narrow("unetpp").prune("x0_1")
    state = {name: tensor for name, tensor in net.state_dict().items() if name in pruned.state_dict()}
    pruned.load_state_dict(state)
    assert set(state) == set(pruned.state_dict())


def test_accurate_mode_is_the_mean_of_the_heads_and_a_fast_mode_is_one_head():
    net = narrow("unetpp")
    outputs = net.outputs(torch.randn(1, 1, 16, 16))
    mean = torch.stack([z.sigmoid() for z in outputs.heads.values()]).mean(0)
    torch.testing.assert_close(outputs.logits.sigmoid(), mean, atol=1e-6, rtol=1e-5)


def test_padding_is_replication_and_is_cropped():
    net = narrow("unet")
    image = torch.randn(1, 1, 10, 9)
    padded = torch.nn.functional.pad(image, (0, 3, 0, 2), mode="replicate")
    torch.testing.assert_close(net(image), net(padded)[..., :10, :9])


def test_anisotropic_strides_divide_each_axis_by_its_own():
    net = build("unet", spatial_dims=3, channels=WIDTHS, strides=((1, 2, 2), (2, 2, 2)))
    assert net.divisor == (2, 4, 4)
    maps = net.features(torch.zeros(1, 1, 4, 8, 8))
    assert maps["x1_0"].shape[2:] == (4, 4, 4)
    assert maps["x2_0"].shape[2:] == (2, 2, 2)


def test_unet_computes_its_equations():
    net = narrow("zhou/unet").double()
    x = torch.randn(1, 1, 8, 8, dtype=torch.float64)
    stages, pool = net.stages, torch.nn.functional.max_pool2d

    def H(name, z):
        for layer in stages[name].conv.layers:
            z = torch.nn.functional.conv2d(z, layer.conv.weight, layer.conv.bias, padding=1).relu()
        return z

    def U(name, z):
        conv = stages[name].resample.conv
        return torch.nn.functional.conv_transpose2d(z, conv.weight, conv.bias, stride=2)

    x00 = H("x0_0", x)
    x10 = H("x1_0", pool(x00, 2))
    x20 = H("x2_0", pool(x10, 2))
    x11 = H("x1_1", torch.cat([U("x1_1", x20), x10], 1))
    x02 = H("x0_2", torch.cat([U("x0_2", x11), x00], 1))
    head = net.head.convs["x0_2"]
    torch.testing.assert_close(net(x), torch.nn.functional.conv2d(x02, head.weight, head.bias))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 1, 8, 8, 8), "2D network reads"),
        ((1, 2, 8, 8), "C = 1"),
        ((1, 1, 0, 8), "no pixels"),
        ((8, 8), "2D network"),
    ],
)
def test_images_that_do_not_fit_are_refused(shape, message):
    with pytest.raises(UsageError, match=message):
        narrow("unet")(torch.zeros(shape))


@pytest.mark.parametrize("name", ["unetpp", "nnunet", "omega_net", "fcn", "implicit_unet"])
def test_networks_can_be_exported(name):
    net = narrow(name, spatial_dims=2)
    image = torch.randn(1, 1, 16, 12)
    program = torch.export.export(net, (image,))
    check_program(program.module(), net, image)
