"""Files that are damaged or were made to do harm are refused before anything in them is run."""

import hashlib
import json
import struct
import zipfile

import onnx
import pytest

from packages.runtime.tests.conftest import plan_for, recipe_of
from ulna_runtime import UsageError, bundle, load
from ulna_runtime.graph_check import check_graph


@pytest.fixture
def members(flat):
    return flat.members(plan_for(2), recipe_of(flat.model, flat.architecture))


@pytest.fixture
def file(members, tmp_path):
    path = tmp_path / "a.ulna"
    bundle.write_bundle(path, members)
    return path


@pytest.fixture(autouse=True)
def nothing_is_run(monkeypatch, request):
    """No graph reaches onnxruntime."""
    if "whole" not in request.node.name:
        monkeypatch.setattr("onnxruntime.InferenceSession", None)


def rewritten(path, change):
    """The file with its members changed, in a zip that is sound."""
    with zipfile.ZipFile(path) as archive:
        parts = {info.filename: archive.read(info) for info in archive.infolist()}
    change(parts)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    return path


def relisted(path, members):
    """The file with these members and a manifest that fits them."""
    bundle.write_bundle(path, members)
    return path


def test_a_whole_file_is_read_and_is_the_same_whenever_it_is_written(file, members, tmp_path):
    other = tmp_path / "b.ulna"
    digest = bundle.write_bundle(other, members)
    assert other.read_bytes() == file.read_bytes()
    assert load(file).digest == digest == bundle.read_bundle(file).digest


