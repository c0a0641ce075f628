"""Networks of others as rows: what they give, which sizes they take, how they are scaled, and the gate before code."""

import math
import re
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import ulna
from tests.foreign_code import FORMS, SMP, TINY
from ulna.errors import UsageError
from ulna.networks.build import count_parameters, from_architecture, match_width, named
from ulna.networks.foreign import code, libraries, load_encoder, permit_stored, tried
from ulna.networks.foreign.outputs import read_maps
from ulna.networks.foreign.scaling import scaled_words
from ulna.networks.foreign.sizes import find_sizes
from ulna.networks.profile.cost import count_gmacs
from ulna.networks.profile.memory import peak_bytes
from ulna.recipe import Architecture, Foreign, Recipe, parse, set_value, to_yaml
from ulna.system.reading import parse_yaml

SHAPE = {"in_channels": 1, "classes": 2, "spatial_dims": 2}


@pytest.fixture(autouse=True)
def nothing_permitted():
    code.forget()


@pytest.fixture
def forms(tmp_path):
    path = tmp_path / "forms.py"
    path.write_text(FORMS)
    return path


@pytest.fixture
def smp(monkeypatch):
    module = types.ModuleType("segmentation_models_pytorch")
    exec(SMP, module.__dict__)  # noqa: S102
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", module)
    libraries._library.cache_clear()
    yield module
    libraries._library.cache_clear()


def test_it_is_the_module_itself_padded_outside(forms):
    network = ulna.build(f"module:{forms}:Flat", in_channels=1, classes=2).eval()
    assert (network.divisor, network.least) == ((8, 2), (8, 2))
    image = torch.randn(2, 1, 13, 7)
    padded = torch.nn.functional.pad(image, (0, 1, 0, 3), mode="replicate")
    assert torch.equal(network(image), network.module(padded)[..., :13, :7])
    assert network(torch.zeros(1, 1, 1, 1)).shape == (1, 2, 1, 1)


def test_weights_known_by_two_names_are_stored_once(forms, tmp_path):
    network, other = (ulna.build(f"module:{forms}:Twice", **SHAPE) for _ in range(2))
    state = network.state_dict()
    assert len(state) == 8
    save_file(state, tmp_path / "weights.safetensors")  # refuses names that share memory
    other.load_state_dict(state)
    image = torch.randn(1, 1, 8, 8)
    assert torch.equal(other(image), network(image))
    assert count_parameters(network) == count_parameters(ulna.build(f"module:{forms}:Tiny", **SHAPE))


def test_it_reads_points_as_all_networks_do(forms):
    network = ulna.build(f"module:{forms}:Tiny", **SHAPE).eval()
    image, points = torch.randn(1, 1, 9, 6), torch.tensor([[[8, 5], [0, 3]]])
    assert torch.allclose(network.outputs(image, points).logits[0, :, 0], network(image)[0, :, 8, 5], atol=1e-6)


@pytest.mark.parametrize(
    ("name", "deep"),
    [("Tiny", {}), ("made", {}), ("Listed", {"deep1": (5, 4)}), ("Keyed", {"deep1": (9, 7)})],
)
def test_every_form_is_read_as_heads(forms, name, deep):
    network = ulna.build(f"module:{forms}:{name}", **SHAPE)
    heads = network.train().outputs(torch.randn(1, 1, 9, 7)).heads
    assert {n: tuple(z.shape[2:]) for n, z in heads.items()} == {"logits": (9, 7), **deep}
    network.eval()
    image = torch.randn(1, 1, 10, 8)
    given = network.module(image)
    assert torch.equal(network(image), given["out"] if isinstance(given, dict) else given)


