"""Reading a DICOM series: time beside SimpleITK's, in turn in one process, and memory in processes of their own.

    python benchmarks/dicom.py                       # 512 x 512 x 600, about 300 MB, made in a temporary folder
    python benchmarks/dicom.py --slices 60 --rounds 3

Both read the folder anew every round: what ulna knows of headers is forgotten before. The files lie in the system's cache.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from measure import conditions, write

_MEMORY = """
import sys
from pathlib import Path
from dicom import read_by_{name}, peak_mb
read_by_{name}(Path(sys.argv[2]).parent / "tiny")
before = peak_mb()
read_by_{name}(Path(sys.argv[2]))
print(peak_mb() - before)
"""


def make_series(folder: Path, slices: int, size: int) -> None:
    """Uncompressed CT slices of 16 bits."""
    import pydicom

    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    study, series, frame = (pydicom.uid.generate_uid() for _ in range(3))
    for number in range(slices):
        made: Any = pydicom.Dataset()
        made.SOPClassUID, made.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", pydicom.uid.generate_uid()
        made.StudyInstanceUID, made.SeriesInstanceUID, made.FrameOfReferenceUID = study, series, frame
        made.PatientName, made.PatientID, made.Modality, made.SeriesDescription = "A^B", "1", "CT", "made"
        made.Rows, made.Columns, made.SamplesPerPixel, made.PhotometricInterpretation = size, size, 1, "MONOCHROME2"
        made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 16, 12, 11, 0
        made.ImageOrientationPatient, made.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, number]
        made.PixelSpacing, made.SliceThickness = [0.7, 0.7], 1
        made.RescaleIntercept, made.RescaleSlope, made.InstanceNumber = -1024, 1, number + 1
        made.PixelData = random.integers(0, 4096, (size, size)).astype("<u2").tobytes()
        made.file_meta = pydicom.dataset.FileMetaDataset()
        made.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        made.save_as(folder / f"{number:04}", enforce_file_format=True)


def read_by_ulna(folder: Path) -> Any:
    """(k, j, i) values."""
    from ulna.data.formats.dicom import finding
    from ulna.data.formats.dicom.choosing import Wishes, series_in
    from ulna.data.formats.read import read_image

    finding._header.cache_clear()
    sources, _ = series_in(folder, Wishes())
    return read_image(sources, 3).array[0].T


def read_by_simpleitk(folder: Path) -> Any:
    """(k, j, i) values, and the image whose memory they lie in."""
    import SimpleITK

    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    return SimpleITK.GetArrayViewFromImage(image), image


def peak_mb() -> float:
    """Peak of this process."""
    from ulna.kernels.allocator import peak_memory_mb

    return float(peak_memory_mb())


def memory(name: str, folder: Path) -> float:
    """MB that reading the folder adds to the peak of a fresh process that has read a small one."""
    code = _MEMORY.format(name=name)
    done = subprocess.run(
        [sys.executable, "-c", code, "-", str(folder)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent,
    )
    return float(done.stdout)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slices", type=int, default=600)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder, readers = Path(place) / "series", {"ulna": read_by_ulna, "simpleitk": read_by_simpleitk}
        make_series(folder, asked.slices, asked.size)
        make_series(Path(place) / "tiny", 3, 16)
        values, _kept = read_by_simpleitk(folder)
        assert np.array_equal(read_by_ulna(folder), values)
        del values, _kept
        seconds: dict[str, list[float]] = {name: [] for name in readers}
        for number in range(asked.rounds):
            for name in sorted(readers, reverse=number % 2 == 1):
                start = time.perf_counter()
                readers[name](folder)
                seconds[name].append(time.perf_counter() - start)
        peaks = {name: memory(name, folder) for name in readers}
    stored = asked.slices * asked.size**2 * 2 / 2**20
    ratios = [own / other for own, other in zip(seconds["ulna"], seconds["simpleitk"], strict=True)]
    for name, taken in seconds.items():
        print(
            f"{name:<10} {statistics.median(taken):6.2f} s   +{peaks[name]:6.0f} MB, "
            f"{peaks[name] / stored:.2f} times the values"
        )
    print(f"ulna / SimpleITK: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    shape = [asked.slices, asked.size, asked.size]
    write(
        "dicom",
        {"shape": shape, "seconds": seconds, "ratios": ratios, "peak_mb": peaks, "stored_mb": stored, **conditions()},
    )


if __name__ == "__main__":
    main()
