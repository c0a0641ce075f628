"""Networks of others that are ours, too: as many parameters for the same plan as the library of nnU-Net makes.

It is an oracle of the benchmarks' environment: `pip install --no-deps -r benchmarks/requirements.txt`. Nothing is computed.
"""

import pytest
import torch
from torch import nn

from ulna.networks.build import build, count_parameters

unet = pytest.importorskip(
    "dynamic_network_architectures.architectures.unet",
    reason="dynamic-network-architectures is not installed: pip install --no-deps -r benchmarks/requirements.txt",
)

WIDTHS = (32, 64, 128, 256, 320, 320)
BLOCKS = (1, 3, 4, 6, 6, 6)  # of nnU-Net's presets M, L and XL
ISOTROPIC = ((2, 2, 2),) * 5
THICK = ((1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2))


def norms(dims):
    conv, norm = (nn.Conv2d, nn.InstanceNorm2d) if dims == 2 else (nn.Conv3d, nn.InstanceNorm3d)
    return {
        "conv_op": conv, "norm_op": norm, "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "conv_bias": True, "nonlin": nn.LeakyReLU, "nonlin_kwargs": {"inplace": True}, "deep_supervision": True,
    }  # fmt: skip


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    "row", ["nnunet_resenc", "isensee/nnunet_resenc_m", "isensee/nnunet_resenc_l", "isensee/nnunet_resenc_xl"]
)
@pytest.mark.parametrize(
    ("strides", "classes"), [(ISOTROPIC, 2), (ISOTROPIC[:4], 3), (THICK, 2), (((2, 2),) * 5, 4)],
    ids=["3d", "3d five levels", "3d thick slices", "2d"],
)  # fmt: skip
def test_the_residual_encoder_has_as_many_parameters_as_nnunet_builds(row, strides, classes):
    dims, stages = len(strides[0]), len(strides) + 1
    with torch.device("meta"):
        theirs = unet.ResidualEncoderUNet(
            input_channels=1, n_stages=stages, features_per_stage=WIDTHS[:stages], kernel_sizes=3,
            strides=[1, *strides], n_blocks_per_stage=BLOCKS[:stages], num_classes=classes,
            n_conv_per_stage_decoder=1, **norms(dims),
        )  # fmt: skip
        ours = build(
            row, spatial_dims=dims, in_channels=1, classes=classes, channels=WIDTHS[:stages], strides=strides,
            deep_supervision=True,
        )  # fmt: skip
    assert count_parameters(ours) == count(theirs)


def test_the_plain_network_has_as_many_parameters_as_nnunet_builds():
    with torch.device("meta"):
        theirs = unet.PlainConvUNet(
            input_channels=3, n_stages=5, features_per_stage=WIDTHS[:5], kernel_sizes=3, strides=[1, 2, 2, 2, 2],
            n_conv_per_stage=2, num_classes=2, n_conv_per_stage_decoder=2, **norms(3),
        )  # fmt: skip
        ours = build("nnunet", spatial_dims=3, in_channels=3, classes=2, channels=WIDTHS[:5])
    assert count_parameters(ours) == count(theirs)
