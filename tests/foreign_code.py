"""Files of code that hold networks of one's own: small ones that work, and others that do not."""

TINY = '''
import torch
from torch import nn


class Tiny(nn.Module):
    """Two levels, in 2D or 3D."""

    def __init__(self, in_channels, classes, spatial_dims=2, width=4):
        super().__init__()
        conv = (nn.Conv2d, nn.Conv3d)[spatial_dims - 2]
        up = (nn.ConvTranspose2d, nn.ConvTranspose3d)[spatial_dims - 2]
        self.first = nn.Sequential(conv(in_channels, width, 3, padding=1), nn.ReLU())
        self.down = nn.Sequential(conv(width, 2 * width, 2, stride=2), nn.ReLU())
        self.up = up(2 * width, width, 2, stride=2)
        self.last = conv(2 * width, classes, 1)

    def forward(self, x):
        y = self.first(x)
        return self.last(torch.cat([y, self.up(self.down(y))], 1))
'''

FORMS = (
    TINY
    + '''

class Listed(Tiny):
    def forward(self, x):
        y = super().forward(x)
        return [y, nn.functional.avg_pool2d(y, 2)] if self.training else y


class Keyed(Tiny):
    def forward(self, x):
        y = super().forward(x)
        return {"out": y, "aux": 2 * y, "features": "anything"}


class Stacked(Tiny):
    def forward(self, x):
        y = super().forward(x)
        return torch.stack([y, 2 * y, 3 * y], 1)


class Probable(Tiny):
    def forward(self, x):
        return super().forward(x).sigmoid()


class Quarter(Tiny):
    def forward(self, x):
        return nn.functional.avg_pool2d(super().forward(x), 4)


class TooMany(Tiny):
    def __init__(self, in_channels, classes):
        super().__init__(in_channels, classes + 1)


class Pair(Tiny):
    def forward(self, x):
        return super().forward(x), 0.5


class Unkeyed(Tiny):
    def forward(self, x):
        return {"mask": super().forward(x)}


class Reads(Tiny):
    def forward(self, x):
        return super().forward(x) * (2 if x.mean().item() > 0 else 1)


class Flat(nn.Module):
    """Planes of thick slices: divides rows by 8, columns by 2."""

    def __init__(self, in_channels, classes):
        super().__init__()
        self.down = nn.Conv2d(in_channels, 4, (8, 2), stride=(8, 2))
        self.up = nn.ConvTranspose2d(4, classes, (8, 2), stride=(8, 2))

    def forward(self, x):
        y = self.up(self.down(x))
        if y.shape[2:] != x.shape[2:]:
            raise RuntimeError("sizes do not match")
        return y


class Twice(Tiny):
    """Knows its first layer by two names."""

    def __init__(self, in_channels, classes):
        super().__init__(in_channels, classes)
        self.again = self.first


class Deaf(nn.Module):
    def __init__(self, width):
        super().__init__()


class Late(nn.Module):
    def __init__(self, in_channels, classes):
        super().__init__()
        self.layer = nn.LazyConv2d(classes, 1)


class Empty(nn.Module):
    def __init__(self, in_channels, classes):
        super().__init__()


class Breaks(nn.Module):
    def __init__(self, in_channels, classes):
        raise KeyError("no such thing")


def made(in_channels, classes):
    return Tiny(in_channels, classes)


def text(in_channels, classes):
    return "a network"
'''
)

# what stands in for segmentation_models.pytorch, which needs a torchvision
SMP = """
from torch import nn

__version__ = "0.0.1"


class Unet(nn.Module):
    def __init__(
        self, encoder_name="resnet34", encoder_weights="imagenet", decoder_channels=(16, 8), in_channels=3, classes=1,
        activation=None, aux_params=None, **kwargs,
    ):
        super().__init__()
        assert encoder_weights is None, "this would be downloaded"
        if encoder_name != "resnet34":
            raise KeyError(f"no encoder {encoder_name}")
        self.encoder = nn.Sequential(nn.Conv2d(in_channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.decoder = nn.Sequential(*[
            nn.Conv2d(a, b, 3, padding=1) for a, b in zip((8, *decoder_channels[:-1]), decoder_channels)
        ])
        self.segmentation_head = nn.Conv2d(decoder_channels[-1], classes, 1)

    def forward(self, x):
        if any(side % 32 for side in x.shape[2:]):
            raise RuntimeError("Wrong input shape; expected sides divisible by 32")
        return self.segmentation_head(self.decoder(self.encoder(x)))
"""
