"""Commands that are called as those of nnU-Net and obey its rules of files: what stands in for it, which needs a torchvision.

They refuse what nnU-Net would refuse, note every call in calls.txt beside them, and segment by a threshold. In the folder, a
file `fails` ends a training after its first checkpoint, and a file `waits` lets it wait there.
"""

import sys

NAMES = ("nnUNetv2_plan_and_preprocess", "nnUNetv2_train", "nnUNetv2_predict")

CODE = """#!{python}
import argparse, json, os, sys, time
from pathlib import Path

HERE = Path(__file__).parent
RAW, PREPARED, RESULTS = (Path(os.environ["nnUNet_" + name]) for name in ("raw", "preprocessed", "results"))
with (HERE / "calls.txt").open("a") as file:
    print(Path(__file__).name, *sys.argv[1:], file=file)
assert "PYTHONPATH" not in os.environ
# else it starts eight processes to export the masks of its validation
assert int(os.environ["nnUNet_n_proc_DA"]) >= 1 and int(os.environ["nnUNet_def_n_proc"]) >= 1


def dataset(number):
    (found,) = RAW.glob(f"Dataset{{int(number):03d}}_*")
    return found


def known(trainer):
    if not trainer.startswith("nnUNetTrainer"):
        (file,) = Path(os.environ["nnUNet_extTrainer"].split(os.pathsep)[0]).glob("*.py")
        (HERE / "trainers.txt").write_text(os.environ["nnUNet_extTrainer"])
        assert f"class {{trainer}}(nnUNetTrainer)" in file.read_text()


def plan():
    words = argparse.ArgumentParser()
    for flag in ("-d", "-c", "-npfp"):
        words.add_argument(flag, required=True)
    words.add_argument("-np", nargs="+", type=int)
    words = words.parse_args()
    folder = dataset(words.d)
    told = json.loads((folder / "dataset.json").read_text())
    cases = sorted(path.name for path in (folder / "labelsTr").iterdir())
    assert told["numTraining"] == len(cases) and told["labels"]["background"] == 0
    wanted = sorted(
        case.replace(".nii.gz", f"_{{int(channel):04d}}.nii.gz") for case in cases for channel in told["channel_names"]
    )
    assert sorted(path.name for path in (folder / "imagesTr").iterdir()) == wanted
    (PREPARED / folder.name).mkdir(parents=True)
    (PREPARED / folder.name / "nnUNetPlans.json").write_text("{{}}")


def train():
    words = argparse.ArgumentParser()
    for name in ("number", "configuration", "fold", "-tr", "-device"):
        words.add_argument(name)
    words.add_argument("--c", action="store_true")
    words = words.parse_args()
    known(words.tr)
    name = dataset(words.number).name
    split = json.loads((PREPARED / name / "splits_final.json").read_text())[int(words.fold)]
    assert split["train"] and split["val"] and not set(split["train"]) & set(split["val"])
    folder = RESULTS / name / f"{{words.tr}}__nnUNetPlans__{{words.configuration}}" / f"fold_{{words.fold}}"
    assert words.c == (folder / "checkpoint_latest.pth").exists()
    folder.mkdir(parents=True, exist_ok=True)
    print("Using splits from existing split file:", PREPARED / name / "splits_final.json")
    print("trains into", folder)
    (folder / "checkpoint_latest.pth").write_text("")
    while (HERE / "waits").exists():
        (HERE / "waiting").write_text(str(os.getpid()))
        time.sleep(0.05)
    if (HERE / "fails").exists():
        print("Traceback (most recent call last):\\n  File", HERE.parent / "lib" / "nnunetv2" / "run_training.py")
        sys.exit("no memory is left for this")
    (folder / "checkpoint_latest.pth").rename(folder / "checkpoint_final.pth")
    (folder / "validation").mkdir()
    for case in split["val"]:
        (folder / "validation" / f"{{case}}.nii.gz").write_bytes(b"")


def predict():
    import nibabel
    import numpy as np

    words = argparse.ArgumentParser()
    for flag in ("-i", "-o", "-d", "-c", "-f", "-tr", "-device", "-npp", "-nps"):
        words.add_argument(flag, required=True)
    words = words.parse_args()
    known(words.tr)
    name = dataset(words.d).name
    assert list(RESULTS.glob(f"{{name}}/{{words.tr}}__nnUNetPlans__{{words.c}}/fold_{{words.f}}/checkpoint_final.pth"))
    told = {{"folder": words.i, "output": words.o}}
    for name in ("predict_from_raw_data_args.json", "dataset.json", "plans.json"):
        (Path(words.o) / name).write_text(json.dumps(told if name.startswith("predict") else {{}}))
    for path in Path(words.i).glob("*_0000.nii.gz"):
        image = nibabel.load(path)
        array = image.get_fdata()
        mask = (array > (array.min() + array.max()) / 2).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(mask, image.affine), Path(words.o) / path.name.replace("_0000", ""))


{{"nnUNetv2_plan_and_preprocess": plan, "nnUNetv2_train": train, "nnUNetv2_predict": predict}}[Path(__file__).name]()
"""


def install(folder):
    """The commands in a folder, and a python beside them that knows no nnU-Net."""
    folder.mkdir()
    for name in NAMES:
        (folder / name).write_text(CODE.format(python=sys.executable))
        (folder / name).chmod(0o755)
    return folder


def calls(folder):
    """The words of every call so far."""
    return [line.split() for line in (folder / "calls.txt").read_text().splitlines()]
