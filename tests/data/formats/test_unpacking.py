"""Chunks that unpack to more than they declare: refused with the file's name, in a small multiple of what they declare."""

import bz2
import gzip
import lzma
import struct
import sys
import time
import tracemalloc
import zlib
from contextlib import contextmanager

import numpy as np
import pytest
import tifffile

from ulna.data.formats.limits import allowing
from ulna.data.formats.opening import open_image
from ulna.data.formats.read import read_image
from ulna.data.formats.source import Source
from ulna.data.formats.unpacking import SPARE, exceeds
from ulna.errors import DataError

LARGE = 40_000_000  # bytes that a bomb unpacks to
MOST = 12_000_000  # bytes that are taken until it is refused


@pytest.fixture(scope="module", autouse=True)
def memory_is_followed():
    """Through all of the module: to stop it while threads of Zarr unpack ends the process (cpython#128679)."""
    tracemalloc.start()
    yield
    time.sleep(0.5)  # those threads have come to their ends
    tracemalloc.stop()


@contextmanager
def little(beside=0):
    """No more is taken inside than a bomb may cost, and so many bytes beside it."""
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    yield
    assert tracemalloc.get_traced_memory()[1] - before < MOST + beside


def zstd_frame(blocks, *, size=None):
    """A frame of blocks of one value, (bytes, ...), with what it says that it holds, if anything."""
    head = struct.pack("<IB", 0xFD2FB528, 0xA0 if size is not None else 0x00)
    head += struct.pack("<I", size) if size is not None else b"\x58"
    made = [
        (count << 3 | 1 << 1 | (number == len(blocks) - 1)).to_bytes(3, "little") for number, count in enumerate(blocks)
    ]
    return head + b"".join(one + b"\0" for one in made)


