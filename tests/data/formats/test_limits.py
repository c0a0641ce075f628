"""Bombs and large images: judged by their headers, read and measured a slab at a time, and never at the cost of others."""

import gzip
import os
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tifffile

from tests.data.quality.test_faults import SHAPE, bombs, gz_bomb, nifti, nifti_set, png_set, random, shapes
from ulna.cli import main as cli
from ulna.data.formats import limits
from ulna.data.formats import slabs as slabs_module
from ulna.data.formats.limits import allowing, is_memory_error, memory_error
from ulna.data.formats.slabs import fill
from ulna.data.formats.source import Source
from ulna.data.layout.case import Case
from ulna.data.quality import needs
from ulna.data.quality.check import check
from ulna.data.quality.scan import scan_case
from ulna.errors import DataError, UsageError
from ulna.planning.plan import whitened
from ulna.training.samples import PreparedCases

LARGE = (128, 256, 128)  # 8 MB of int16


def one_bomb_of_ten(root):
    for number in range(10):
        for folder, array in (("images", random(number, *SHAPE)), ("labels", shapes(SHAPE))):
            (root / folder).mkdir(parents=True, exist_ok=True)
            nifti(root / folder / f"c{number}.nii.gz", array)
    gz_bomb(root / "images" / "c4.nii.gz", (1000, 1000, 50), 50_000_000)
    return root


@pytest.fixture
def small(monkeypatch):
    """A program that takes hardly any memory itself."""
    monkeypatch.setattr(limits, "held_bytes", lambda: 1000.0)
    for name in ("LOADED", "WORKING", "KEPT"):
        monkeypatch.setattr(needs, name, 0)


@pytest.mark.parametrize(
    ("bound", "words"),
    [
        (
            "--max-ram=0.02",
            "unpacks to 0.05 GB and needs 0.11 GB at least, more than --max-ram 0.02 allows",
        ),
        ("--max-pixels=1000000", "declares 1000 x 1000 x 50 pixels, more than --max-pixels 1000000 allows"),
    ],
)
@pytest.mark.usefixtures("small")
def test_nine_cases_are_judged_beside_a_bomb(tmp_path, capsys, bound, words):
    root = one_bomb_of_ten(tmp_path)
    nifti(root / "labels" / "c7.nii.gz", shapes(SHAPE) * 3)
    assert cli.run(["check", str(root), bound, "--quiet"]) == 2
    told = capsys.readouterr().out
    assert f"c4.nii.gz: {words}" in told and "-> raise " in told
    assert "the label values found are 0, 1, 3" in told and "in 10 cases" in told
    report = check(root, max_ram=0.02)
    assert sum(bool(one.image) for one in report.scans) == 9


@pytest.mark.usefixtures("small")
def test_every_header_is_compared_with_the_bounds_before_a_pixel_is_decoded(tmp_path, monkeypatch):
    root = bombs(tmp_path / "pairs")
    head = "NRRD0004\ntype: uchar\ndimension: 2\nsizes: 3000 2000\nencoding: gzip\n\n"
    (root / "images" / "g.nrrd").write_bytes(head.encode() + gzip.compress(bytes(6_000_000)))
    mha = "ObjectType = Image\nNDims = 2\nDimSize = 3000 2000\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n"
    (root / "images" / "h.mha").write_bytes(mha.encode() + bytes(6_000_000))
    np.savez_compressed(tmp_path / "train.npz", images=np.zeros((5, 3000, 2000), np.uint8))
    monkeypatch.setattr(slabs_module, "fill", pytest.fail)
    for options, words in (
        ({"max_ram": 0.005}, "--max-ram 0.005 allows"),
        ({"max_pixels": 4_000_000}, "--max-pixels 4000000"),
    ):
        told = [*check(root, **options).problems, *check(tmp_path / "train.npz", **options).problems]
        names = {Path(one.file).name for one in told if words in one.what}
        assert names == {"c1.nii.gz", "c3.png", "d.npy", "e.tif", "f.jpg", "g.nrrd", "h.mha", "train.npz"}


