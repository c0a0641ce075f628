"""Maps that lie channels last stay so from the first convolution to the head: a copy between would cost as much as a norm."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ulna import build
from ulna.kernels import convolution, normalize
from ulna.networks.catalog import NAMED
from ulna.system.device import multiplies_bf16

# six channels a cell or more, so that none of NASNet's maps has one channel, which lies either way
NARROW = (12, 18, 24)
LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
# Operations that may write their maps with channels first, and why
EXCUSED = {
    "ulna::sweep": "its maps are (N, *S, C), which is the same",
    "ulna::sweep_backward": "as forward",
    "aten::div.Scalar": "the gradient of a mean over an image, the same at every pixel (mbconv.SqueezeExcitation)",
    "aten::slice_backward": "of weights",
}
# The same in 3D where means over 3x3x3 voxels are asked for: torch's own writes them and their gradients so; what the pool
# gives is put right (nd._AveragePool3d), not what its gradient is added to
POOLED = (
    *("aten::avg_pool3d", "aten::avg_pool3d_backward", "aten::constant_pad_nd", "aten::div.Tensor", "aten::mul.Tensor"),
    *("aten::add.Tensor", "aten::_to_copy"),
)
# The gradient of every second pixel, and what it is added to (residual.PreActivatedUnit without projections)
EVERY_SECOND = ("aten::add.Tensor", "aten::upsample_bilinear2d_backward", "aten::upsample_trilinear3d_backward")


def turned(x) -> bool:
    """Whether something is a map of several channels and pixels that does not lie channels last."""
    if not isinstance(x, torch.Tensor) or x.ndim not in LAST or x.shape[1] == 1 or x[0, 0].numel() == 1:
        return False
    return not x.is_contiguous(memory_format=LAST[x.ndim])


class Turned(TorchDispatchMode):
    """The operations that write maps whose channels do not lie last; weights, which have other sizes, do not count."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.batch, self.found = batch, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple) else (made,):
            if not function.is_view and turned(one) and one.shape[0] == self.batch:
                self.found.add(function.name())
        return made


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("name", NAMED)
@pytest.mark.share(3)
def test_maps_and_gradients_stay_channels_last(name, spatial_dims):
    if spatial_dims == 3 and not multiplies_bf16(torch.device("cpu")):
        pytest.skip("torch convolves volumes by a loop of its own here, which writes channels first")
    torch.manual_seed(0)
    layout = LAST[spatial_dims + 2]
    network = build(name, spatial_dims=spatial_dims, in_channels=3, channels=NARROW).to(memory_format=layout)
    side = 28 if "nas" in name or "k5" in name else 16  # kernels of 5 or 7 pixels do not read beyond the deepest map
    image = torch.randn(2, 3, *(side,) * spatial_dims).contiguous(memory_format=layout)
    wrong = []

    def look(label):
        def hook(module, given, made):
            if turned(made):
                wrong.append(f"{label} ({type(module).__name__})")

        return hook

    for label, module in network.stages.named_modules():
        if not isinstance(module, nn.ModuleDict):
            module.register_forward_hook(look(label))
    # as on a GPU: torch's own convolutions, in bf16; norms by torch too, whose operations a mode can see
    with convolution.force("torch"), normalize.force("torch"):
        with Turned(2) as forward, torch.autocast("cpu", torch.bfloat16):
            maps, _ = network.encode(image)
        with Turned(2) as backward:
            sum(one.square().sum() for one in maps.values()).backward()
    assert not wrong
    excused = {*EXCUSED, *(POOLED if "nas" in name and spatial_dims == 3 else ())}
    excused |= set(EVERY_SECOND if name == "zhang/residual_unet" else ())
    assert (forward.found | backward.found) <= excused