PACKED = {
    "zlib": zlib.compress(bytes(LARGE)),
    "gzip": gzip.compress(bytes(LARGE // 2)) * 2,
    "lzma": lzma.compress(bytes(LARGE), preset=1),
    "bz2": bz2.compress(bytes(LARGE // 2)) * 2,
    "zstd": zstd_frame([1 << 17] * 300),
    "packbits": b"\x81\0" * (LARGE // 128),
    "lz4": struct.pack("<I", LARGE),
    "blosc": b"\x02\x01\x01\x01" + struct.pack("<I", LARGE),
    "jpeg": b"\xff\xd8\xff\xc0\x00\x0b\x08" + struct.pack(">HH", 8000, 5000) + b"\x01" + bytes(8),
}


@pytest.mark.parametrize("packing", PACKED)
def test_more_than_promised_is_counted_and_not_kept(packing):
    data = PACKED[packing]
    with little():
        assert exceeds(packing, data, 1_000_000)
    assert not exceeds(packing, data, LARGE)
    assert not exceeds(packing, data[:3], 1) and not exceeds(packing, b"", 1)


def test_what_a_frame_says_counts_and_what_is_not_known_passes():
    assert exceeds("zstd", zstd_frame([100], size=LARGE), 1_000_000)
    assert not exceeds("zstd", zstd_frame([100], size=100), 100)
    assert not exceeds("snappy", bytes(100), 1)


def test_small_blocks_of_unknown_size_are_no_bomb(monkeypatch):
    flushed = b""
    for number in range(600):  # compressed blocks of 8 literals and nothing else
        block = bytes([8 << 3, *range(8), 0])
        flushed += (len(block) << 3 | 2 << 1 | (number == 599)).to_bytes(3, "little") + block
    head = struct.pack("<IB", 0xFD2FB528, 0)
    assert not exceeds("zstd", head + b"\x58" + flushed, 4800)
    assert not exceeds("zstd", zstd_frame([100] * 3000), 300_000)
    monkeypatch.setitem(sys.modules, "numcodecs.zstd", None)  # without a library, by the window
    assert not exceeds("zstd", head + b"\x00" + flushed, 4800) and exceeds("zstd", head + b"\x58" + flushed, 4800)


def test_a_dictionary_that_memory_does_not_hold_is_refused():
    data = bytearray(lzma.compress(bytes(1000), format=lzma.FORMAT_ALONE))
    assert not exceeds("lzma", bytes(data), 1000)
    struct.pack_into("<I", data, 1, 1 << 30)
    assert exceeds("lzma", bytes(data), 1000)
    raw = {"format": lzma.FORMAT_RAW, "filters": [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 16}]}
    bomb = lzma.compress(bytes(LARGE // 8), **raw)
    with little():
        assert exceeds("lzma", bomb, 1_000_000, raw)
    assert not exceeds("lzma", bomb, LARGE // 8, raw)
    assert exceeds("lzma", bomb, LARGE, raw | {"filters": [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 30}]})


@pytest.mark.parametrize(
    "filled", [b"\xff\xff\xff", b"\xff\x01", b"\xff\xd0", b"\0\0", b"\xff\x00", b"\xff\xe0\x00\x04\0\0"]
)
def test_a_frame_behind_bytes_without_meaning_is_found(filled):
    data = b"\xff\xd8" + filled + PACKED["jpeg"][2:]
    assert exceeds("jpeg", data, 1_000_000) and not exceeds("jpeg", data, LARGE)


def refused(path, read, beside=0):
    words = f"{path.name}: is damaged: a .* unpacks to more than its .* declare"
    with little(beside), pytest.raises(DataError, match=words):
        read()


def every_value(path):
    with open_image([Source(path)]) as image:
        image.read([slice(0, n) for n in image.volume.size])


@pytest.mark.parametrize(("name", "packing"), [("zlib", "zlib"), ("lzma", "lzma"), ("packbits", "packbits")])
def test_tiles_of_tiff(tmp_path, name, packing):
    path = tmp_path / "a.tif"
    options = {"tile": (256, 256), "compression": name, "photometric": "minisblack"}
    values = np.random.default_rng(0).integers(0, 9, (512, 512), np.uint8)
    packed = [PACKED[packing] if number == 2 else None for number in range(4)]
    tifffile.imwrite(path, values, **(options if name != "packbits" else {**options, "compression": "zlib"}))
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        offsets, counts = list(page.dataoffsets), list(page.databytecounts)
        places = page.tags["TileOffsets"].valueoffset, page.tags["TileByteCounts"].valueoffset
        kinds = page.tags["TileOffsets"].dtype_name, page.tags["TileByteCounts"].dtype_name
        compression = page.tags["Compression"].valueoffset
    data = bytearray(path.read_bytes())
    for number, one in enumerate(packed):
        if one is not None:
            offsets[number], counts[number] = len(data), len(one)
            data += one
    if name == "packbits":  # of which tifffile writes none
        struct.pack_into("<H", data, compression, 32773)
    assert not {*kinds} - {"LONG", "SHORT"}
    for place, values, kind in zip(places, (offsets, counts), kinds, strict=True):
        if kind == "SHORT" and max(values) > 65535:
            pytest.skip("this file states lengths in 16 bits")
        struct.pack_into(f"<4{'I' if kind == 'LONG' else 'H'}", data, place, *values)
    path.write_bytes(data)
    refused(path, lambda: read_image([Source(path)]))
    refused(path, lambda: every_value(path))


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("packing", ["gzip", "zstd", "blosc", "zlib", "lz4", "bz2", "lzma"])
def test_chunks_of_zarr(tmp_path, version, packing):
    zarr = pytest.importorskip("zarr")
    numcodecs = pytest.importorskip("numcodecs")
    if version == 3 and packing not in ("gzip", "zstd", "blosc"):
        pytest.skip("no codec of Zarr 3")
    make = {
        "gzip": "GZip",
        "zstd": "Zstd",
        "blosc": "Blosc",
        "zlib": "Zlib",
        "lz4": "LZ4",
        "bz2": "BZ2",
        "lzma": "LZMA",
    }
    dictionaries = 4 << 23 if packing == "lzma" else 0  # of decoders side by side, 8 MB each
    codec = getattr(numcodecs, make[packing])()
    inner = codec if version == 2 else getattr(zarr.codecs, f"{packing.capitalize()}Codec")()
    path, values = tmp_path / "a.zarr", np.ones((64, 64), np.uint16)
    group = zarr.open_group(str(path), mode="w", zarr_format=version)
    group.create_array("0", data=values, chunks=(32, 32), compressors=[inner])
    told = {"axes": [{"name": "y", "type": "space"}, {"name": "x", "type": "space"}], "datasets": [{"path": "0"}]}
    group.attrs.update({"multiscales": [told]} if version == 2 else {"ome": {"multiscales": [told]}})
    assert (read_image([Source(path)]).array == 1).all()
    chunk = path / "0" / ("1.0" if version == 2 else "c/1/0")
    chunk.write_bytes(codec.encode(bytes(LARGE)))
    refused(path, lambda: read_image([Source(path)]), beside=dictionaries)
    refused(path, lambda: every_value(path), beside=dictionaries)
    chunk.write_bytes(bytes(SPARE + 5000))  # more than it may hold, before it is read
    refused(path, lambda: every_value(path), beside=dictionaries)


@pytest.mark.parametrize("whole", [True, False])
def test_chunks_of_shards(tmp_path, whole):
    zarr = pytest.importorskip("zarr")
    path, values = tmp_path / "a.zarr", np.ones((64, 64), np.uint16)
    group = zarr.open_group(str(path), mode="w", zarr_format=3)
    group.create_array("0", data=values, chunks=(16, 16), shards=(32, 32), compressors=[zarr.codecs.GzipCodec()])
    told = {"axes": [{"name": "y", "type": "space"}, {"name": "x", "type": "space"}], "datasets": [{"path": "0"}]}
    group.attrs.update({"ome": {"multiscales": [told]}})
    box = [slice(0, 64)] * 2 if whole else [slice(0, 16)] * 2
    with open_image([Source(path)]) as image:
        assert (image.read(box) == 1).all()
    shard = path / "0" / "c" / "0" / "0"
    data = shard.read_bytes()
    index = np.frombuffer(data[-68:-4], "<u8").copy()
    bomb = gzip.compress(bytes(LARGE))
    index[0:2] = len(data) - 68, len(bomb)
    body = data[:-68] + bomb + index.tobytes()
    from numcodecs.checksum32 import CRC32C  # of the index

    sum_of = CRC32C(location="end").encode(index.tobytes())
    shard.write_bytes(data[:-68] + bomb + bytes(sum_of))
    assert len(body) == len(shard.read_bytes()) - 4

    def read():
        with open_image([Source(path)]) as image:
            image.read(box)

    refused(path, read)


def stored_as(path, codecs, values, version=3):
    """An OME-Zarr image of chunks of 128 x 128; in version 2 `codecs` is the filters, the last of which packs."""
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(str(path), mode="w", zarr_format=version)
    told = {"axes": [{"name": "y", "type": "space"}, {"name": "x", "type": "space"}], "datasets": [{"path": "0"}]}
    group.attrs.update({"multiscales": [told]} if version == 2 else {"ome": {"multiscales": [told]}})
    how = {"shape": values.shape, "dtype": values.dtype, "zarr_format": version}
    if version == 2:
        how |= {"chunks": (128, 128), "filters": codecs[:-1], "compressor": codecs[-1]}
    else:
        how |= {"chunk_shape": (128, 128), "codecs": codecs}
    array = zarr.Array.create(group.store_path / "0", **how)
    array[:] = values
    return path


def shards(*codecs, chunk=(32, 64), **options):
    import zarr.codecs as made

    return made.ShardingCodec(chunk_shape=chunk, codecs=[made.BytesCodec(), *codecs], **options)


def chains():
    """Ways that zarr stores chunks in."""
    import numcodecs
    import zarr.codecs as made
    import zarr.codecs.numcodecs as more

    plain, packed, turned = made.BytesCodec(), made.GzipCodec(), made.TransposeCodec(order=(1, 0))
    wide = {"dtype": "<u2", "astype": "<f8"}
    nested = made.ShardingCodec(chunk_shape=(64, 64), codecs=[shards(packed)])
    return {
        "turned, in shards": [turned, shards(packed)],
        "shards with a checksum": [shards(packed), made.Crc32cCodec()],
        "shards that are packed": [shards(), packed],
        "shards, their index first": [shards(packed, index_location="start")],
        "shards, their index big-endian": [shards(packed, index_codecs=[made.BytesCodec(endian="big")])],
        "shards in shards": [nested],
        "crc32": [plain, more.Blosc(), more.CRC32()],
        "crc32 at the end": [plain, more.Zlib(), more.CRC32(location="end")],
        "adler32": [plain, more.Blosc(), more.Adler32()],
        "fletcher32": [plain, more.Zstd(), more.Fletcher32()],
        "a checksum within": [plain, more.CRC32(), packed],
        "a wider type": [more.AsType(encode_dtype="<f8", decode_dtype="<u2"), plain, packed],
        "a wider scale": [more.FixedScaleOffset(offset=0, scale=1, **wide), plain, more.LZ4()],
        "lzma without a header": [plain, more.LZMA(format=3, filters=[{"id": 33, "preset": 1}])],
        "2: bits": [numcodecs.PackBits(), numcodecs.GZip()],
        "2: a wider type": [numcodecs.AsType("f8", "u2"), numcodecs.Zlib()],
        "2: crc32": [numcodecs.Blosc(), numcodecs.CRC32()],
    }


@pytest.mark.filterwarnings("ignore")  # numcodecs in Zarr 3 are no part of its specification
def test_every_way_of_storing_chunks_is_read(tmp_path):
    pytest.importorskip("zarr")
    values = np.random.default_rng(0).integers(0, 4000, (256, 256)).astype(np.uint16)
    for number, (name, codecs) in enumerate(chains().items()):
        version = 2 if name.startswith("2") else 3
        wanted = values > 2000 if "bits" in name else values
        path = stored_as(tmp_path / f"{number}.zarr", codecs, wanted, version)
        assert np.array_equal(read_image([Source(path)]).array[0], wanted), name


@pytest.mark.filterwarnings("ignore")
def test_a_shard_in_a_shard_is_looked_into(tmp_path):
    pytest.importorskip("zarr")
    import zarr.codecs as made
    from numcodecs.checksum32 import CRC32C

    inner = shards(made.GzipCodec(), chunk=(128, 128))
    whole = made.ShardingCodec(chunk_shape=(128, 128), codecs=[inner])
    path = stored_as(tmp_path / "a.zarr", [whole], np.ones((128, 128), np.uint16))
    chunk = path / "0" / "c" / "0" / "0"
    bomb, places = gzip.compress(bytes(LARGE)), CRC32C(location="end")
    within = bomb + bytes(places.encode(np.array([0, len(bomb)], "<u8").tobytes()))
    chunk.write_bytes(within + bytes(places.encode(np.array([0, len(within)], "<u8").tobytes())))
    refused(path, lambda: read_image([Source(path)]))


@pytest.mark.parametrize("meta_group", ["usual", "long", "without a length", "without a preamble"])
def test_elements_of_dicom(tmp_path, meta_group):
    pydicom = pytest.importorskip("pydicom")
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = "1.2.840.10008.1.2.1.99", "1.2.840.10008.5.1.4.1.1.2"
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    if meta_group == "long":
        meta.PrivateInformationCreatorUID, meta.PrivateInformation = "1.2.3", bytes(5000)
    one = pydicom.Dataset()
    one.file_meta, one.PatientID = meta, "x"
    pydicom.dcmwrite(tmp_path / "small.dcm", one, enforce_file_format=True)
    data = (tmp_path / "small.dcm").read_bytes()
    begin = 144 + int.from_bytes(data[140:144], "little")
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    head = data[:132] + data[144:begin] if meta_group == "without a length" else data[:begin]
    head = head[132:] if meta_group == "without a preamble" else head
    path = tmp_path / "a.dcm"
    path.write_bytes(head + packer.compress(bytes(LARGE)) + packer.flush())
    with little(), allowing(None, 0.004), pytest.raises(DataError, match=r"a\.dcm: unpacks to .* more than half"):
        read_image([Source(path)])
