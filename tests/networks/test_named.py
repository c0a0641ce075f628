"""Every network of the catalogue, narrow: saved and read again, exported, and able to learn two images by heart."""

import pytest
import torch

from tests.networks.test_network import WIDTHS, check_program, narrow
from ulna.networks.build import build
from ulna.networks.catalog import NAMED
from ulna.system.files import Tensors, read_tensors, write_tensors

QUICK = ("unet", "unetpp", "attention_unet", "efficient_unet", "omega_net", "fcn")
# as printed, without norm in its cascades, it learns several times as slowly
LR_AND_STEPS = {
    "wang/omega_net": (3e-3, 200),
    "wang/omega_net_mda_star": (5e-4, 600),  # with cascades in its attention too, it swings at larger rates
    "marimont/implicit_unet": (1e-3, 120),  # nine layers with dropout: at 1e-2 whether it learns depends on the seed
}
LEARNERS = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NAMED]


@pytest.mark.parametrize("name", NAMED)
def test_weights_survive_a_file(name, tmp_path):
    net = narrow(name, in_channels=2)
    net.train()(torch.randn(2, 2, 17, 12))  # moves the running statistics away from where a fresh network has them
    write_tensors(tmp_path / "weights.safetensors", Tensors(dict(net.state_dict()), {}))
    other = build(name, channels=WIDTHS, in_channels=2).eval()
    other.load_state_dict(read_tensors(tmp_path / "weights.safetensors").tensors)
    image = torch.randn(1, 2, 13, 21)
    assert torch.equal(net.eval()(image), other(image))


@pytest.mark.slow
@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("name", NAMED)
def test_every_network_can_be_exported(name, spatial_dims):
    # unscaled attention makes values of some hundred, whose rounding in float32 is no fault of the program
    dtype = torch.float64 if name == "wang/omega_net_mda_star" else torch.float32
    net = narrow(name, spatial_dims=spatial_dims).to(dtype)
    image = torch.randn(1, 1, *(16, 12, 8)[:spatial_dims], dtype=dtype)
    program = torch.export.export(net, (image,))
    check_program(program.module(), net, image)


@pytest.mark.parametrize("name", LEARNERS)
def test_every_network_overfits_two_images(name):
    torch.manual_seed(0)
    net = build(name, channels=(8, 12, 16), generator=torch.Generator().manual_seed(0)).train()
    image = torch.randn(2, 1, 16, 16)
    target = (torch.nn.functional.avg_pool2d(image, 5, 1, 2) > 0).float()
    lr, steps = LR_AND_STEPS.get(name, (1e-2, 80))
    optimizer = torch.optim.Adam(net.parameters(), lr)
    agreement = 0.0
    for _ in range(steps):
        logits = net(image)
        agreement = float(((logits.detach() > 0) == (target > 0)).float().mean())
        if agreement > 0.97:
            return
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    pytest.fail(f"{agreement:.3f} of the voxels after {steps} steps")
