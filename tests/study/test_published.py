"""What the papers print, beside the networks that ulna has."""

import re
from importlib.resources import files

import pytest
import yaml

from ulna.networks.catalog import NAMED
from ulna.study.published import published_for

TABLES = yaml.safe_load((files("ulna.study") / "published.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("table", TABLES, ids=lambda table: f"{table['paper']} {table['data'][0]}")
def test_every_row_is_a_network_of_the_catalogue_and_every_figure_a_percentage(table):
    for model, figures in table["rows"].items():
        assert model.split()[0] in NAMED
        assert set(figures) == set(table["measures"])
        for printed in figures.values():
            assert re.fullmatch(r"\d\d\.\d+( ± \d+\.\d+)?", printed)
            assert 1 < float(printed.split()[0]) < 100  # percent, no fraction


@pytest.mark.parametrize(
    ("data", "model", "said"),
    [
        ("polyps", "carvalho/sdu_net_polyps", ["Dice 80.62 ± 0.79, IoU 71.04 ± 0.90"]),
        ("kits19_slices", "wang/omega_net", ["Dice 93.80, PPV 95.40, sensitivity 93.25"]),
        ("Task01_BrainTumour", "laird/unet loss.kind=dice_squared", ["IoU 91.38"]),
        ("lits-2d", "zhou/unetpp_ds", ["pooled IoU 82.90"]),
        ("splits", "zhou/unetpp_ds", []),
        ("polyps", "unet", []),
    ],
)
def test_they_are_found_by_a_word_of_the_folders_name(data, model, said):
    assert [table.rows[model] for table in published_for(data, [model])] == said