@pytest.mark.parametrize("options", [{"max_ram": 0}, {"max_ram": -1.0}, {"max_pixels": 0}, {"max_ram": float("nan")}])
def test_bounds_that_allow_nothing_are_refused(tmp_path, options):
    with pytest.raises(UsageError, match="must be above 0"):
        check(png_set(tmp_path), **options)


@pytest.mark.usefixtures("small")
def test_bounds_end_with_the_call(tmp_path):
    root = one_bomb_of_ten(tmp_path)
    with pytest.raises(ZeroDivisionError), allowing(10, None):
        assert (
            not check(root, max_ram=0.02).ok
            and not scan_case(Case("c", (Source(root / "images/c0.nii.gz"),), None), None).image
        )
        raise ZeroDivisionError
    assert check(root).scans[4].image


def test_what_is_packed_beyond_the_header_is_not_unpacked(tmp_path):
    head = "NRRD0004\ntype: uchar\ndimension: 2\nsizes: 20 30\nencoding: gzip\n\n"
    path = tmp_path / "a.nrrd"
    path.write_bytes(head.encode() + gzip.compress(bytes(100_000_000)))
    tracemalloc.start()
    one = scan_case(Case("a", (Source(path),), None), None)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()
    assert "is damaged: more than the 600 bytes of its header are packed in it" in one.problems[0].what


def large_files(root):
    rng = np.random.default_rng(0)
    array = rng.integers(0, 2000, LARGE).astype(np.int16)
    for name, affine in (("a.nii", np.eye(4)), ("b.nii.gz", np.diag([2.0, 2, 2, 1]))):
        nib.save(nib.Nifti1Image(array % 7 if name == "b.nii.gz" else array, affine), root / name)
    scaled = nib.Nifti1Image(array, np.eye(4))
    scaled.header.set_slope_inter(0.5, 3)
    nib.save(scaled, root / "c.nii")
    np.save(root / "d.npy", array)
    np.save(root / "e.npy", np.asfortranarray(array.astype(np.float64)))
    head = f"type: short\ndimension: 3\nsizes: {' '.join(map(str, LARGE))}\nendian: little\n"
    (root / "f.nrrd").write_bytes(f"NRRD0004\n{head}encoding: raw\n\n".encode() + array.tobytes("F"))
    (root / "g.nrrd").write_bytes(f"NRRD0004\n{head}encoding: gzip\n\n".encode() + gzip.compress(array.tobytes("F"), 1))
    mha = f"NDims = 3\nDimSize = {' '.join(map(str, LARGE))}\nElementType = MET_SHORT\n"
    packed = zlib.compress(array.tobytes("F"), 1)
    end = f"CompressedData = True\nCompressedDataSize = {len(packed)}\nElementDataFile = LOCAL\n"
    (root / "h.mha").write_bytes((mha + end).encode() + packed)
    tifffile.imwrite(root / "i.tif", array.astype(np.uint16), photometric="minisblack")
    return array


def test_reading_and_measuring_take_little_more_than_the_image(tmp_path, monkeypatch):
    monkeypatch.setattr(slabs_module, "SLAB", 1 << 18)
    array = large_files(tmp_path)
    wanted = {"b.nii.gz": array % 7, "c.nii": array * 0.5 + 3}
    for path in sorted(tmp_path.iterdir()):
        case = Case("a", (Source(path),), None)
        size = case.read_image().array.nbytes
        assert np.array_equal(case.read_image().array[0], wanted.get(path.name, array)), path.name
        tracemalloc.start()
        one = scan_case(case, None)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert not one.problems and peak < 1.5 * size, f"{path.name}: {peak / size:.2f}"
        assert one.image[0].mean == pytest.approx(float(wanted.get(path.name, array).mean(dtype=float)))


