"""Volumes: a Decathlon folder of NIfTI files, a 3D network, and a mask in the geometry of its image.

The volumes are synthetic: the scores say nothing about real ones.

    python examples/segment_volumes.py [OUT]
"""

import sys
from pathlib import Path

import nibabel
import numpy as np

import ulna
from ulna.demonstration import make_phantom

out = Path(sys.argv[1] if len(sys.argv) > 1 else "example-volumes")

# bent tubes in two parts, each file with an orientation of its own: dataset.json, imagesTr, labelsTr
data = make_phantom(out / "data", count=4, size=(24, 28, 20))

# small and short here; leave `set` out for real data
small = ["architecture.base_channels=8", "optimizer.lr=1e-2"]
run = ulna.train(data, model="nnunet", out=out / "run", epochs=4, seed=0, set=small)
part = run.summary["evaluated_on"]
for name, measures in run.summary[part]["classes"].items():
    print(f"{name}  Dice {measures['dice']['mean']:.3f} on the {part} cases")

# the mask lies where the image lies, whatever the network saw
image = nibabel.load(data / "imagesTr" / "phantom_00_0000.nii.gz")
result = ulna.load(run.folder)(data / "imagesTr" / "phantom_00_0000.nii.gz")
result.save(out / "mask.nii.gz")
mask = nibabel.load(out / "mask.nii.gz")
print("same grid:", mask.shape == image.shape and np.allclose(mask.affine, image.affine))
