"""The command line: exit codes, messages, and that its words are those of the functions."""

import errno
import inspect
import json
import os
import re
import subprocess
import sys

import pytest

import ulna
from ulna.cli import main as cli
from ulna.networks.profile import cost
from ulna.verbs import VERBS, find


@pytest.mark.parametrize("verb", VERBS)
def test_the_summary_is_the_first_line_of_the_docstring(verb):
    function = find(VERBS[verb].place)
    name = verb.replace("-", "_")
    assert function.__name__ == name
    assert inspect.getdoc(function).splitlines()[0] == VERBS[verb].summary
    assert getattr(ulna, name) is function


@pytest.mark.parametrize("verb", VERBS)
def test_help_shows_every_flag_and_an_example(verb, capsys):
    assert cli.run([verb, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"ulna {verb} " in out
    for name, parameter in inspect.signature(find(VERBS[verb].place)).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY:
            assert f"--{name.replace('_', '-')}" in out
    assert "Example" in out and "--quiet" in out and "--json" in out


@pytest.mark.parametrize("verb", ["predict", "explain"])
def test_what_is_said_of_several_words_is_said_whole(verb):
    """Positionals of which one may be several are told in one line of the help; a docstring may have more."""
    function = find(VERBS[verb].place)
    whole = " ".join(inspect.getdoc(function).split())
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.POSITIONAL_ONLY:
            said = cli._said(function, name)
            after = whole.partition(f" {name}: {said}")[2]
            assert said and re.match(r"\.? \w+: ", after), said


POSITIONALS = {
    "check": "DATA", "plan": "DATA", "models": "[NAME]", "train": "DATA", "predict": "RUN [RUN ...] DATA",
    "evaluate": "PREDICTIONS LABELS", "explain": "RUN [RUN ...] IMAGE", "prune": "RUN", "compare": "DATA",
    "bench": "[NAME] [DATA]", "recipes": "[NAME]", "export": "RUN [RUN ...]", "info": "RUN", "import-weights": "FILE",
    "convert": "IMAGE TARGET",
}  # fmt: skip


@pytest.mark.parametrize("verb", POSITIONALS)
def test_help_names_what_stands_without_a_flag(verb, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    cli.run([verb, "--help"])
    usage = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("usage: "))
    words = usage.removeprefix(f"usage: ulna {verb} [-h] ").removeprefix("[OPTIONS] ")
    assert re.split(r" \[?--", words)[0] == POSITIONALS[verb]


def test_help_imports_nothing_heavy():
    heavy = ["torch", "numpy", "monai", "matplotlib", "scipy", "tyro"]
    code = (
        f"import sys; from ulna.cli.main import run; run(['--help']); print([m for m in {heavy} if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]"
    assert all(verb in out for verb in VERBS)
    assert "not a medical device" in out


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        pytest.param(["models"], marks=pytest.mark.slow),
        pytest.param(["models", "--json"], marks=pytest.mark.slow),
        ["recipes"],
    ],
    ids=" ".join,
)
def test_a_reader_that_has_gone_is_no_error(arguments):
    """As in `ulna models | head -1`."""
    quiet = {**os.environ, "ULNA_NATIVE": "0"}  # else a machine without a compiler is told so
    command = [sys.executable, "-m", "ulna", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=quiet) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 0


@pytest.mark.slow
def test_a_training_goes_on_where_nobody_reads_its_log(discs, tmp_path):
    tiny = ["--epochs", "2", "--set", "architecture.channels=[2,4]", "--set", "training.min_steps=2"]
    command = [
        sys.executable,
        "-m",
        "ulna",
        "train",
        str(discs),
        "--model",
        "unet",
        "--out",
        str(tmp_path / "run"),
        *tiny,
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    process.stderr.close()
    assert process.wait(timeout=120) == 0
    assert (tmp_path / "run" / "summary.json").exists()


def test_version_carries_the_research_use_statement(capsys):
    assert cli.run(["--version"]) == 0
    assert "not a medical device" in capsys.readouterr().out


def test_models_as_table_and_as_json(capsys, monkeypatch):
    few = {name: cost.NAMED[name] for name in ("zhou/unetpp_ds", "zhou/unet", "carvalho/sdnu_net_liver")}
    monkeypatch.setattr(cost, "NAMED", few)  # all of them: the slow test of a reader that has gone
    assert cli.run(["models"]) == 0
    assert "9,041,700" in capsys.readouterr().out
    assert cli.run(["models", "zhou/unetpp_ds", "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert entry["parameters"] == 9_041_700


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian", "x"], "did you mean 'train'"),
        (["models", "unet_pp"], "did you mean"),
        (["check", "no/such/folder"], "does not exist"),
        (["train", "no/such/folder"], "does not exist"),
        (["predict", "tests", "tests", "--out", "y"], "not a run folder"),
        (["train", "DISCS", "--epochs", "many"], "invalid literal"),
        (["train", "tests", "--modle", "unet"], "--model"),
        (["evaluate", "a", "b"], "does not exist"),
    ],
)
def test_usage_errors_exit_with_2_and_without_a_traceback(arguments, words, capfd, discs):
    assert cli.run([str(discs) if word == "DISCS" else word for word in arguments]) == 2
    out, err = capfd.readouterr()
    assert words in out + err
    assert "Traceback" not in out + err


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [
        (["check", "no"], ["no"]),
        (["plan", "no", "--model", "unet"], ["no"]),
        (["train", "--model", "unet", "no"], ["no"]),
        (["train", "tests", "--plan", "no.yaml"], ["no.yaml"]),
        (["predict", "no", "tests", "no2", "--out", "x"], ["no", "no2"]),
        (["evaluate", "tests", "no"], ["no"]),
        (["explain", "no", "--tta", "no2", "--out", "x"], ["no", "no2"]),
        (["predict", "--tta", "no", "no2", "--overwrite", "--out", "x"], ["no", "no2"]),
        (["prune", "tests", "--data", "no", "--out", "x"], ["no"]),
        (["train", "tests", "--recipe", "my/no"], ["my/no"]),
        (["compare", "tests", "--recipe", "no.yaml", "--out", "x"], ["no.yaml"]),
        (["prune", "--level=L1", "no", "--out", "x"], ["no"]),
        (
            ["compare", "no", "--models", "unet,fcn", "--vary", "seed=-1", "--beside", "no2", "--out", "x"],
            ["no", "no2"],
        ),
    ],
)
def test_a_path_that_is_not_there_is_told_before_the_verb_is_imported(arguments, missing, monkeypatch, capfd):
    monkeypatch.setattr(cli, "find", lambda place: pytest.fail(f"{place} was imported"))
    assert cli.run(arguments) == 2
    err = capfd.readouterr().err
    said = [line.removeprefix("error: ").strip() for line in err.splitlines()]
    for line, path in zip(said, missing, strict=True):
        assert line in (
            f"{path}: does not exist; check the path",
            f"{path}: no such file; `ulna recipes` lists those that come with ulna",
        )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "DATA", "--modle", "unet"], "did you mean '--model'?"),
        (["predict", "tests", "DATA", "--ouput=masks"], "did you mean '--out'?"),
        (["train", "DATA", "--model", "unett"], "no model named 'unett'; did you mean 'unet'?"),
        (["compare", "DATA", "--models=unet,unetpq", "--out", "x"], "no model named 'unetpq'; did you mean 'unetpp'?"),
        (["models", "unett"], "did you mean 'unet'?"),
        (["plan", "DATA", "--recipe", "lairt"], "no recipe named 'lairt'; did you mean 'laird'?"),
        (["bench", "implicit", "no"], "no: does not exist"),
        (["check", "DATA/images"], "nearest is the data set that these images belong to"),
        (["plan", "DATA/images/disc0.png"], "is one file, not a data set"),
        (["train", "empty"], "has a layout that is not known; it holds nothing"),
        (["train", "half"], "holds images/ and no labels/ beside it"),
        (["compare", "empty", "--models", "unet", "--out", "x"], "has a layout that is not known"),
    ],
)
@pytest.mark.share(4)
def test_what_names_and_folders_tell_is_said_without_torch(words, said, discs, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "half" / "images").mkdir(parents=True)
    (tmp_path / "DATA").symlink_to(discs)
    code = f"import sys; from ulna.cli.main import run; print(run({words}), 'torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert said in " ".join(found.stderr.split()) and found.stdout.split() == ["2", "False"]


