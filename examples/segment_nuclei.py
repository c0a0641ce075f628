"""From a folder of images to masks and scores, in 2D. The images are synthetic: the scores say nothing about real ones.

python examples/segment_nuclei.py [OUT]
"""

import sys
from pathlib import Path

import ulna
from ulna.demonstration import make_nuclei

out = Path(sys.argv[1] if len(sys.argv) > 1 else "example-nuclei")

# 12 RGB images with label maps, and splits.json that says which of them train, validate and test
data = make_nuclei(out / "data", count=12, sizes=[(64, 64)])
print(f"{len(ulna.check(data).problems)} problems in {data}")

# a small network and a short training, so that this takes seconds; leave `set` out for real data
small = ["architecture.base_channels=8", "planning.patch=[64, 64]", "planning.batch=4"]
run = ulna.train(data, model="unet", out=out / "run", epochs=3, seed=0, set=small)

masks = ulna.predict(run.folder, data, out=out / "masks", split="test")
scores = ulna.evaluate(masks.folder, data, out=out / "scores")
for row in scores.rows:
    print(f"{row['case']}  Dice {row['dice']:.3f}")

# the same in memory: a path, an array or a list
segment = ulna.load(run.folder)
result = segment(data / "images" / "nuclei_000.png")
print("mask", result.mask.shape, result.mask.dtype, "classes", sorted(set(result.mask.ravel().tolist())))
result.save(out / "mask.png")