def test_a_divisor_may_be_stated_and_is_tried_where_a_training_is_planned(forms):
    name = f"module:{forms}:Flat"
    code.permit_named(name)
    stated = named(name).foreign.replaced(divisor=(16, 4))
    network = from_architecture(Architecture(foreign=stated), **SHAPE)
    assert (network.divisor, network.least) == ((16, 4), (16, 4))
    assert tried(stated, **SHAPE).divisor == (16, 4)
    with pytest.raises(UsageError, match=r"does not take an image of 4x4, which .*divisor=\[4, 4\] allows"):
        tried(stated.replaced(divisor=4), **SHAPE)
    with pytest.raises(UsageError, match=r"divisor=\[2, 2, 2\] does not fit a 2D network; give 2 numbers"):
        tried(stated.replaced(divisor=(2, 2, 2)), **SHAPE)


def test_a_stack_of_maps_needs_a_word_which_is_the_answer(forms):
    name = f"module:{forms}:Stacked"
    with pytest.raises(
        UsageError, match=r"3 maps of the size of the image.*architecture\.foreign\.answer=first, or last"
    ):
        ulna.build(name, **SHAPE)
    foreign = named(name).foreign
    image = torch.randn(1, 1, 8, 8)
    for answer, times in (("first", 1), ("last", 3)):
        network = from_architecture(Architecture(foreign=foreign.replaced(answer=answer)), **SHAPE)
        outputs = network.outputs(image)
        assert len(outputs.heads) == 3
        assert torch.equal(outputs.logits, network.module(image)[:, times - 1])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Probable", "gives probabilities, and logits are wanted; leave out its last sigmoid or softmax"),
        ("Quarter", "gives a map of .* the answer must have the image's size"),
        ("TooMany", r"gives a map of shape \(1, 3, .*\), where \(N, 2, S, S\) is wanted"),
        ("Pair", "gives a tuple with float as map 2; tensors of logits are wanted"),
        ("Unkeyed", "gives a dict of mask; its answer must be called out or logits"),
        ("Reads", r"takes no 2D image that was tried.*without reading values of tensors, as tensor\.item\(\) does"),
        ("Deaf", "its constructor takes none of in_channels, .*; give it a keyword in_channels"),
        ("Late", "holds lazy layers"),
        ("Empty", "has no parameters; there is nothing to train"),
        ("Breaks", "cannot be made for 1 channels, 2 maps and 2D with options {}: KeyError: 'no such thing'"),
        ("text", "makes str; a torch.nn.Module is wanted"),
        ("Tinny", "no class named 'Tinny'; did you mean 'Tiny'"),
    ],
)
def test_what_is_not_understood_is_refused_with_a_sentence(forms, name, said):
    with pytest.raises(UsageError, match=said):
        ulna.build(f"module:{forms}:{name}", **SHAPE)


@pytest.mark.parametrize("given", [None, 3, [], "map", [torch.zeros(1, 2, 4, 4), None], {}])
def test_no_answer_of_another_kind_gets_through(given):
    with pytest.raises(UsageError, match=r"the network gives"):
        read_maps(given, (4, 4), 2)


def test_a_file_of_one_class_needs_no_name_and_one_of_several_does(tmp_path, forms):
    path = tmp_path / "net.py"
    path.write_text(TINY)
    assert count_parameters(ulna.build(f"module:{path}", **SHAPE)) > 0
    with pytest.raises(UsageError, match=r"several classes \(Tiny, Listed, .*; name the one that is meant"):
        ulna.build(f"module:{forms}", **SHAPE)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import not_there_at_all", r"cannot be imported \(ModuleNotFoundError.*the file stands alone"),
        ("this is no code", r"cannot be executed \(SyntaxError"),
        ("x = 1", "no class that is a torch.nn.Module"),
    ],
)
def test_a_file_that_is_no_network_is_refused(tmp_path, text, said):
    path = tmp_path / "net.py"
    path.write_text(text)
    with pytest.raises(UsageError, match=said):
        ulna.build(f"module:{path}", **SHAPE)