@pytest.mark.parametrize("verb", VERBS)
def test_the_flags_are_those_of_the_function(verb):
    """What follows any other flag is its value, and no path of the verb."""
    parameters = inspect.signature(find(VERBS[verb].place)).parameters.values()
    named = {"--" + one.name.replace("_", "-"): one for one in parameters if one.kind is one.KEYWORD_ONLY}
    assert VERBS[verb].switches.split() == [flag for flag, one in named.items() if one.default is False]
    assert VERBS[verb].flags.split() == [flag for flag, one in named.items() if one.default is not False]


@pytest.mark.parametrize("verb", ["predict", "explain", "prune"])
def test_a_folder_that_is_no_run_is_told_before_the_verb_is_imported(verb, monkeypatch, capfd):
    monkeypatch.setattr(cli, "find", lambda place: pytest.fail(f"{place} was imported"))
    words = ["tests"] if verb == "prune" else ["tests", "docs"]
    assert cli.run([verb, *words, "--out", "x"]) == 2
    assert "tests: not a run folder (no recipe.yaml)" in capfd.readouterr().err


def test_help_is_shown_whatever_stands_beside_it(capsys):
    assert cli.run(["predict", "no", "tests", "--help"]) == 0
    assert "Example" in capsys.readouterr().out


def test_words_that_are_no_paths_are_left_to_the_verb(monkeypatch, discs):
    class Reached(Exception):
        pass

    def reached(place):
        raise Reached

    monkeypatch.setattr(cli, "find", reached)
    for arguments in (["models", "unet"], ["bench", "sweep"], ["train", str(discs), "--recipe", "laird"]):
        with pytest.raises(Reached):
            cli._call(arguments[0], arguments[1:])


