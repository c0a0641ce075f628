"""What happens at a node: four slots of interchangeable blocks.

    conv(spatial_dims, in_channels, out_channels, **options)            (N, Cin, *S) -> (N, self.out_channels, *S)
    skip(spatial_dims, up_channels, skip_channels, **options)           up, [skips]  -> (N, self.out_channels, *S)
    up(spatial_dims, in_channels, out_channels, stride, **options)      (N, Cin, *S) -> (N, self.out_channels, *S * stride)
    down(spatial_dims, in_channels, out_channels, stride, **options)    (N, Cin, *S) -> (N, self.out_channels, *S / stride)

`out_channels` is what the level wants; a block may give another number and says so in `self.out_channels`.
"""

from ulna.blocks.conv import CONV
from ulna.blocks.resample import DOWN, UP
from ulna.blocks.skip import SKIP

SLOTS = {"conv": CONV, "skip": SKIP, "up": UP, "down": DOWN}

__all__ = ["CONV", "DOWN", "SKIP", "SLOTS", "UP"]