def test_naming_a_network_runs_no_code_and_building_it_needs_leave(tmp_path):
    path, trace = tmp_path / "net.py", tmp_path / "it-ran"
    path.write_text(f"open({str(trace)!r}, 'w').close()\n{TINY}")
    architecture = named(f"module:{path}:Tiny")
    with pytest.raises(UsageError, match="is code, and nobody has allowed it to run"):
        from_architecture(architecture, **SHAPE)
    with pytest.raises(UsageError, match=r"its network is code of its own.*read it, then add --allow-code"):
        permit_stored(architecture.foreign, tmp_path, allow_code=False)
    assert not trace.exists()
    permit_stored(architecture.foreign, tmp_path, allow_code=True)
    from_architecture(architecture, **SHAPE)
    assert trace.exists()


def test_another_file_of_the_same_name_does_not_pass_for_it(tmp_path):
    path = tmp_path / "net.py"
    path.write_text(TINY)
    foreign = named(f"module:{path}:Tiny").foreign
    path.write_text(TINY + "\n# another\n")
    with pytest.raises(UsageError, match=rf"{re.escape(str(path))}: has changed since"):
        permit_stored(foreign, tmp_path, allow_code=True)
    path.unlink()
    with pytest.raises(UsageError, match="is gone"):
        permit_stored(foreign, tmp_path, allow_code=True)
    with pytest.raises(UsageError, match="no such file"):
        ulna.build(f"module:{path}:Tiny")


def test_weights_follow_from_the_seed_alone(forms):
    architecture, made = named(f"module:{forms}:Tiny"), []
    code.permit_named(f"module:{forms}:Tiny")
    for seed, before in ((1, 5), (1, 6), (2, 5)):
        torch.manual_seed(before)
        made.append(from_architecture(architecture, generator=torch.Generator().manual_seed(seed), **SHAPE))
    first, same, other = (network.module.first[0].weight for network in made)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_it_is_counted_like_all_others_without_memory(forms):
    network = ulna.build(f"module:{forms}:Tiny", **SHAPE)
    # 9 x 4, 16 x 8 on a quarter, 8 x 4 x 4 on a quarter, 8 x 2 products a pixel of 32 x 32
    assert count_gmacs(network, (32, 32)) == pytest.approx(1024 * (36 + 32 + 32 + 16) / 1e9)
    both = [peak_bytes(network, (32, 32), training=True, bf16=bf16) for bf16 in (False, True)]
    assert both[0] == both[1] > 4 * 1024 * (1 + 4 + 8 + 2)


def test_widths_are_scaled_by_one_factor(forms):
    before = named(f"module:{forms}:Tiny")
    code.permit_named(f"module:{forms}:Tiny")
    scaled = match_width(before, 20_000, **SHAPE)
    count = count_parameters(from_architecture(scaled, **SHAPE))
    assert abs(count / 20_000 - 1) < 0.05  # the next width is 5 % away
    assert scaled_words(before.foreign, scaled.foreign).startswith("scaled by its own options (width 4 to ")
    with pytest.raises(
        UsageError, match=r"cannot be scaled to 20,000 parameters: its constructor has none of channels"
    ):
        match_width(named(f"module:{forms}:Flat"), 20_000, **SHAPE)
    with pytest.raises(UsageError, match="cannot be scaled to 2 parameters: the narrowest such network has"):
        match_width(before, 2, **SHAPE)
    least = match_width(before, 2, nearest=True, **SHAPE)
    assert least.foreign.options["width"] == 1
    flat = match_width(named(f"module:{forms}:Flat"), 20_000, nearest=True, **SHAPE)
    assert scaled_words(flat.foreign, flat.foreign) == "not scaled: its constructor has no widths"


