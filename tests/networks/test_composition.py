"""Any conv, skip, up and down block on any topology with any head, in 2D and 3D.

The lists come from the registers, so a new block is combined with all others the moment it is listed. By default every
pair of choices meets in some network; the mark `slow` takes a fifth of the full product, in which every four blocks meet in
2D and in 3D, with one class and five in turn.
"""

from itertools import combinations, cycle, product

import pytest
import torch

from ulna.blocks import CONV, DOWN, SKIP, UP
from ulna.errors import UsageError
from ulna.networks.build import build, count_parameters, named
from ulna.networks.heads import HEADS
from ulna.networks.wiring import TOPOLOGIES
from ulna.planning.choosing import choose

WIDTHS = (3, 4, 6)
SIZES = {2: (9, 13), 3: (5, 9, 7)}


def fits(topology, head):
    try:
        with torch.device("meta"):
            build("unet", topology=topology, head=head, channels=WIDTHS)
    except UsageError:
        return False
    return True


READINGS = tuple(pair for pair in product(TOPOLOGIES, HEADS) if fits(*pair))
CHOICES = {
    "conv": tuple(CONV),
    "skip": tuple(SKIP),
    "up": tuple(UP),
    "down": tuple(DOWN),
    "reading": READINGS,
    "spatial_dims": (2, 3),
    "classes": (1, 5),
}


def meeting_pairs(choices):
    """Rows in which any two values of different choices meet at least once: a greedy covering."""
    open_pairs = {
        ((a, x), (b, y)): None for a, b in combinations(choices, 2) for x, y in product(choices[a], choices[b])
    }  # in order
    while open_pairs:
        row = dict(next(iter(open_pairs)))
        for name in choices:
            if name not in row:
                row[name] = max(
                    choices[name], key=lambda value, name=name: len(met({**row, name: value}) & open_pairs.keys())
                )
        for pair in met(row):
            open_pairs.pop(pair, None)
        yield {name: row[name] for name in choices}


def met(row):
    ordered = [(name, row[name]) for name in CHOICES if name in row]
    return set(combinations(ordered, 2))


def words(row):
    return "-".join(str(value) if not isinstance(value, tuple) else "-".join(value) for value in row.values())


def answers_and_learns(conv, skip, up, down, reading, spatial_dims, classes):
    topology, head = reading
    changes = {"conv": conv, "skip": skip, "up": up, "down": down, "topology": topology, "head": head}
    if not any(node.skips for node in TOPOLOGIES[topology](2).nodes):  # nothing to skip, nothing to upsample
        del changes["skip"], changes["up"]
    net = build(
        "unet",
        in_channels=2,
        classes=classes,
        spatial_dims=spatial_dims,
        channels=WIDTHS,
        generator=torch.Generator().manual_seed(0),
        **changes,
    )
    image = torch.randn(1, 2, *SIZES[spatial_dims], generator=torch.Generator().manual_seed(1))
    outputs = net.train().outputs(image)
    assert outputs.logits.shape == (1, classes, *SIZES[spatial_dims])
    sum(z.square().mean() for z in outputs.heads.values()).backward()
    untouched = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert untouched == []


ROWS = tuple(meeting_pairs(CHOICES))


@pytest.mark.parametrize("row", ROWS, ids=words)
def test_any_two_choices_work_together(row):
    answers_and_learns(**row)


@pytest.mark.slow
@pytest.mark.parametrize("reading", READINGS, ids="-".join)
@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("conv", CONV)
def test_any_four_blocks_work_together(conv, spatial_dims, reading):
    for (skip, up, down), classes in zip(fifth(READINGS.index(reading)), cycle((1, 5)), strict=False):
        answers_and_learns(conv, skip, up, down, reading, spatial_dims, classes)


def fifth(number):
    """The skip, up and down blocks that one reading is combined with; five readings in a row have all."""
    return tuple(product(SKIP, UP, DOWN))[number % 5 :: 5]


def test_five_readings_meet_all_skip_up_and_down_blocks():
    assert len(READINGS) >= 5
    assert sorted(one for number in range(5) for one in fifth(number)) == sorted(product(SKIP, UP, DOWN))
    assert all({one[place] for one in fifth(number)} == set(blocks)
               for number in range(5) for place, blocks in ((1, UP), (2, DOWN)))  # fmt: skip


def test_the_rows_make_every_pair_of_choices_meet():
    for a, b in combinations(CHOICES, 2):
        assert {(row[a], row[b]) for row in ROWS} == set(product(CHOICES[a], CHOICES[b]))


@pytest.mark.parametrize("slot", ["conv", "skip", "up", "down"])
def test_the_command_line_composes_as_python_does(slot):
    for kind in {"conv": CONV, "skip": SKIP, "up": UP, "down": DOWN}[slot]:
        recipe = choose(model="unetpp", recipe=None, set=(f"architecture.{slot}={kind}",))
        assert recipe.architecture == named("unetpp").replaced(**{slot: kind})


@pytest.mark.parametrize(
    "changes",
    [{"conv": kind} for kind in CONV if kind != "identity"]
    + [{"skip": kind} for kind in SKIP]
    + [{"down": kind} for kind in DOWN]
    + [{"topology": topology, "head": head} for topology, head in READINGS],
    ids=lambda changes: "-".join(changes.values()),
)
@pytest.mark.share(3)
def test_width_is_matched_to_a_budget_for_any_composition(changes):
    budget = 3_000_000 if changes.get("head") == "points" else 400_000  # the decoder of points has 1.9 M at any width
    with torch.device("meta"):
        found = count_parameters(build("unet", base_channels=32, levels=2, parameters=budget, **changes))
    assert found == pytest.approx(budget, rel=0.03)  # cells have whole filters, of 4 or 6 channels each
