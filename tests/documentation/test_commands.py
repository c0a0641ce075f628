"""The commands that README and pages print: their verbs and flags exist, and the quickstart of the README runs."""

import inspect
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from tests.places import ROOT
from ulna.cli.main import EVERYWHERE
from ulna.demonstration import make_nuclei, make_phantom
from ulna.verbs import VERBS, find

PRINTED = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)  # language, text


def commands(text: str) -> list[list[str]]:
    """The words of every `ulna VERB ...` of the blocks, without comments; a line may go on behind a backslash."""
    blocks = [inside for language, inside in BLOCK.findall(text) if language in ("", "bash")]
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if re.match(r"ulna [a-z]", line)]


@pytest.mark.parametrize("page", PRINTED, ids=lambda page: page.name)
def test_printed_commands_have_verbs_and_flags_that_exist(page):
    for _, verb, *words in commands(page.read_text(encoding="utf-8")):
        assert verb in VERBS, verb
        parameters = inspect.signature(find(VERBS[verb].place)).parameters
        known = {"--" + name.replace("_", "-") for name, one in parameters.items() if one.kind is one.KEYWORD_ONLY}
        flags = [word.partition("=")[0] for word in words if word.startswith("--")]
        assert [flag for flag in flags if flag not in known | set(EVERYWHERE)] == [], (verb, words)


def test_many_commands_are_seen():
    assert sum(len(commands(page.read_text(encoding="utf-8"))) for page in PRINTED) > 40
    assert commands("```python\nulna = 1\n```\n\nulna is\n\n```bash\nulna models \\\n  unet  # one\n```\n") == [
        ["ulna", "models", "unet"]
    ]


def run(command, folder):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def section(heading: str) -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8").partition(f"## {heading}\n")[2].partition("\n## ")[0]


SHORTER = {"--max-hours": "0.002", "--seeds": "1"}


@pytest.mark.slow
def test_the_six_commands_of_the_readme_run(tmp_path):
    """As printed, but for the hours and the seeds."""
    make_nuclei(tmp_path / "DATA", count=12, sizes=[(48, 48)])
    for name, part in (("NEW_IMAGES", "images"), ("REFERENCES", "labels")):
        shutil.copytree(tmp_path / "DATA" / part, tmp_path / name)
    printed = commands(section("Six commands"))
    assert [words[1] for words in printed] == ["check", "plan", "train", "predict", "evaluate", "compare"]
    for before in printed:
        words = [SHORTER.get(flag, word) for flag, word in itertools.pairwise(before)]
        run([sys.executable, "-m", "ulna", *words], tmp_path)
    assert len(list((tmp_path / "masks").glob("*.png"))) == 12
    assert (tmp_path / "scores" / "summary.json").is_file() and (tmp_path / "studies" / "a" / "table.md").is_file()


@pytest.mark.slow
def test_the_six_lines_of_python_of_the_readme_run(tmp_path):
    """As printed, but for the hours."""
    make_phantom(tmp_path / "DATA", count=4, size=(24, 28, 20))
    shutil.copy(next((tmp_path / "DATA" / "imagesTr").glob("*.nii.gz")), tmp_path / "scan.nii.gz")
    (lines,) = re.findall(r"```python\n(.*?)```", section("Six lines of Python"), re.S)
    assert "max_hours=1)" in lines
    run([sys.executable, "-c", lines.replace("max_hours=1)", "max_hours=0.002)")], tmp_path)
    assert (tmp_path / "mask.nii.gz").is_file()
