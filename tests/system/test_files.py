import pytest
import torch
from safetensors.torch import save_file

from ulna.errors import UsageError
from ulna.system.files import (
    Tensors,
    Unwritable,
    read_state,
    read_tensors,
    staged,
    write_tensors,
    write_text,
    write_whole,
)
from ulna.training.checkpoint import LAST, PREVIOUS, load_checkpoint, pack_optimizer, save_checkpoint, unpack_optimizer


def content(value=1.0):
    return Tensors({"a": torch.full((3, 2), value), "b": torch.tensor(7)}, {"epoch": 3, "rows": [{"x": 0.1}]})


def same(one, other):
    return one.state == other.state and all(torch.equal(one.tensors[k], other.tensors[k]) for k in other.tensors)


def test_round_trip_keeps_types_and_values(tmp_path):
    written = Tensors({"h": torch.arange(4).bfloat16(), "s": torch.tensor(1.5)}, {"n": None})
    write_tensors(tmp_path / "x", written)
    read = read_tensors(tmp_path / "x")
    assert same(read, written)
    assert read.tensors["h"].dtype == torch.bfloat16


def test_the_state_is_read_without_the_tensors(tmp_path):
    write_tensors(tmp_path / "x", content())
    assert read_state(tmp_path / "x") == content().state
    save_file({"a": torch.zeros(2)}, tmp_path / "other")
    with pytest.raises(UsageError, match="other: holds no state"):
        read_state(tmp_path / "other")
    with pytest.raises(UsageError, match="no such file"):
        read_state(tmp_path / "none")


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b[:10], lambda b: b"", lambda b: b[:-1] + bytes([b[-1] ^ 1])]
)
def test_any_damage_is_found(tmp_path, damage):
    path = tmp_path / "x.safetensors"
    write_tensors(path, content())
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UsageError, match=r"x\.safetensors"):
        read_tensors(path)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, caplog):
    save_checkpoint(tmp_path, content(1.0))
    save_checkpoint(tmp_path, content(2.0))
    (tmp_path / LAST).write_bytes((tmp_path / LAST).read_bytes()[:-3])
    assert same(load_checkpoint(tmp_path), content(1.0))
    assert "skipped a damaged checkpoint" in caplog.text
    (tmp_path / PREVIOUS).unlink()
    with pytest.raises(UsageError, match=r"no checkpoint is whole(.|\n)*last\.safetensors: damaged"):
        load_checkpoint(tmp_path)


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.txt"
    write_text(path, "old")

    def disk_full(temporary):
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(UsageError, match=r"No space left on device: \d.* are free, more than 4 bytes are needed\)"):
        write_whole(path, disk_full)
    with pytest.raises(UsageError, match=r"are free, 12\.3 MB are needed\); free space or choose another folder"):
        write_whole(path, disk_full, 12_345_678)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]


def test_staged_files_go_with_their_work_also_those_of_a_killed_process(tmp_path):
    (tmp_path / ".tmp-work-0").mkdir()
    (tmp_path / ".tmp-work-0" / "half").touch()
    (tmp_path / ".tmp-other-0").mkdir()  # of another work
    with pytest.raises(KeyError), staged(tmp_path, "work") as staging:
        assert {path.name for path in tmp_path.iterdir()} == {staging.name, ".tmp-other-0"}
        (staging / "kept").touch()
        (staging / "kept").replace(tmp_path / "kept")
        (staging / "half").touch()
        raise KeyError
    assert {path.name for path in tmp_path.iterdir()} == {"kept", ".tmp-other-0"}
    with pytest.raises(Unwritable, match="cannot be written"), staged(tmp_path / "missing", "work"):
        raise AssertionError("it was made")


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD])
def test_an_optimizer_goes_on_as_if_never_stopped(kind):
    def steps(parameter, optimizer, count):
        for _ in range(count):
            optimizer.zero_grad()
            (parameter**2).sum().backward()
            optimizer.step()

    options = {"lr": 0.1} | ({"momentum": 0.9} if kind is torch.optim.SGD else {})
    whole = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    steps(whole, kind([whole], **options), 5)

    first = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = kind([first], **options)
    steps(first, optimizer, 2)
    tensors, values = pack_optimizer(optimizer)
    second = torch.nn.Parameter(first.detach().clone())
    fresh = kind([second], **{**options, "lr": 9.9})
    unpack_optimizer(fresh, {k: v.clone() for k, v in tensors.items()}, values)
    steps(second, fresh, 3)
    assert torch.equal(whole, second)


def test_moments_of_channels_last_weights_stay_with_their_weights():
    def trained(steps, tensors=None, values=None, weights=None):
        torch.manual_seed(0)
        conv = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        if weights:
            conv.load_state_dict(weights)
        optimizer = torch.optim.Adam(conv.parameters(), lr=0.1, fused=True)
        if tensors:
            unpack_optimizer(optimizer, tensors, values)
        image = torch.linspace(-1, 1, 75).reshape(1, 3, 5, 5)
        for _ in range(steps):
            optimizer.zero_grad()
            conv(image).square().sum().backward()
            optimizer.step()
        return conv, optimizer

    whole, _ = trained(4)
    half, optimizer = trained(2)
    tensors, values = pack_optimizer(optimizer)
    stored = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    weights = {name: tensor.clone() for name, tensor in half.state_dict().items()}
    resumed, _ = trained(2, stored, values, weights)
    assert torch.equal(whole.weight, resumed.weight)
