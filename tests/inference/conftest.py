"""Four images, and a run that segments them."""

import pytest

from tests.inference.test_predict import four_images, run_folder


@pytest.fixture
def images(tmp_path):
    return four_images(tmp_path / "images", (24, 32))


@pytest.fixture
def run(tmp_path):
    return run_folder(tmp_path / "run", 0)
