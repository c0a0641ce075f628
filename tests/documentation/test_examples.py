"""The scripts and the notebook of examples/ run, and say what they are meant to say."""

import ast
import json
import os
import subprocess
import sys

import pytest

from tests.places import ROOT

EXAMPLES = ROOT / "examples"
NOTEBOOK = json.loads((EXAMPLES / "first_steps.ipynb").read_text(encoding="utf-8"))
SAYS = {
    "build_networks.py": ("7,765,409 parameters", "pruned equals its head: True", "did you mean 'attention_gate'?"),
    "segment_nuclei.py": ("0 problems", "Dice 0.", "mask (64, 64) uint8"),
    "segment_volumes.py": ("head  Dice 0.", "tail  Dice 0.", "same grid: True"),
}


def run(command, folder):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(path.name, marks=[pytest.mark.slow] if path.name.startswith("segment_") else [])
        for path in sorted(EXAMPLES.glob("*.py"))
    ],
)
def test_a_script_runs(script, tmp_path):
    out = run([sys.executable, str(EXAMPLES / script), str(tmp_path / "out")], tmp_path)
    assert [words for words in SAYS[script] if words not in out] == []


def test_nothing_is_shown_in_the_notebook_that_was_not_computed():
    assert [cell for cell in NOTEBOOK["cells"] if cell.get("outputs") or cell.get("execution_count")] == []


def cells_as_script() -> str:
    """The code cells, one after the other, with the value of each last expression printed."""
    lines = []
    for cell in NOTEBOOK["cells"]:
        if cell["cell_type"] == "code":
            tree = ast.parse("".join(cell["source"]))
            if isinstance(tree.body[-1], ast.Expr):
                tree.body[-1] = ast.parse(f"print({ast.unparse(tree.body[-1].value)})").body[0]
            lines.append(ast.unparse(tree))
    return "\n".join(lines)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    try:
        import nbclient
        import nbformat
    except ImportError:  # no part of the extras: then its cells run as a script
        (tmp_path / "cells.py").write_text(cells_as_script(), encoding="utf-8")
        said = run([sys.executable, "cells.py"], tmp_path)
    else:
        book = nbformat.reads(json.dumps(NOTEBOOK), as_version=4)
        nbclient.NotebookClient(book, timeout=250, resources={"metadata": {"path": str(tmp_path)}}).execute()
        said = json.dumps(book)
    assert "cannot be told apart" in said or "is better than" in said or "equivalent" in said
    assert "not evidence about the architectures" in said
    assert "(48, 48)" in said or "48,\\n" in said