def test_a_recipe_holds_it_and_gives_it_back():
    foreign = Foreign(source="monai:SegResNet", options={"blocks_up": [1, 1], "act": ["relu", {"inplace": True}]})
    recipe = Recipe(model="monai:SegResNet", architecture=Architecture(foreign=foreign))
    assert parse(Recipe, parse_yaml(to_yaml(recipe), "")) == recipe
    changed = set_value(recipe, "architecture.foreign.options.init_filters=16")
    assert changed.architecture.foreign.options["init_filters"] == 16
    assert set_value(recipe, "architecture.foreign.divisor=8").architecture.foreign.divisor == (8,)
    assert "foreign" not in to_yaml(Recipe())
    with pytest.raises(UsageError, match=r"no field named 'divisr'; did you mean 'divisor'"):
        set_value(recipe, "architecture.foreign.divisr=8")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("architecture.conv=residual", "is a network of others, without levels, slots and heads of ulna"),
        ("architecture.foreign.options={a: [[[[[[[1]]]]]]]}", "lies more than 6 lists deep"),
        ("architecture.foreign.options.a=1e30", "numbers of at most 1,048,576 are taken"),
        ("architecture.foreign.answer=middle", "answer"),
    ],
)
def test_a_recipe_refuses_what_no_network_has(change, said):
    recipe = Recipe(model="monai:UNet", architecture=Architecture(foreign=Foreign(source="monai:UNet")))
    with pytest.raises(UsageError, match=re.escape(said)):
        set_value(recipe, change)


def test_a_network_of_ulna_has_no_foreign_options():
    with pytest.raises(UsageError, match="a network of others is chosen by --model"):
        set_value(Recipe(), "architecture.foreign.options.a=1")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("monai:SegResnet", "no network of MONAI named 'SegResnet'; did you mean 'SegResNet'"),
        ("monai:UNETR", "is made for images of one size"),
        ("smp:Unett/resnet34", "no network of segmentation_models.pytorch named 'Unett'; did you mean 'Unet'"),
        ("smp:Unet", "expected a name such as smp:Unet/resnet34"),
        ("module:net", "expected a name such as module:path/to/file.py:Class"),
    ],
)
def test_wrong_names_are_told_with_the_nearest(name, said):
    with pytest.raises(UsageError, match=re.escape(said)):
        named(name)


def test_no_other_module_names_these_libraries():
    source = Path(ulna.__file__).parent
    naming = [p for p in source.rglob("*.py") if re.search(r'"(monai\.|segmentation_models_pytorch)', p.read_text())]
    assert [p.relative_to(source).as_posix() for p in naming] == ["networks/foreign/libraries.py"]


def test_smp_is_built_by_encoder_and_padded(smp):
    network = ulna.build("smp:Unet/resnet34", in_channels=3, classes=2)
    assert (network.divisor, named("smp:Unet/resnet34").foreign.version) == (
        (32, 32),
        "segmentation-models-pytorch 0.0.1",
    )
    assert network(torch.zeros(1, 3, 40, 20)).shape == (1, 2, 40, 20)
    with pytest.raises(UsageError, match="has 2D networks alone"):
        ulna.build("smp:Unet/resnet34", spatial_dims=3)
    with pytest.raises(UsageError, match="no encoder resnet35"):
        ulna.build("smp:Unet/resnet35")


@pytest.mark.parametrize("option", ["encoder_weights", "pretrained", "activation", "encoder_name"])
def test_smp_downloads_nothing_and_gives_logits(smp, option):
    said = {"activation": "activation is left out", "encoder_name": "encoder_name is said already"}
    with pytest.raises(UsageError, match=said.get(option, "ulna downloads nothing")):
        ulna.build("smp:Unet/resnet34", **{option: "imagenet"}, in_channels=3, spatial_dims=2)


