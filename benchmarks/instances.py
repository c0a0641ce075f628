"""Panoptic quality of numbered objects: connected components, ulna's watershed, and those of scipy and scikit-image.

    python benchmarks/instances.py RUN DATA REFERENCES [--split test] [--smooth 1] [--depth 0.1] [--smallest 0]

DATA has `images/` and perhaps `splits.json`; REFERENCES is a folder with a map of numbered objects for each image, such as
the `instances/` of the 2018 Data Science Bowl. All ways divide the same masks by the same smoothed distances.
scikit-image is left out where it is not installed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

import ulna
from ulna.data.formats.read import read_labels
from ulna.data.formats.source import Source
from ulna.inference.instances import number_objects
from ulna.recipe import Instances

Ways = dict[str, Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]]


def ways(settings: Instances) -> Ways:
    """Name -> mask and distances to numbers."""
    from ulna.evaluation.objects import objects_of

    found: Ways = {
        "connected components": lambda mask, heights: objects_of(mask > 0),
        "ulna": lambda mask, heights: number_objects(mask, settings),
    }
    try:
        from skimage.morphology import h_maxima
        from skimage.segmentation import watershed
    except ImportError:
        return found

    def markers(heights: NDArray[Any], depth: float) -> NDArray[Any]:
        return np.asarray(ndimage.label(h_maxima(heights, depth) > 0, np.ones((3,) * heights.ndim))[0])

    def by_skimage(depth: float) -> Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]:
        return lambda mask, heights: watershed(-heights, markers(heights, depth), mask=mask > 0, connectivity=mask.ndim)

    def by_scipy(depth: float) -> Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]]:
        def divided(mask: NDArray[Any], heights: NDArray[Any]) -> NDArray[Any]:
            steps = np.rint((heights.max() - heights) / max(heights.max(), 1e-6) * 65534).astype(np.uint16)
            marked = np.where(mask > 0, markers(heights, depth), -1).astype(np.int32)
            return np.maximum(ndimage.watershed_ift(steps, marked, structure=np.ones((3,) * mask.ndim)), 0)

        return divided

    for depth in (1.0, 0.25):
        found[f"scikit-image, h = {depth:g}"] = by_skimage(depth)
        found[f"scipy watershed_ift, h = {depth:g}"] = by_scipy(depth)
    return found


def main() -> None:
    """Print the table."""
    from ulna.evaluation.objects import match_objects, object_scores

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("data", type=Path)
    parser.add_argument("references", type=Path)
    parser.add_argument("--split", default="test")
    for name, value in Instances():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    asked = parser.parse_args()
    settings = Instances(smooth=asked.smooth, depth=asked.depth, smallest=asked.smallest)
    splits = asked.data / "splits.json"
    wanted = json.loads(splits.read_text())[asked.split] if splits.exists() else None
    segment = ulna.load(asked.run)
    scores: dict[str, list[float]] = {}
    seconds: dict[str, float] = {}
    for image in sorted((asked.data / "images").iterdir()):
        if wanted is not None and image.stem not in wanted:
            continue
        mask = segment(image).mask
        reference = read_labels(Source(asked.references / image.name)).array[0]
        heights = ndimage.gaussian_filter(ndimage.distance_transform_edt(mask), settings.smooth) * mask
        for name, way in ways(settings).items():
            start = time.perf_counter()
            numbers = way(mask, heights)
            seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start
            scores.setdefault(name, []).append(object_scores(match_objects(numbers, reference))["pq"])
    for name, values in scores.items():
        print(f"{name:32} PQ {np.nanmean(values):.4f} over {len(values)} images, {seconds[name]:.2f} s")


if __name__ == "__main__":
    main()
