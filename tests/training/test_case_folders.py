"""A folder per case with a mask per object, as the 2018 Data Science Bowl has it: trained on, stopped, and gone on with."""

import pytest

import ulna
from tests import miniatures
from tests.training.tiny import TINY
from ulna.errors import UsageError


def test_it_is_trained_on_and_a_changed_mask_is_noticed(tmp_path):
    data = miniatures.bowl(tmp_path / "data", size=(32, 40))
    ulna.train(data, model="unet", out=tmp_path / "run", epochs=1, set=TINY)
    run = ulna.train(data, out=tmp_path / "run", epochs=2, resume=True)
    assert run.summary["epochs"] == 2
    mask = sorted((data / "0000" / "masks").iterdir())[0]
    kept = mask.read_bytes()
    mask.rename(mask.with_name("other.png"))
    with pytest.raises(UsageError, match="0000"):
        ulna.train(data, out=tmp_path / "run", epochs=3, resume=True)
    mask.with_name("other.png").unlink()
    mask.write_bytes(kept)
    assert ulna.train(data, out=tmp_path / "run", epochs=3, resume=True).summary["epochs"] == 3
