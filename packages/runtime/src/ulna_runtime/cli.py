"""The command line: `ulna-runtime predict FILE IMAGES --out DIR`, `ulna-runtime info FILE`, `ulna-runtime zoo`.

Exit codes: 0 done; 2 the input or the usage is wrong; 3 some images failed, the rest is written.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from ulna_runtime.bundle import read_bundle
from ulna_runtime.card import card_text
from ulna_runtime.dicom import holds_dicom
from ulna_runtime.errors import UsageError
from ulna_runtime.files import ARRAYS, DICOM, READ, case_of, read_arrays, suffix_of, write_arrays
from ulna_runtime.segmenter import Result, load
from ulna_runtime.zoo import PREFIX, entries, located

RESEARCH_USE = "Research use only; not a medical device."
FILE = "a file of `ulna export`, or zoo:NAME"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and leave with its exit code."""
    try:
        code = run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # who read has gone, as in `ulna-runtime zoo | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    asked = _parser().parse_args(arguments)
    try:
        return {"info": _info, "predict": _predict, "zoo": _zoo}[asked.verb](asked)
    except UsageError as error:
        _complain(str(error))
        return 2
    except KeyboardInterrupt:
        _complain("stopped")
        return 130


def _parser() -> argparse.ArgumentParser:
    from ulna_runtime import __version__

    parser = argparse.ArgumentParser(
        "ulna-runtime", description=f"Segment images with an exported file. {RESEARCH_USE}"
    )
    parser.add_argument("--version", action="version", version=f"ulna-runtime {__version__}. {RESEARCH_USE}")
    verbs = parser.add_subparsers(dest="verb", required=True)
    predict = verbs.add_parser(
        "predict",
        help="segment images",
        epilog="example: ulna-runtime predict liver.ulna scans --out masks",
    )
    predict.add_argument("file", type=Path, help=FILE)
    predict.add_argument("images", type=Path, help="an image, the folder of a DICOM series, or a folder of either")
    predict.add_argument("--out", type=Path, required=True, help="folder for the masks")
    predict.add_argument("--tta", action="store_true", help="average over mirrored copies of every image")
    predict.add_argument(
        "--no-post-processing",
        action="store_true",
        help="masks as the network says them, also where the run cleans them",
    )
    predict.add_argument("--overwrite", action="store_true", help="write over masks that stand there")
    predict.add_argument("--threads", type=int, help="that compute; by default all cores")
    info = verbs.add_parser("info", help="print the model card", epilog="example: ulna-runtime info liver.ulna")
    info.add_argument("file", type=Path, help=FILE)
    zoo = verbs.add_parser("zoo", help="list the segmenters that come with it", epilog="example: ulna-runtime zoo")
    for verb in (info, zoo):
        verb.add_argument("--json", action="store_true", help="as plain values")
    return parser


def _info(asked: argparse.Namespace) -> int:
    bundle = read_bundle(located(asked.file), graphs=False)
    sys.stdout.write((json.dumps(bundle.card, indent=1) if asked.json else card_text(bundle.card)) + "\n")
    return 0


def _zoo(asked: argparse.Namespace) -> int:
    found = entries()
    if asked.json:
        sys.stdout.write(json.dumps([entry.to_json() for entry in found], indent=1) + "\n")
        return 0
    for entry in found:
        told = {"finds": entry.structures, "reads": entry.images, "Dice on cases it never saw": entry.dice}
        told |= {"licence": entry.licence, "file": f"{entry.bytes / 1e6:.1f} MB"}
        told |= {} if entry.examples is None else {"images to try": str(entry.examples / "images")}
        sys.stdout.write(card_text({PREFIX + entry.name: told}).lstrip() + "\n\n")
    return 0


def _predict(asked: argparse.Namespace) -> int:
    file, images, out = located(asked.file), _images(asked.images), asked.out
    if asked.images.is_dir() and out.resolve() == asked.images.resolve():
        raise UsageError(f"{out}: holds the images; choose another --out")
    series = next((path for path in images if path.is_dir()), None)
    if series is not None and out.resolve().is_relative_to(series.resolve()):
        raise UsageError(f"{out}: lies in the folder of a DICOM series; choose another --out")
    cases = [case_of(path) for path in images]
    twice = next((case for case in cases if cases.count(case) > 1), None)
    if twice is not None:
        raise UsageError(f"{asked.images}: has two images named {twice!r}, whose masks would have one name; rename one")
    standing = [path for path in images for left in out.glob(case_of(path) + ".*") if suffix_of(left) in (*READ, DICOM)]
    if standing and not asked.overwrite:
        raise UsageError(
            f"{out}: holds a mask of {standing[0].name} already; give --overwrite, or choose another --out"
        )
    segmenter = load(file, asked.threads)
    segment = partial(segmenter, tta=asked.tta, post_processing=not asked.no_post_processing)
    failed: list[str] = []
    done = 0
    for path, case in zip(images, cases, strict=True):
        with _failing(failed, path):
            if suffix_of(path) == ARRAYS and path.is_file():
                done += _predict_rows(segment, path, segmenter.dims, out / case, failed)
            else:
                sys.stderr.write(f"{segment(path).save(out / case)}\n")
                done += 1
    if failed:
        _complain(f"{len(failed)} of {len(failed) + done} images failed\n" + "\n".join(f"  {why}" for why in failed))
        return 3 if done else 2
    return 0


def _predict_rows(segment: Callable[..., Result], path: Path, dims: int, target: Path, failed: list[str]) -> int:
    """The images of an .npz to the masks of one; how many were written."""
    results: list[Result] = []
    for name, volume in read_arrays(path, dims).items():
        with _failing(failed, path, f"{path}: {name!r}: "):
            results.append(segment(volume))
    if results:
        written = write_arrays(target, [one.in_file() for one in results], [one.volume for one in results])
        sys.stderr.write(f"{written}\n")
    return len(results)


@contextmanager
def _failing(failed: list[str], path: Path, row: str = "") -> Iterator[None]:
    """Note why an image failed; the others are written."""
    try:
        yield
    except UsageError as error:
        failed.append(row + str(error))
    except MemoryError:
        failed.append(row + f"{path}: needs more memory than is free; cut the image")


def _images(path: Path) -> list[Path]:
    """A file; the folder of a DICOM series; or all images and series of a folder."""
    if not path.is_dir():
        return [path]
    found = sorted(
        one
        for one in path.iterdir()
        if (suffix_of(one) in READ and one.is_file()) or (one.is_dir() and holds_dicom(one))
    )
    if holds_dicom(path):
        if found:
            raise UsageError(f"{path}: holds DICOM files and other images; give a folder with one kind")
        return [path.resolve()]  # its name is that of the case
    if not found:
        raise UsageError(f"{path}: holds no image that is read here ({', '.join(READ)}, DICOM series)")
    return found


def _complain(message: str) -> None:
    sys.stderr.write(f"error: {message}\n")
