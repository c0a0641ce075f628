"""Up to which size an image is predicted in one piece: not where a network was taught within a part of what it is given."""

import pytest
import yaml

import ulna
from tests.foreign_code import FORMS
from ulna.planning.sizes import WHOLE_IMAGE, whole_image_limit
from ulna.recipe import Foreign

OTHERS = Foreign(source="monai:SwinUNETR", divisor=(32, 32, 32), least=(64, 32, 32))


@pytest.mark.parametrize(
    ("foreign", "patch", "whole"),
    [
        (None, (32, 32, 32), True),
        (OTHERS, (64, 32, 32), True),
        (OTHERS, (32, 32, 32), False),
        (OTHERS, (64, 32, 40), False),
        (OTHERS.replaced(divisor=16, least=None), (32, 48, 32), True),
        (OTHERS.replaced(divisor=16, least=None), (32, 40, 32), False),
    ],
)
def test_images_are_whole_where_no_patch_was_padded(foreign, patch, whole):
    reasons = {}
    assert whole_image_limit(foreign, patch, reasons) == (WHOLE_IMAGE[3] if whole else 0)
    assert list(reasons) == ([] if whole else ["whole_image_limit"])


def test_a_large_patch_is_whole_in_any_case():
    assert whole_image_limit(None, (96, 96, 96), {}) == 96**3


def test_a_training_of_padded_patches_predicts_in_windows_of_them(tmp_path, discs):
    code = tmp_path / "forms.py"
    code.write_text(FORMS)
    words = ("planning.patch=[12,12]", "planning.batch=2", "training.min_steps=2")
    run = ulna.train(discs, model=f"module:{code}:Flat", out=tmp_path / "run", epochs=1, set=words)
    plan = yaml.safe_load((run.folder / "plan.yaml").read_text())
    assert plan["patch"] == [12, 12] and plan["whole_image_limit"] == 0
    assert plan["reasons"]["whole_image_limit"].startswith("none: images are predicted in windows of the patch")