def test_a_changed_member_is_refused(file):
    def change(parts):
        data = bytearray(parts["networks/0.onnx"])
        data[len(data) // 2] ^= 1
        parts["networks/0.onnx"] = bytes(data)

    with pytest.raises(UsageError, match=r"a\.ulna: the digest of networks/0\.onnx does not fit"):
        load(rewritten(file, change))


def test_a_changed_card_is_refused(file):
    with pytest.raises(UsageError, match=r"card\.json has"):
        bundle.read_bundle(rewritten(file, lambda parts: parts.update({"card.json": b"{}"})), graphs=False)


def test_a_manifest_that_fits_changed_members_but_not_the_digest_is_refused(file):
    def change(parts):
        parts["card.json"] = b'{"model": "better"}'
        manifest = json.loads(parts["manifest.json"])
        digest = hashlib.sha256(parts["card.json"]).hexdigest()
        manifest["members"]["card.json"] = {"bytes": len(parts["card.json"]), "sha256": digest}
        parts["manifest.json"] = json.dumps(manifest).encode()

    with pytest.raises(UsageError, match="its digest does not fit its members"):
        load(rewritten(file, change))


@pytest.mark.parametrize("share", [0.0, 0.2, 0.6, 0.99])
def test_a_file_that_is_cut_short_is_refused(file, share):
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(UsageError, match="is damaged or no exported file"):
        load(file)


def test_damaged_bytes_are_refused_wherever_they_are(file):
    whole = file.read_bytes()
    for place in range(40, len(whole) - 1, len(whole) // 60):
        data = bytearray(whole)
        data[place] ^= 0xFF
        file.write_bytes(data)
        try:
            found = bundle.read_bundle(file)
        except UsageError:
            continue
        assert found.digest  # a field of the zip that says nothing about the members
        assert found.graphs["networks/0.onnx"]


@pytest.mark.parametrize(
    "name", ["../evil.onnx", "networks/../../x.onnx", "/etc/x.onnx", "code.py", "networks/a/b.onnx"]
)
def test_other_members_are_refused(file, name):
    with pytest.raises(UsageError, match="which an exported file does not have"):
        load(rewritten(file, lambda parts: parts.update({name: b"x"})))


def test_a_member_that_is_not_listed_or_missing_is_refused(file):
    with pytest.raises(UsageError, match="its manifest and its members differ"):
        load(rewritten(file, lambda parts: parts.update({"networks/9.onnx": b"x"})))
    with pytest.raises(UsageError, match="its manifest and its members differ"):
        load(rewritten(file, lambda parts: parts.pop("networks/9.onnx") and parts.pop("networks/0.onnx")))


def test_links_are_refused(members, file):
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in {"manifest.json": b"{}", **members}.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (0o120777 if name == "card.json" else 0o100644) << 16
            archive.writestr(info, data)
    with pytest.raises(UsageError, match=r"'card\.json' is a link"):
        load(file)


def test_members_that_would_unpack_to_too_much_are_refused(file):
    data = rewritten(file, lambda parts: parts.update({"card.json": b" " * (bundle.MOST_TEXT + 1)}))
    with pytest.raises(UsageError, match="of which 16777216 are read"):
        load(data)


def test_graphs_that_are_packed_as_no_network_is_are_refused(members, tmp_path):
    """A few kilobytes that would fill the memory."""
    path = relisted(tmp_path / "a.ulna", members | {"networks/0.onnx": bytes(3 * bundle.SMALL)})
    assert path.stat().st_size < 50_000
    with pytest.raises(UsageError, match=r"'networks/0\.onnx' would unpack \d+ bytes to 3145728"):
        load(path)


def test_encrypted_members_and_two_of_one_name_are_refused(file):
    data = bytearray(file.read_bytes())
    place = data.index(b"PK\x01\x02")
    data[place + 8] |= 1  # the flag in the directory
    damaged = file.with_name("b.ulna")
    damaged.write_bytes(data)
    with pytest.raises(UsageError, match="is encrypted"):
        load(damaged)
    with zipfile.ZipFile(file, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("card.json", b"{}")
    with pytest.raises(UsageError, match="has two members of one name"):
        load(file)


def test_a_member_that_is_longer_than_its_directory_says_is_refused(file):
    """The size in the directory of a zip is no promise: what is read is bounded by it."""
    data = bytearray(file.read_bytes())
    place = data.index(b"PK\x01\x02")
    (length,) = struct.unpack_from("<I", data, place + 24)
    struct.pack_into("<I", data, place + 24, length - 1)
    file.write_bytes(data)
    with pytest.raises(UsageError):
        load(file)


def test_graphs_with_values_in_other_files_are_refused(members, tmp_path):
    model = onnx.load_from_string(members["networks/0.onnx"])
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    path = relisted(tmp_path / "a.ulna", members | {"networks/0.onnx": model.SerializeToString()})
    with pytest.raises(UsageError, match=r"networks/0\.onnx: its graph reads values from another file"):
        load(path)


def test_values_in_other_files_are_found_however_deep_they_lie():
    tensor = onnx.TensorProto(data_location=onnx.TensorProto.EXTERNAL, name="w")
    constant = onnx.helper.make_node("Constant", [], ["w"])
    constant.attribute.add(name="value", type=onnx.AttributeProto.TENSOR, t=tensor)
    graph = onnx.GraphProto(node=[constant], name="inner")
    for _ in range(3):
        node = onnx.NodeProto(op_type="If")
        node.attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH, g=graph)
        graph = onnx.GraphProto(node=[node], name="outer")
    with pytest.raises(UsageError, match="external data"):
        check_graph(onnx.ModelProto(graph=graph).SerializeToString(), "x")
    function = onnx.FunctionProto(name="f", domain="own", node=[constant])
    with pytest.raises(UsageError, match="external data"):
        check_graph(onnx.ModelProto(graph=onnx.GraphProto(name="g"), functions=[function]).SerializeToString(), "x")


def test_foreign_operators_and_no_graphs_are_refused():
    node = onnx.NodeProto(op_type="Run", domain="com.example")
    with pytest.raises(UsageError, match=r"operators of 'com\.example'"):
        check_graph(onnx.ModelProto(graph=onnx.GraphProto(node=[node])).SerializeToString(), "x")
    for data in (b"", b"\xff" * 20, b"not a graph", b"\x3a\xff\xff\x01"):
        with pytest.raises(UsageError, match="is no ONNX graph that can be read"):
            check_graph(data, "x")


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("plan", "patch"), [16]),
        (("plan", "patch"), [16, -1]),
        (("plan", "format"), 1),
        (("plan", "normalization"), []),
        (("plan", "in_channels"), "3"),
        (("inference", "overlap"), 1.5),
        (("inference", "mesh_step"), 0),
        (("inference", "post_processing"), "no"),
        (("graphs", "files"), []),
        (("graphs", "divisor"), [0, 2]),
        (("graphs", "kind"), "other"),
    ],
)
def test_a_pipeline_that_cannot_be_is_refused(members, tmp_path, where, value):
    values = json.loads(members["pipeline.json"])
    values["members"][0][where[0]][where[1]] = value
    path = relisted(tmp_path / "a.ulna", members | {"pipeline.json": json.dumps(values).encode()})
    with pytest.raises(UsageError, match=r"a\.ulna: its pipeline\.json cannot be right"):
        load(path)


@pytest.mark.parametrize("text", [b"[1]", b"{", b'{"members": NaN}', b'{"a": 1e999}', b"[" * 100_000, b"\xff"])
def test_text_that_is_no_object_is_refused(members, tmp_path, text):
    path = relisted(tmp_path / "a.ulna", members | {"pipeline.json": text})
    with pytest.raises(UsageError, match=r"pipeline\.json is no JSON object that can be read"):
        load(path)


def test_what_is_no_file_or_of_another_version_is_said(file, tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        load(tmp_path / "none.ulna")
    with pytest.raises(UsageError, match="cannot be read"):
        load(tmp_path)


def of_version(value):
    def change(parts):
        parts["manifest.json"] = json.dumps(json.loads(parts["manifest.json"]) | {"version": value}).encode()

    return change


@pytest.mark.parametrize("value", [3, 0, -1, "1", True, 1.5, None, [1]])
def test_a_newer_version_and_what_is_none_is_refused(file, value):
    with pytest.raises(UsageError, match=r"a\.ulna: has version .*, this program reads 1 to 2; install a newer"):
        load(rewritten(file, of_version(value)))


def test_a_whole_file_of_the_first_version_is_read_and_cleans_nothing(file):
    segment = load(rewritten(file, of_version(1)))
    assert segment.calibration is None
    assert segment.members[0].settings.post_processing
