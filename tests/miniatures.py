"""Data sets in small, as their sites hand them out: names, folders, file types, and axes as these have them.

Every image holds a bright ball, whose half (along the first axis) is brighter still where there is a second structure.
"""

import json

import nibabel as nib
import numpy as np
import tifffile
from PIL import Image

from ulna.data.layout.published import LAST_FRAMES

VALUES = (90, 60, 120)  # how much brighter each structure is
LPS = np.diag([-0.8, -0.8, 2.5, 1.0])  # as LiTS and the Decathlon store most volumes
SLICES_FIRST = np.array([[0, 0, -0.8, 0], [0, -0.8, 0, 0], [-2.5, 0, 0, 0], [0, 0, 0, 1.0]])  # as KiTS19 does


def ball(rng, size, classes=1):
    """An image on noise, and its label map: a ball, parted along the first axis."""
    centre = [rng.integers(n // 3, n - n // 3) for n in size]
    places = np.meshgrid(*[np.arange(n) for n in size], indexing="ij")
    inside = sum((p - c) ** 2 for p, c in zip(places, centre, strict=True)) < (min(size) / 4) ** 2
    labels = inside.astype(np.uint8)
    for number in range(2, classes + 1):
        labels[inside & (places[0] > centre[0] + number - 2)] = number
    image = 80 + rng.normal(0, 8, size) + np.select([labels == n for n in (1, 2, 3)], VALUES)
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


def bowl(folder, *, size=None, cases=10):
    """stage1_train of the 2018 Data Science Bowl: a folder a case, RGBA images of several sizes, a mask for every object."""
    rng = np.random.default_rng(0)
    sizes = [(32, 40), (40, 36)] if size is None else [size]
    for number in range(cases):
        size = sizes[number % len(sizes)]
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


def cvc_clinicdb(folder, size=(36, 48)):
    """CVC-ClinicDB with one frame of each of its 29 sequences: TIFF, masks in RGB."""
    rng = np.random.default_rng(0)
    for name in ("Original", "Ground Truth"):
        (folder / name).mkdir(parents=True)
    for frame in LAST_FRAMES:
        image, labels = ball(rng, size)
        colours = np.stack([image * share for share in (1.0, 0.8, 0.6)], axis=-1).astype(np.uint8)
        tifffile.imwrite(folder / "Original" / f"{frame}.tif", colours, photometric="rgb")
        mask = np.repeat(255 * labels[..., None], 3, axis=-1)
        tifffile.imwrite(folder / "Ground Truth" / f"{frame}.tif", mask, photometric="rgb")
    return folder


def frames(folder, size=(30, 40), videos=5):
    """Frames of videos with polyps as pairs of PNG, two a video, grouped: ASU-Mayo has no layout that is published."""
    rng = np.random.default_rng(0)
    groups = {}
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    for number in range(2 * videos):
        image, labels = ball(rng, size)
        groups[f"frame{number}"] = f"video {number // 2}"
        Image.fromarray(np.repeat(image[..., None], 3, axis=-1).astype(np.uint8)).save(
            folder / "images" / f"frame{number}.png"
        )
        Image.fromarray(255 * labels).save(folder / "labels" / f"frame{number}.png")
    (folder / "groups.json").write_text(json.dumps(groups))
    return folder


def _volume(image_path, label_path, image, labels, affine):
    for path in (image_path, label_path):
        path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image((image - 100).astype(np.int16), affine), image_path)
    nib.save(nib.Nifti1Image(labels, affine), label_path)


def lits(folder, size=(40, 44, 6)):
    """LiTS: two training batches in folders of their own, liver and tumours."""
    rng = np.random.default_rng(0)
    for number in (0, 27, *range(28, 34)):
        batch = folder / ("Training Batch 1" if number < 28 else "Training Batch 2")
        image, labels = ball(rng, size, classes=2)
        _volume(batch / f"volume-{number}.nii", batch / f"segmentation-{number}.nii", image, labels, LPS)
    return folder


def kits(folder, size=(40, 44, 6), cases=10):
    """KiTS19: a folder a case, slices along the first axis."""
    rng = np.random.default_rng(0)
    for number in range(cases):
        case = folder / "data" / f"case_{number:05d}"
        image, labels = ball(rng, size, classes=2)
        turned = image.transpose(2, 1, 0), np.ascontiguousarray(labels.transpose(2, 1, 0))
        _volume(case / "imaging.nii.gz", case / "segmentation.nii.gz", *turned, SLICES_FIRST)
    return folder


def decathlon(folder, *, names, size=(36, 34, 12), modalities=("CT",), spacing=(0.8, 0.8, 2.5), cases=10):
    """A task of the Medical Segmentation Decathlon: imagesTr, labelsTr, dataset.json; the channels are a fourth axis."""
    rng = np.random.default_rng(0)
    affine = np.diag([*spacing, 1.0])
    training = []
    for number in range(cases):
        image, labels = ball(rng, size, len(names))
        image[..., -1:], labels[..., -1:] = 100, 0  # a slice of one value, as beyond a head
        if len(modalities) > 1:
            image = np.stack([image * (1 + 0.1 * channel) for channel in range(len(modalities))], axis=-1)
            image[:, :, -1:] = 100
        file = f"case_{number:03d}.nii.gz"
        _volume(folder / "imagesTr" / file, folder / "labelsTr" / file, image, labels, affine)
        training.append({"image": f"./imagesTr/{file}", "label": f"./labelsTr/{file}"})
    told = {
        "name": folder.name,
        "modality": {str(n): name for n, name in enumerate(modalities)},
        "labels": {"0": "background", **{str(n): name for n, name in enumerate(names, 1)}},
        "training": training,
        "numTraining": cases,
        "test": [],
    }
    (folder / "dataset.json").write_text(json.dumps(told))
    return folder


def lidc(folder, side=32, patients=4):
    """Nodules of LIDC-IDRI as crops, two a patient, of several spacings."""
    rng = np.random.default_rng(0)
    for number in range(2 * patients):
        image, labels = ball(rng, (side,) * 3)
        name = f"LIDC-IDRI-{number // 2:04d}_nodule_{number % 2}.nii.gz"
        affine = np.diag([0.6 + 0.02 * number, 0.6 + 0.02 * number, 1.25 + 0.25 * (number % 2), 1.0])
        _volume(folder / "images" / name, folder / "labels" / name, image, labels, affine)
    return folder
