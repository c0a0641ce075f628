"""`benchmarks/large_images.py` at a small size: PNG, BigTIFF, a pyramid and OME-Zarr give one mask, whatever the limit."""

import importlib
import re
import sys
from pathlib import Path

import pytest

from tests.inference.test_bounded import narrow, peak_of
from ulna.cli import main as cli
from ulna.inference import bounded

zarr = pytest.importorskip("zarr")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def program(monkeypatch, capfd):
    """The script, its calls of `ulna` made here."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    before = set(sys.modules)
    module = importlib.import_module("large_images")

    def measured(arguments, threads):
        capfd.readouterr()
        code = cli.run(arguments)
        said = [line for text in capfd.readouterr() for line in text.splitlines() if line.strip()]
        return {"peak": 0, "seconds": 0.0, "code": code, "said": said}

    monkeypatch.setattr(module, "measured", measured)
    yield module
    for name in {"large_images", "measure", "memory"} - before:
        sys.modules.pop(name, None)


@pytest.mark.slow
def test_every_format_gives_one_mask_and_too_little_is_refused(program, monkeypatch, tmp_path, capfd):
    made = narrow(monkeypatch, 3)
    monkeypatch.setattr(bounded, "PREPARING", 400_000)
    rows = []
    monkeypatch.setattr(program, "write", lambda name, found: rows.extend(found["rows"]))
    sizes = ["--side", "600", "--patch", "256", "--limits", "8", "--folder", str(tmp_path), "--out", "x"]
    monkeypatch.setattr(sys, "argv", ["large_images.py", *sizes, "--formats", "zarr", "tiff"])
    program.main()
    assert len(rows) == 8 and all(row["equal"] for row in rows) and len(made) == 4
    assert {row["kind"] for row in rows} == set(program.KINDS)
    assert all("image.zarr image.tif" in row["told"] for row in rows)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the system does not tell what a process holds")
def test_a_png_takes_no_more_than_the_least_that_is_told(program, tmp_path):
    run = program.make_run(tmp_path / "run", 256, 4, 2)
    image = program.KINDS["png"](tmp_path / "image", program.draw(1600))
    call = ("predict", run, image, "--out", tmp_path / "out", "--max-ram")
    _, said, code = peak_of(*call, 0.2)
    told = re.search(
        r"unpacks to 0\.0[\d]+ GB and needs ([\d.]+) GB at least, more than --max-ram 0\.2", " ".join(said.split())
    )
    assert code == 2 and told, said
    limit = float(told[1])
    peak, said, code = peak_of(*call, limit)
    for _ in range(2):  # windows and mask may need more than reading does, which is told first
        if code != 2:
            break
        limit = float(re.search(r"needs ([\d.]+) GB at least", " ".join(said.split()))[1]) + 0.03
        peak, said, code = peak_of(*call, limit)
    assert code == 0, said
    assert 0.5 * limit < peak / 1e9 <= limit
