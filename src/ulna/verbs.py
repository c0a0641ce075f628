"""The verbs of ulna: where each one lives, and what it does in one line. Rooms are imported only when called.

`command` and `to_argv` write a call of one as a person types it.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Any, NamedTuple


class Verb(NamedTuple):
    """One function of the public interface, on the command line as in Python."""

    place: str  # module:function
    summary: str  # the first line of its docstring; a test holds the two together
    computes: bool = False  # networks run in it, or are planned: the command line tunes the memory of its process
    paths: bool = False  # its words are files and folders that must be there
    flags: str = ""  # those that take a value
    switches: str = ""  # those that take none
    gone: bool = False  # what its flags name need not be there any more


# flags whose value is a file or folder that must be there
PATH_FLAGS = ("--plan", "--beside", "--data", "--init")


VERBS: dict[str, Verb] = {
    "demo": Verb(
        "ulna.demonstration:demo",
        "Make a small synthetic data set and run the whole path on it: check, train, predict, evaluate, report.",
        computes=True,
        flags="--out",
        switches="--quick",
    ),
    "check": Verb(
        "ulna.data.quality.check:check",
        "Read every case of a data set to its last byte and list every problem at once.",
        paths=True,
        flags="--fix --max-pixels --max-ram --series --dicom",
    ),
    "plan": Verb(
        "ulna.training.estimate:plan",
        "Show how a data set would be trained on, each choice with its reason, and what that takes: memory and hours.",
        computes=True,
        paths=True,
        flags="--model --max-ram --recipe --set --seed --fold --devices --out --preview",
        switches="--untimed",
    ),
    "models": Verb("ulna.networks.profile.cost:models", "All named networks, or the one of that name."),
    "recipes": Verb(
        "ulna.recipe.library:recipes",
        "All recipes that come with ulna, or the one of that name: the protocols of the papers.",
    ),
    "train": Verb(
        "ulna.training.train:train",
        "Train a network on a folder of images and evaluate it on the cases kept aside.",
        computes=True,
        paths=True,
        flags="--model --out --epochs --max-hours --budget --seed "
        "--fold --folds --split --recipe --plan --init --set --jobs --on --slurm --devices --threads --max-ram "
        "--pseudonymise --track",
        switches="--dry-run --resume --allow-code",
    ),
    "predict": Verb(
        "ulna.inference.predict:predict",
        "Segment images with a trained run; masks come back in the input's own format, geometry and name.",
        computes=True,
        paths=True,
        flags="--out --split --level --format --series --dicom --threads --pseudonymise --max-ram --jobs --on --slurm",
        switches="--tta --probabilities --overwrite --strict --no-post-processing --instances --report --allow-code "
        "--dry-run",
    ),
    "evaluate": Verb(
        "ulna.evaluation.evaluate:evaluate",
        "Compare predicted masks with references, case by case and class by class.",
        paths=True,
        flags="--out --by --metrics --pseudonymise --max-ram",
    ),
    "explain": Verb(
        "ulna.explaining.explain:explain",
        "Show what the answer for one image depends on and how sure it is: saliency, uncertainty, Grad-CAM, attention.",
        computes=True,
        paths=True,
        flags="--out --case --target --series --dicom",
        switches="--tta --allow-code",
    ),
    "prune": Verb(
        "ulna.study.prune:prune",
        "Measure every pruning level of a deep-supervised run on this machine, or write the smaller network of one.",
        computes=True,
        paths=True,
        flags="--data --out --level --head --latency --pseudonymise",
    ),
    "compare": Verb(
        "ulna.study.compare:compare",
        "Train several networks alike, and say with statistics which is better.",
        computes=True,
        paths=True,
        flags="--models --out --seeds --folds --split --match --vary --epochs "
        "--max-hours --budget --recipe --set --margin --jobs --on --slurm --threads --beside --pseudonymise --track",
        switches="--one-at-a-time --dry-run",
    ),
    "export": Verb(
        "ulna.exporting.export:export",
        "Write a run as one file with the whole pipeline, which `ulna-runtime` predicts with, without torch.",
        computes=True,
        flags="--out --data --level --format --precision --most-dice-lost --licence",
        switches="--with-weights --overwrite --allow-code",
    ),
    "info": Verb(
        "ulna.exporting.info:info",
        "Print the model card of a run or of an exported file: what it was trained on, its scores, limits and licence.",
        flags="--out",
    ),
    "zoo": Verb(
        "ulna.exporting.zoo:zoo",
        "List the small segmenters that come with ulna-runtime: `zoo:NAME` stands for one wherever a file is asked for.",
    ),
    "convert": Verb(
        "ulna.data.converting:convert",
        "Write an image in another format with the same values and the same place in space.",
        flags="--spacing",
        switches="--labels --overwrite",
    ),
    "import-weights": Verb(
        "ulna.importing.weights:import_weights",
        "Write weights that others saved with torch as a safetensors file, for `ulna train --init` or an encoder.",
        paths=True,
        flags="--out --prefix --rename",
        switches="--overwrite",
    ),
    "serve": Verb(
        "ulna.serving.serve:serve",
        "Serve a segmenter over HTTP: send an image or a zip of a DICOM series, get its mask in its own format.",
        paths=True,
        flags="--host --port --token --name --queue --keep-minutes --max-megabytes --max-pixels --max-seconds "
        "--max-ram --max-disk --threads",
    ),
    "cache": Verb(
        "ulna.data.prepared.cache:cache",
        "Show the prepared cases that trainings keep on this disk, by data set, or remove them.",
        flags="--older-than --data",
        switches="--clear",
        gone=True,
    ),
    "view": Verb(
        "ulna.viewer.view:view",
        "Look at an image, and at a mask over it, in the browser; nothing leaves this machine.",
        paths=True,
        flags="--port",
        switches="--no-browser",
    ),
    "bench": Verb(
        "ulna.benchmarking.bench:bench",
        "Measure what the choices of a network cost, and what they gain, on this machine.",
        computes=True,
        flags="--out --epochs --max-hours --seeds --set --jobs --on --slurm --threads",
    ),
}


def find(place: str) -> Any:
    """Import what `module:name` names."""
    module, name = place.split(":")
    return getattr(import_module(module), name)


def command(words: Iterable[object]) -> str:
    """A command line of ulna as a person types it.

    Example:
        >>> command(["predict", "run", "my images", *to_argv({"--out": "masks"})])
        "ulna predict run 'my images' --out masks"
    """
    return shlex.join(["ulna", *map(str, words)])


def to_argv(flags: Mapping[str, object]) -> list[str]:
    """Flags as words: True is the flag alone, None and False are left out, a list repeats the flag.

    Example:
        >>> to_argv({"--tta": True, "--level": None, "--seeds": 0, "--set": ["a=1", "b=2"]})
        ['--tta', '--seeds', '0', '--set', 'a=1', '--set', 'b=2']
    """
    argv: list[str] = []
    for flag, value in flags.items():
        values = value if isinstance(value, list | tuple) else [value]
        for one in values:
            if one is not None and one is not False:
                argv += [flag] if one is True else [flag, str(one)]
    return argv
