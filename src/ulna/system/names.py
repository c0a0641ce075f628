"""Names of the files by which folders of ulna's own are known: cheap to import, for what is told before a verb is."""

RUN_FILE, PLAN_FILE = "recipe.yaml", "plan.yaml"
FOLDS_FILE = "folds.yaml"  # of a folder with a run folder for every fold
PREDICT_FILE = "predict.json"  # what `predict` says of a folder of masks
ZOO = "zoo:"  # before the name of a segmenter that comes with ulna-runtime


def is_of_the_zoo(word: object) -> bool:
    """Whether a word names a segmenter that comes with ulna-runtime rather than a path."""
    return str(word).startswith(ZOO)
