"""What processes share is exactly that of one: losses of a batch, batch norm, whole trainings; here ranks are threads."""

import itertools

import pytest
import torch

from tests.training.ranks import Threads, in_ranks
from tests.volumes import draw_balls
from ulna.blocks import nd
from ulna.blocks.synchronised import synchronised
from ulna.data.layout.dataset import Dataset
from ulna.errors import UsageError
from ulna.inference.segmenter import network_for
from ulna.losses import LOSSES, make_loss
from ulna.losses.sharing import is_mean_of_samples, own_part
from ulna.networks.heads import Outputs
from ulna.planning.choosing import recommended
from ulna.planning.memory import MemoryEstimate
from ulna.planning.plan import plan_training, read_training_data
from ulna.recipe import set_value
from ulna.system.ranks import ALONE, check_batch, check_devices
from ulna.training.crew import NOBODY
from ulna.training.loop import Loop
from ulna.training.samples import PreparedCases
from ulna.training.slices import training_samples
from ulna.training.stopping import Stop
from ulna.training.validating import Validation

SHARED = ("optimizer.kind=sgd", "optimizer.lr=1e-2", "training.min_steps=3", "training.epochs=2", "planning.batch=3")
OPTIONS = {
    "dice": [{}, {"reduction": "batch"}],
    "cross_entropy": [{}, {"weights": [1.0, 2.0, 3.0]}],
    "focal": [{}, {"weights": [1.0, 2.0, 3.0]}],
    "dice_ce": [{}, {"reduction": "batch"}, {"weights": [1.0, 2.0, 3.0]}],
    "topk_ce": [{"share": 0.3}],
    "boundary": [{}, {"reduction": "batch"}],
}
CRITERIA = [(kind, options, None) for kind in LOSSES for options in OPTIONS.get(kind, [{}, {"reduction": "batch"}])]
CRITERIA = [one for one in CRITERIA if one[0] not in ("topk_ce", "unetpp") or one[1].get("reduction") is None]


def outputs_of(logits, points=None):
    return Outputs(logits["a"], logits, points)


