"""Exported networks answer images of any size as the network itself does, whatever size the example had."""

import warnings

import pytest
import torch

from tests.networks.test_network import check_program
from ulna.errors import UsageError
from ulna.networks.build import build

ANY = torch.export.Dim.DYNAMIC
MULTIPLE, ODD = (64, 48), (61, 45)  # of the divisor, and not
ASKED = ((64, 48), (67, 53), (33, 90), (128, 64), (37, 41))
NARROW = {"fcn": {"base_channels": 4}, "sdu_net": {"base_channels": 4, "levels": 2}}
NETWORKS = (
    *("fcn", "unet", "unetpp", "nnunet", "attention_unet", "omega_net"),
    *("nnunet_resenc", "mednext", "unet3p", "residual_unet"),
)


def network(name, spatial_dims=2):
    torch.manual_seed(0)
    made = build(name, classes=2, spatial_dims=spatial_dims, **NARROW.get(name, {"channels": (4, 6, 8)}))
    return made.eval()


def example(size, spatial_dims):
    return torch.randn(2, 1, *size, *(32,) * (spatial_dims - 2))


def axes(spatial_dims):
    return range(2, 2 + spatial_dims)


def through_export(net, image, spatial_dims, path):
    dynamic = ({0: ANY, **dict.fromkeys(axes(spatial_dims), ANY)},)
    return torch.export.export(net, (image,), dynamic_shapes=dynamic).module()


def through_onnx(net, image, spatial_dims, path):
    dynamic = ({0: ANY, **dict.fromkeys(axes(spatial_dims), ANY)},)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about itself
        torch.onnx.export(net, (image,), path, dynamo=True, verbose=False, input_names=["x"], dynamic_shapes=dynamic)
    return session(path)


def through_torchscript(net, image, spatial_dims, path):
    dynamic = {"x": {0: "n", **{axis: f"s{axis}" for axis in axes(spatial_dims)}}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (image,), path, dynamo=False, input_names=["x"], dynamic_axes=dynamic)
    return session(path)


def session(path):
    onnxruntime = pytest.importorskip("onnxruntime")
    onnxruntime.set_default_logger_severity(4)
    made = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(made.run(None, {"x": image.numpy()})[0])


def check(net, exported, spatial_dims=2):
    for number, size in enumerate(ASKED):
        image = torch.randn(1 + number % 2, 1, *size, *(40,) * (spatial_dims - 2))
        # float32 sums of other libraries, over some hundreds of terms a layer and up to 30 layers
        torch.testing.assert_close(exported(image), net(image), atol=2e-4, rtol=2e-4)


slow = pytest.mark.slow
CASES = [
    (through_export, "fcn", MULTIPLE, 2),
    (through_export, "unet", MULTIPLE, 2),
    # TorchScript's exporter does not know the products of omega-net, and says so
    *((through_torchscript, name, size, 2) for name in NETWORKS if name != "omega_net" for size in (MULTIPLE, ODD)),
    pytest.param(through_onnx, "sdu_net", MULTIPLE, 2, marks=slow),  # takes minutes
    *(
        pytest.param(way, name, size, dims, marks=slow)
        for way in (through_export, through_onnx)
        for name, dims in (*((name, 2) for name in NETWORKS), ("unet", 3), ("nnunet", 3))
        for size in (MULTIPLE, ODD)
        if not (way is through_export and name in ("fcn", "unet") and dims == 2 and size == MULTIPLE)
    ),
]


@pytest.mark.parametrize(("way", "name", "size", "spatial_dims"), CASES)
@pytest.mark.share(3)
def test_any_size(way, name, size, spatial_dims, tmp_path):
    if way is not through_export:
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    net = network(name, spatial_dims)
    with torch.no_grad():
        exported = way(net, example(size, spatial_dims), spatial_dims, tmp_path / "net.onnx")
        check(net, exported, spatial_dims)


@pytest.mark.parametrize("size", [MULTIPLE, ODD])
def test_an_export_of_one_size_pads_where_that_size_needs_it(size):
    net, image = network("unet"), example(size, 2)
    with torch.no_grad():
        program = torch.export.export(net, (image,))
        check_program(program.module(), net, image)
    padded = any("replicat" in str(node.target) or ".pad." in str(node.target) for node in program.graph.nodes)
    assert padded is (size == ODD)


def test_a_traced_network_takes_any_size():
    net = network("sdu_net")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer, about sizes that become part of the trace
        check(net, torch.jit.trace(net, example(MULTIPLE, 2)))


def test_a_head_that_reads_points_says_that_it_cannot():
    net, image = network("implicit_unet"), example(MULTIPLE, 2)
    with torch.no_grad():
        check_program(torch.export.export(net, (image,)).module(), net, image)
        with pytest.raises(UsageError, match="cannot be exported for images of any size"):
            torch.export.export(net, (image,), dynamic_shapes=({2: ANY, 3: ANY},))