def test_of_smp_the_decoder_alone_is_scaled(smp):
    before = named("smp:Unet/resnet34")
    scaled = match_width(before, 50_000, **SHAPE)
    assert scaled.foreign.options["decoder_channels"] != [16, 8]
    assert "; its encoder keeps its width" in scaled_words(before.foreign, scaled.foreign)
    with pytest.raises(UsageError, match="its encoder keeps its width"):
        match_width(before, 50, **SHAPE)


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
def test_an_encoder_begins_with_weights_of_a_local_file(smp, tmp_path, caplog, ending):
    donor = ulna.build("smp:Unet/resnet34", in_channels=1)
    weights = {f"encoder.{n}": t + 1 for n, t in donor.module.encoder.state_dict().items() if "batches" not in n}
    weights["encoder.fc.weight"] = torch.zeros(3)
    path = tmp_path / f"resnet34{ending}"
    save_file(weights, path) if ending == ".safetensors" else torch.save({"state_dict": weights}, path)
    foreign = Foreign(source="smp:Unet/resnet34", encoder_weights=str(path))
    network = from_architecture(Architecture(foreign=foreign), **SHAPE)
    with caplog.at_level("INFO"):
        load_encoder(network, foreign)
    assert torch.equal(network.module.encoder[0].weight, weights["encoder.0.weight"])
    assert "6 of 7 tensors" in caplog.text
    assert "as drawn: 1.num_batches_tracked; 1 tensor of the file not used" in caplog.text


def test_an_encoder_takes_no_code_and_nothing_that_does_not_fit(smp, tmp_path):
    network = ulna.build("smp:Unet/resnet34", in_channels=1)
    evil, other, gone = tmp_path / "evil.pth", tmp_path / "other.safetensors", tmp_path / "gone.pth"
    torch.save({"weight": torch.nn.Linear(1, 1)}, evil)
    save_file({"a": torch.zeros(1)}, other)
    for path, said in (
        (evil, "holds no weights that can be read without running code"),
        (other, "none of its weights fits the encoder"),
        (gone, "is no file; ulna downloads nothing"),
    ):
        with pytest.raises(UsageError, match=said):
            load_encoder(network, Foreign(source="smp:Unet/resnet34", encoder_weights=str(path)))


def test_a_library_that_is_not_there_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    libraries._library.cache_clear()
    with pytest.raises(UsageError, match=r"pip install 'ulna\[smp\]'"):
        named("smp:Unet/resnet34")
    libraries._library.cache_clear()


QUICK = {"SegResNet": (8, 8), "BasicUNetPlusPlus": (1, 1), "DynUNet": (16, 16)}


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in libraries.MONAI]
)
def test_networks_of_monai_answer_at_any_size(name):
    pytest.importorskip("monai.networks.nets", exc_type=ImportError)
    if name == "SwinUNETR":
        pytest.importorskip("einops")
    network = ulna.build(f"monai:{name}", **SHAPE).eval()
    assert network.divisor == QUICK.get(name, network.divisor)
    with torch.no_grad():
        assert network(torch.zeros(1, 1, 37, 50)).shape == (1, 2, 37, 50)


def test_a_network_of_monai_is_the_one_that_monai_makes():
    nets = pytest.importorskip("monai.networks.nets", exc_type=ImportError)
    network = ulna.build("monai:SegResNet", in_channels=2, classes=3, spatial_dims=3, init_filters=16).eval()
    peer = nets.SegResNet(spatial_dims=3, in_channels=2, out_channels=3, init_filters=16).eval()
    peer.load_state_dict(network.module.state_dict())
    image = torch.randn(1, 2, 16, 8, 24)
    with torch.no_grad():
        assert torch.equal(network(image), peer(image))


def test_deep_supervision_of_monai_is_read_where_training_gives_it():
    pytest.importorskip("monai.networks.nets", exc_type=ImportError)
    network = ulna.build("monai:DynUNet", deep_supervision=True, deep_supr_num=2, filters=[4, 4, 8, 8, 8], **SHAPE)
    image = torch.randn(1, 1, 32, 32)
    assert list(network.train().outputs(image).heads) == ["logits", "deep1", "deep2"]
    assert list(network.eval().outputs(image).heads) == ["logits"]


def test_the_least_size_is_as_short_as_the_other_axes_allow():
    """A norm that refuses one value alone, at the depth of eighths."""

    def attempt(size):
        if any(n % 8 for n in size) or math.prod(n // 8 for n in size) < 2:
            raise ValueError(size)

    assert find_sizes(attempt, 3, "x") == ((8, 8, 8), (16, 8, 8))
    assert find_sizes(attempt, 2, "x") == ((8, 8), (16, 8))
