"""Networks alone, without data: build one, change a slot, match a width, cut it. Each is a plain torch.nn.Module.

python examples/build_networks.py
"""

import torch

import ulna

for name in ("unet", "unetpp", "nnunet"):
    (model,) = ulna.models(name)
    print(f"{name:8} {model.parameters():>12,} parameters, {model.gmacs():.2f} GMACs, {model.paper}")

# logits of the size of the image, whatever it is
images = torch.randn(2, 3, 50, 70)
net = ulna.build("unetpp", in_channels=3, classes=1, channels=[8, 16, 32, 64]).eval()
with torch.no_grad():
    logits = net(images)
    heads = net.outputs(images).heads  # what deep supervision trains
    fast = net.prune("x0_2").eval()  # what the head x0_2 reads, and nothing else
    print("logits", tuple(logits.shape), "heads", list(heads))
    print("pruned equals its head:", torch.equal(fast(images), heads["x0_2"]))

# another block in a slot, in 3D, with every width scaled by one factor to half a million parameters
net = ulna.build("unet", conv="residual", skip="attention_gate", spatial_dims=3, parameters=500_000)
print(f"{sum(p.numel() for p in net.parameters()):,} parameters in 3D")

# a wrong name is answered with the nearest
try:
    ulna.build("unet", skip="atention_gate")
except ulna.UsageError as error:
    print(error)