@pytest.mark.parametrize(("kind", "options", "ignored"), [*CRITERIA, ("dice_ce", {}, 3), ("unetpp", {}, None)])
def test_the_parts_of_a_loss_are_those_of_the_whole_batch(kind, options, ignored):
    generator = torch.Generator().manual_seed(0)
    whole = {name: torch.randn(3, 3, n, n, generator=generator) for name, n in (("a", 8), ("b", 4))}
    labels = torch.randint(0, 3 if ignored is None else 4, (3, 8, 8), generator=generator)
    labels[0, :, :5] = 0  # samples that differ in how much they hold
    labels[1, :3] = 2 if ignored is None else 3
    criterion = make_loss(kind, options=options, multilabel=False, ignored=ignored)

    def part(ranks):
        rows = ranks.rows(3)
        own = {name: logits[rows].clone().requires_grad_() for name, logits in whole.items()}
        loss, told = own_part(criterion, outputs_of(own), labels[rows], batch=3, ranks=ranks)
        loss.backward()
        total = told.clone()
        ranks.add([total])
        return total, {name: logits.grad for name, logits in own.items()}

    (expected, gradients), (one, two) = part(ALONE), in_ranks(2, part)
    assert [len(grads["a"]) for _, grads in (one, two)] == [1, 2]
    for name in whole:
        torch.testing.assert_close(torch.cat([one[1][name], two[1][name]]), gradients[name], rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(one[0], expected)
    torch.testing.assert_close(two[0], expected)


def test_only_means_of_samples_are_taken_sample_by_sample():
    means = [kind for kind in LOSSES if is_mean_of_samples(make_loss(kind, multilabel=False))]
    assert [*LOSSES] == [kind for kind in LOSSES if kind in means or kind in ("topk_ce", "dice_topk")]
    assert not is_mean_of_samples(make_loss("dice", options={"reduction": "batch"}, multilabel=False))
    assert not is_mean_of_samples(make_loss("cross_entropy", options={"weights": [1, 2]}, multilabel=False))
    assert not is_mean_of_samples(make_loss("dice_ce", multilabel=False, ignored=2))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kind", [nd.norm, lambda _, dims, channels: getattr(torch.nn, f"BatchNorm{dims}d")(channels)])
def test_batch_norm_takes_the_statistics_of_all_ranks(dims, kind):
    generator = torch.Generator().manual_seed(0)
    x = 2 + torch.randn(5, 4, *(6,) * dims, generator=generator)
    x[0] *= 3
    weights = torch.randn(5, 4, *(6,) * dims, generator=generator)

    def step(ranks):
        norm, rows = kind("batch", dims, 4), ranks.rows(5)
        with torch.no_grad():
            norm.weight.copy_(torch.arange(1.0, 5.0))
        own = x[rows].clone().requires_grad_()
        with synchronised(norm, ranks):
            y = norm(own)
        (y * weights[rows]).sum().backward()
        ranks.add([norm.weight.grad, norm.bias.grad])
        return y.detach(), own.grad, norm

    expected, *found = step(ALONE), *in_ranks(3, step)
    for part in (0, 1):
        torch.testing.assert_close(torch.cat([one[part] for one in found]), expected[part], rtol=1e-4, atol=1e-5)
    for _, _, norm in found:
        assert "forward" not in vars(norm)
        torch.testing.assert_close(norm.state_dict(), expected[2].state_dict())
        torch.testing.assert_close(norm.weight.grad, expected[2].weight.grad, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(norm.bias.grad, expected[2].bias.grad, rtol=1e-4, atol=1e-4)


def of_data(data, model, *changes):
    recipe = recommended(model)
    for change in (*SHARED, *changes):
        recipe = set_value(recipe, change)
    dataset = Dataset.from_folder(data)
    planned = plan_training(read_training_data(dataset, recipe.training), recipe)
    dataset = dataset.of_dims(planned.plan.image_dims)
    train, val = (dataset.cases_of(part) for part in (planned.split.train, planned.split.val))

    def parts():
        samples = training_samples(
            train, planned.plan, planned.recipe, folder=None, device=torch.device("cpu"), device_bytes=0
        )
        return samples, PreparedCases(val, planned.plan, on_grid=False)

    return planned.recipe, planned.plan, parts


def trained(training, folder, count, clock=None):
    """A training by so many ranks: its loop when it is over."""
    recipe, plan, parts = training
    folder.mkdir()

    def loop_of(crew):
        network = network_for(recipe, plan, torch.Generator().manual_seed(crew.ranks.rank))  # the first one's count
        samples, val = parts()
        return Loop(
            network, plan, recipe, val=val, samples=samples, folder=folder, stop=Stop(""), crew=crew,
            **({} if clock is None else {"clock": clock}),
        )  # fmt: skip

    crew = Threads(count)
    if count == 1:
        loop = loop_of(NOBODY)
        loop.run()
        return loop
    with crew.following(loop_of):
        loop = loop_of(crew)
        loop.run()
    return loop


def check_same(one, other):
    for row, expected in zip(one.state.rows, other.state.rows, strict=True):
        for name in ("epoch", "lr", "train_loss"):
            assert row[name] == pytest.approx(expected[name], rel=1e-4), name
        for name in ("val_dice", "val_iou"):
            assert row[name] == pytest.approx(expected[name], abs=5e-3), name  # a voxel or two at the threshold
    found, expected = one.network.state_dict(), other.network.state_dict()
    for name, tensor in expected.items():
        torch.testing.assert_close(
            found[name], tensor, rtol=1e-3, atol=2e-5, msg=lambda said, name=name: f"{name}: {said}"
        )


NETWORKS = {
    "batch norm": ("unet", "architecture.channels=[4, 8]", "training.accumulate=2", "training.min_steps=4"),
    "instance norm, deep supervision": ("nnunet", "architecture.channels=[4, 6, 8]"),
    "points": (
        "implicit_unet", "architecture.channels=[4, 8]", "architecture.head.points.width=16",
        "architecture.head.points.dropout=0", "points.fraction=0.3",
    ),
    "boundary loss, rebalanced": (
        "unet", "architecture.channels=[4, 8]", "loss.kind=boundary", "loss.options.schedule=rebalance",
    ),
    "pooled loss": ("unet", "architecture.channels=[4, 8]", "loss.kind=dice_topk", "loss.options.reduction=batch"),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_two_ranks_train_as_one(discs, tmp_path, name):
    training = of_data(discs, *NETWORKS[name])
    alone, both = (trained(training, tmp_path / f"{count}", count) for count in (1, 2))
    check_same(both, alone)


@pytest.mark.parametrize("dims", [pytest.param(2, marks=pytest.mark.slow), 3])  # slices of volumes, and patches of them
def test_three_ranks_train_as_one_on_volumes(tmp_path, dims):
    (tmp_path / "data").mkdir()
    data = draw_balls(tmp_path / "data")
    training = of_data(data, "unet", "architecture.channels=[4, 8]", f"planning.spatial_dims={dims}")
    assert (training[1].slices is None) == (dims == 3)
    check_same(trained(training, tmp_path / "3", 3), trained(training, tmp_path / "1", 1))


@pytest.mark.slow
def test_statistics_of_their_own_make_another_training(discs, tmp_path):
    own = of_data(discs, *NETWORKS["batch norm"], "training.sync_batchnorm=false")
    alone, both = (trained(own, tmp_path / f"{count}", count) for count in (1, 2))
    assert both.state.rows[-1]["train_loss"] != pytest.approx(alone.state.rows[-1]["train_loss"], rel=1e-4)


def test_a_limit_of_hours_is_the_first_rank_s_alone(discs, tmp_path):
    """No other reads a clock: it cuts the first epoch and its validation, and all end together."""
    times = itertools.count(0.0, 0.5)
    recipe, plan, parts = of_data(
        discs, *NETWORKS["batch norm"], "training.max_hours=0.01", "training.min_steps=400", "training.epochs=50"
    )
    loop = trained((recipe, plan, parts), tmp_path / "run", 2, clock=lambda: next(times))
    assert loop.state.time_is_up and len(loop.state.rows) == 1
    assert loop.state.last_step is not None and loop.state.last_step < 400


def test_what_is_frozen_stays_so_when_a_case_is_predicted_between_steps():
    network = torch.nn.Sequential(torch.nn.BatchNorm2d(1).eval(), torch.nn.BatchNorm2d(1))
    validation = object.__new__(Validation)
    validation.network = network
    with validation.evaluating():
        assert not any(part.training for part in network)
    assert [part.training for part in network] == [False, True] and network.training


def test_numbers_that_cannot_be_are_refused():
    with pytest.raises(UsageError, match="--devices 0: a number of devices"):
        check_devices(0, torch.device("cpu"))
    with pytest.raises(UsageError, match=r"--devices 4: a batch has 3 samples.*planning.batch=4"):
        check_batch(4, 3)
    check_batch(3, 3)
    check_devices(1, torch.device("cpu"))


@pytest.mark.parametrize("name", ["is_available", "is_gloo_available"])
def test_a_torch_without_gloo_is_told(monkeypatch, name):
    monkeypatch.setattr(torch.distributed, name, lambda: False)
    with pytest.raises(UsageError, match="this build of torch has no gloo"):
        check_devices(2, torch.device("cpu"))


def test_more_devices_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UsageError, match="--devices 2: this machine has 1 GPU"):
        check_devices(2, torch.device("cuda"))


def test_the_memory_of_several_is_told(discs):
    recipe = recommended("unet")
    found = read_training_data(Dataset.from_folder(discs), recipe.training)
    planned = plan_training(found, set_value(recipe, "planning.batch=4"))
    one, two = planned.memory, planned.memory_on(2)
    assert isinstance(two, MemoryEstimate)
    weights = "weights, gradients and moments"
    assert two.parts[weights] == pytest.approx(2 * one.parts[weights])
    assert two.parts["maps of a step"] == pytest.approx(one.parts["maps of a step"], rel=0.05)
    assert two.parts["program"] > one.parts["program"]