def test_a_defect_exits_with_1_and_says_so(monkeypatch, capfd):
    monkeypatch.setattr(cli, "find", lambda place: (_ for _ in ()).throw(RuntimeError("broken")))
    assert cli.run(["models"]) == 1
    assert "defect of ulna" in capfd.readouterr().err


def test_where_temporary_files_have_no_room_it_is_said(monkeypatch, capfd, discs):
    """torch imports its compiler within a training, which asks for a folder of temporary files."""

    def full(place):
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp', '/var/tmp']")

    monkeypatch.setattr(cli, "find", full)
    assert cli.run(["check", str(discs)]) == 2
    err = capfd.readouterr().err
    assert "temporary files cannot be written (No usable temporary directory found in ['/tmp'" in err
    assert "Traceback" not in err


def test_partial_failure_exits_with_3(monkeypatch, capfd):
    def fail(place):
        raise ulna.PartialFailure({"a": "truncated"}, 9)

    monkeypatch.setattr(cli, "find", fail)
    assert cli.run(["evaluate", "tests", "tests"]) == 3
    assert "1 of 10 cases failed" in capfd.readouterr().err


def test_import_ulna_is_quick_because_rooms_wait():
    code = "import sys, ulna; print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "False"


def test_flags_of_every_verb_may_stand_before_it(capsys):
    assert cli.run(["--json", "models", "unet"]) == 0
    before = capsys.readouterr().out
    assert cli.run(["models", "unet", "--json"]) == 0
    assert capsys.readouterr().out == before
    assert cli.run(["--quiet"]) == 0
    assert "usage: ulna VERB" in capsys.readouterr().out