def test_a_label_map_is_measured_in_little_more_than_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(slabs_module, "SLAB", 1 << 18)
    array = large_files(tmp_path)
    nib.save(nib.Nifti1Image((array > 1000).astype(np.uint8), np.eye(4)), tmp_path / "l.nii.gz")
    case = Case("a", (Source(tmp_path / "a.nii"),), Source(tmp_path / "l.nii.gz"))
    case.read_labels()
    tracemalloc.start()
    one = scan_case(case, None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert not one.problems and peak < 1.5 * array.nbytes + 0.5 * array.nbytes
    assert one.foreground[0].min == 1001 and one.label_values[1] == np.count_nonzero(array > 1000)


def test_no_slab_is_larger_than_it_should_be(monkeypatch):
    monkeypatch.setattr(slabs_module, "SLAB", 1 << 12)
    for shape in ((5000,), (40, 50), (30, 40, 20), (7, 6, 5, 4), (1, 9, 1, 1000), (0, 3)):
        values = np.arange(int(np.prod(shape)), dtype="<u2").reshape(shape, order="F")
        data, asked = values.tobytes("F"), []

        def read(count, data=data, asked=asked):
            asked.append(count)
            begin = sum(asked) - count
            return data[begin : begin + count]

        target = np.zeros(shape, np.uint16)
        assert fill(target, read, values.dtype) == len(data)
        assert np.array_equal(target, values) and max(asked, default=0) <= 1 << 12


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell the peak of a process")
def test_the_peak_of_a_process_is_at_most_one_and_a_half_images(tmp_path):
    array = np.random.default_rng(0).integers(0, 2000, (512, 512, 400)).astype(np.int16)  # 210 MB
    nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "large.nii")
    nib.save(nib.Nifti1Image(array[:9, :9, :9], np.eye(4)), tmp_path / "small.nii")
    code = """
import sys
from pathlib import Path
from ulna.data.layout.case import Case
from ulna.data.formats.source import Source
from ulna.data.quality.scan import scan_case
for name in ("small.nii", "large.nii"):
    assert not scan_case(Case("a", (Source(Path(sys.argv[1]) / name),), None), None).problems
    print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    made = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True, env=environment
    )
    small, large = (int(line) * 1024 for line in made.stdout.split())
    assert large - small < 1.5 * array.nbytes


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: ...")])
@pytest.mark.parametrize("place", ["ulna.data.formats.read.read_nifti", "ulna.data.quality.scan.measure"])
def test_a_case_that_memory_does_not_hold_is_named_and_the_others_are_judged(tmp_path, monkeypatch, error, place):
    module, name = place.rsplit(".", 1)
    if name == "read_nifti" and not isinstance(error, MemoryError):
        pytest.skip("readers do not use torch")
    real, calls = getattr(sys.modules[module], name), []

    def failing(*args, **options):
        calls.append(args)
        if len(calls) == 3:
            raise error
        return real(*args, **options)

    monkeypatch.setattr(place, failing)
    report = check(nifti_set(tmp_path))
    (problem,) = report.problems
    assert problem.what == "needs more memory than is free" and problem.remedy.startswith("cut it into smaller images")
    assert len(report.scans) == 3 and sum(bool(one.label_values) for one in report.scans) >= 2


def test_training_and_planning_name_the_case_that_memory_does_not_hold(tmp_path, monkeypatch):
    root = png_set(tmp_path)
    case = Case("c0", (Source(root / "images" / "c0.png"),), Source(root / "labels" / "c0.png"))

    def full(*_):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")

    for module in ("ulna.training.samples", "ulna.planning.plan"):
        monkeypatch.setattr(f"{module}.prepare", full)
    with pytest.raises(DataError, match=r"c0\.png: needs more memory than is free"):
        PreparedCases([case], None, keep_bytes=0)[0]
    with pytest.raises(DataError, match=r"c0\.png: needs more memory than is free"):
        whitened(None, [case])


def test_what_is_an_error_of_memory():
    assert is_memory_error(MemoryError()) and not is_memory_error(ValueError("out of memory"))
    assert is_memory_error(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert not is_memory_error(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert "needs more memory than is free" in str(memory_error("a.nii"))
