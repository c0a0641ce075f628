"""What trust says of real cases, where they are at hand: docs/trust.md has the figures."""

import json

import nibabel
import numpy as np
import pytest

import ulna
from ulna.data.formats.read import read_image
from ulna.data.formats.source import Source
from ulna.data.layout.dataset import Dataset
from ulna.errors import UsageError

pytestmark = pytest.mark.slow


def foreign(shared_data, folder):
    """Every channel of the brain tumours and both organ scans as volumes of one channel."""
    folder.mkdir()
    paths = sorted((shared_data / "brain_tumour" / "imagesTr").glob("*.nii.gz"))
    paths += sorted((shared_data / "ct_organs").glob("*/image.nii.gz"))
    for path in paths:
        volume = read_image([Source(path)], 3)
        for number, channel in enumerate(volume.array):
            name = f"{path.parent.name}_{path.name.split('.')[0]}_{number}.nii.gz"
            nibabel.save(nibabel.Nifti1Image(channel.astype(np.float32), volume.affine), folder / name)
    return folder


@pytest.fixture(scope="module")
def run(shared_data, tmp_path_factory):
    small = ("architecture.base_channels=8", "architecture.deep_supervision=true", "optimizer.lr=3e-3")
    data = shared_data / "hippocampus"
    return ulna.train(data, model="unet", out=tmp_path_factory.mktemp("runs") / "run", epochs=4, set=small)


@pytest.mark.timeout(1800)
def test_hippocampus_knows_its_own_cases_and_every_other(run, shared_data, tmp_path):
    own = ulna.predict(run.folder, shared_data / "hippocampus", out=tmp_path / "own", split="val")
    with pytest.raises(UsageError, match="no case could be predicted") as refused:
        ulna.predict(run.folder, foreign(shared_data, tmp_path / "foreign"), out=tmp_path / "others", strict=True)

    def flagged(rows):
        return sum(any(flag["about"] == "input" for flag in row["trust"]["flags"]) for row in rows)

    assert len(own.cases) == 28 and flagged(own.cases) <= 0.05 * 28
    assert str(refused.value).count("unlike the training data") == 10
    by_mask = sum(any(flag["about"] == "mask" for flag in row["trust"]["flags"]) for row in own.cases)
    assert by_mask <= 0.15 * 28  # of a short training


@pytest.mark.timeout(1800)
def test_hippocampus_is_calibrated(run, shared_data, tmp_path):
    told = run.summary["trust"]
    assert told["temperature"]["ece_after"] <= told["temperature"]["ece_before"] < 0.2
    for error in told["predicted_dice"].values():
        assert error["mean_absolute_error"] <= error["of_the_mean_alone"] < 0.08
    assert told["seconds"] < max(60, 0.1 * run.summary["training_seconds"]) + 10


@pytest.mark.timeout(1800)
def test_crops_of_other_images_at_the_size_of_the_training_are_known_by_their_values(run, shared_data, tmp_path):
    """Where neither spacing nor field of view tell, the distribution of the values has to."""
    segment = ulna.load(run.folder)
    data = Dataset.from_folder(shared_data / "hippocampus")
    part = json.loads((run.folder / "splits.json").read_text())["val"]
    assert not any(segment.compare(case.read_image()).findings for case in data.cases_of(part))
    found = 0
    for path in sorted(foreign(shared_data, tmp_path / "foreign").glob("*.nii.gz")):
        volume = read_image([Source(path)], 3)
        middle = tuple(slice(max(0, n // 2 - 17), n // 2 + 17) for n in volume.size)
        crop = volume.with_array(volume.array[(slice(None), *middle)])
        found += "intensity" in {one.what for one in segment.compare(crop).findings}
    assert found >= 8  # of ten; the abdominal MRI is one in its values
