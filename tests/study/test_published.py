"""What the papers print, beside the networks that ulna has."""

import re
from importlib.resources import files

import pytest
import yaml

from ulna.networks.catalog import NAMED
from ulna.study.published import COSTS, PERCENT, Published, published_for

TABLES = yaml.safe_load((files("ulna.study") / "published.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("table", TABLES, ids=lambda table: f"{table['paper']} {table['data'][0]}")
def test_every_row_is_a_network_of_the_catalogue_and_every_score_a_percentage(table):
    assert set(table["measures"]) <= {*PERCENT, *COSTS, *table.get("classes", {})}
    for model, figures in table["rows"].items():
        assert model.split()[0] in NAMED
        assert set(figures) == set(table["measures"])
        for measure, printed in figures.items():
            if measure in COSTS:
                assert re.fullmatch(r"\d+(\.\d)?", printed)
                continue
            assert re.fullmatch(r"\d\d\.\d+( ± \d+\.\d+)?", printed)
            assert 1 < float(printed.split()[0]) < 100  # percent, no fraction
            assert ("±" in printed) == bool(table.get("spread"))


@pytest.mark.parametrize(
    ("data", "model", "said"),
    [
        ("polyps", "carvalho/sdu_net_polyps", [{"dice": "80.62 ± 0.79", "iou": "71.04 ± 0.90"}]),
        ("kits19_slices", "wang/omega_net", [{"dice": "93.80", "ppv": "95.40", "sensitivity": "93.25"}]),
        ("kits19_slices", "wang/omega_net_mda_star", [{"dice": "93.80", "ppv": "95.40", "sensitivity": "93.25"}]),
        ("Task01_BrainTumour", "laird/unet loss.kind=dice_squared", [{"iou": "91.38"}]),
        ("lits-2d", "zhou/unetpp_ds", [{"pooled_iou": "82.90"}]),
        ("Task06_Lung", "marimont/unet",
         [{"dice": "64.1 ± 27.3", "image_s": "36.7", "steps_s": "58.2", "steps_mb": "16060"}]),
        ("splits", "zhou/unetpp_ds", []),
        ("polyps", "unet", []),
    ],
)  # fmt: skip
def test_they_are_found_by_a_word_of_the_folders_name(data, model, said):
    assert [table.rows[model] for table in published_for(data, [model])] == said


@pytest.mark.parametrize(
    ("ours", "name"),
    [
        (["pancreas", "cancer"], "pancreas"),
        (["Pancreas", "pancreas tumour"], "Pancreas"),
        (["pancreas head", "pancreas tail"], None),  # which one cannot be told
        (["liver"], None),
    ],
)
def test_a_class_of_the_paper_is_found_among_ours(ours, name):
    table = Published("paper", "", {"pancreas": "Dice"}, {}, "cases", {"pancreas": ["pancreas"]})
    assert table.name_of("pancreas", ours) == name
    assert table.name_of("dice", ours) is None
