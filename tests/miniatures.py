"""Data sets in small, as their sites hand them out or as a recipe asks for them: a bright ball in every image."""

import json

import nibabel as nib
import numpy as np
from PIL import Image

VALUES = (90, 60)  # how much brighter the first and the second structure are


def ball(rng, size, classes=1):
    """An image on noise, and its label map: a ball, whose half along the first axis is the second class."""
    centre = [rng.integers(n // 3, n - n // 3) for n in size]
    places = np.meshgrid(*[np.arange(n) for n in size], indexing="ij")
    inside = sum((p - c) ** 2 for p, c in zip(places, centre, strict=True)) < (min(size) / 4) ** 2
    labels = inside.astype(np.uint8)
    if classes == 2:
        labels[inside & (places[0] > centre[0])] = 2
    image = 80 + rng.normal(0, 8, size) + np.select([labels == 1, labels == 2], VALUES)
    return image.clip(0, 255), labels


def arrays(folder, *, size, channels, classes=1, multilabel=False, cases=8):
    """A folder with one npz; overlapping classes: the second lies in the first."""
    rng = np.random.default_rng(0)
    made = [ball(rng, size, classes) for _ in range(cases)]
    images = np.stack([np.stack([image + 5 * c for c in range(channels)], axis=-1) for image, _ in made])
    masks = np.stack([labels for _, labels in made])
    folder.mkdir()
    flags = {}
    if multilabel:
        masks = np.stack([masks > 0, masks == 2], axis=-1).astype(np.uint8)
        flags = {"multilabel": np.True_}
        names = {"mode": "multilabel", "classes": ["organ", "tumour"]}
        (folder / "classes.json").write_text(json.dumps(names))
    images = images.astype(np.uint8) if channels == 3 else images.astype(np.float32)
    np.savez(folder / "all.npz", images=images if channels > 1 else images[..., 0], masks=masks, **flags)
    return folder


def bowl(folder, *, size, cases=8):
    """stage1_train of the 2018 Data Science Bowl: a folder a case, RGBA images, a mask for every object."""
    rng = np.random.default_rng(0)
    for number in range(cases):
        image, labels = ball(rng, size)
        case = folder / f"{number:04x}"
        for name in ("images", "masks"):
            (case / name).mkdir(parents=True)
        colours = np.repeat(image[..., None], 4, axis=-1).astype(np.uint8)
        colours[..., 3] = 255
        Image.fromarray(colours).save(case / "images" / f"{number:04x}.png")
        upper = np.arange(size[0])[:, None] < size[0] // 2
        for part, mask in enumerate((labels * upper, labels * ~upper)):
            if mask.any():
                Image.fromarray((255 * mask).astype(np.uint8)).save(case / "masks" / f"{part}.png")
    return folder


def decathlon(folder, *, size, names, cases=10):
    """A task of the Medical Segmentation Decathlon: imagesTr, labelsTr, dataset.json; hidden files as they come with it."""
    rng = np.random.default_rng(0)
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    training = []
    for number in range(cases):
        image, labels = ball(rng, size, len(names))
        affine = np.diag([0.8, 0.8, 2.5, 1.0])
        file = f"case_{number:03d}.nii.gz"
        nib.save(nib.Nifti1Image((image - 100).astype(np.int16), affine), folder / "imagesTr" / file)
        nib.save(nib.Nifti1Image(labels, affine), folder / "labelsTr" / file)
        training.append({"image": f"./imagesTr/{file}", "label": f"./labelsTr/{file}"})
    told = {
        "name": folder.name,
        "modality": {"0": "CT"},
        "labels": {"0": "background", **{str(n): name for n, name in enumerate(names, 1)}},
        "training": training,
        "numTraining": cases,
        "test": [],
    }
    (folder / "dataset.json").write_text(json.dumps(told))
    return folder
