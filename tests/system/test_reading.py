"""JSON and YAML from strangers: one clear error, in bounded time and memory."""

import os
import tracemalloc

import pytest

from ulna.errors import UsageError
from ulna.recipe import Plan, Recipe, from_yaml, parse
from ulna.system.reading import MOST_NODES, parse_json, parse_yaml, read_json, read_json_object, read_yaml

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 10))


@pytest.mark.parametrize(
    "text",
    [
        LAUGHS,
        MERGES,
        "a: &a [*a]",
        "a: " + "[" * 100_000,
        "a: " + "{a: " * 500,
        "\n".join(" " * n + "a:" for n in range(500)),
        "- " * 5000,
        "a: !!python/object/apply:os.system ['echo']",
        "a: 2020-13-45",
        "a: !!int ''",
        "a: !!float x",
        "a: !!bool maybe",
        "a: !!binary '*'",
        "? [a]\n: 1",
        "a: [1, 2",
        "a: \x1b[2J",
        "\ta: 1",
    ],
    ids=range(17),
)
def test_yaml_that_is_none_or_a_bomb_is_one_short_error(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    tracemalloc.start()
    try:
        with pytest.raises(UsageError, match=r"recipe\.yaml: ") as error:
            from_yaml(Recipe, path)
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()
    assert len(str(error.value)) < 3000
    assert "\x1b" not in str(error.value)


def test_aliases_that_stand_for_little_are_read():
    assert parse_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: [*a, *a]", "") == {
        "a": {"x": 1}, "b": {"x": 1, "y": 2}, "c": [{"x": 1}, {"x": 1}],
    }  # fmt: skip


def test_a_message_shows_the_beginning_of_a_long_value(tmp_path):
    values = {"model": ["x" * 10_000] * 1000, "y" * 10_000: 1, "training": {"epochs": "e" * 10_000}}
    with pytest.raises(UsageError) as error:
        parse(Recipe, values)
    assert len(str(error.value)) < 3000


def test_a_thousand_faults_are_counted():
    with pytest.raises(UsageError, match="more faults") as error:
        parse(Recipe, {"architecture": {"channels": ["x"] * 60}})
    assert len(str(error.value).splitlines()) <= 22


@pytest.mark.parametrize(
    "text",
    ["", "{", "[" * 100_000, '{"a":' * 1000, "1" * 10_000, "[" * 100 + "]" * 100, '"\\ud800"', '"a'],
    ids=range(8),
)
def test_json_that_is_none_is_one_error(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"a\.json: ") as error:
        read_json(path)
    assert len(str(error.value)) < 500


def test_json_of_another_kind_than_an_object_is_said(tmp_path):
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(UsageError, match="holds list and no fields"):
        read_json_object(tmp_path / "a.json")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize("read", [read_json, read_yaml])
def test_a_pipe_never_ends_and_is_not_read(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="is not a file"):
        read(tmp_path / "pipe")


@pytest.mark.parametrize("read", [read_json, read_yaml])
def test_files_of_another_size_or_coding_are_named(tmp_path, read):
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 33)
    with pytest.raises(UsageError, match="8,589,934,592 bytes; at most"):
        read(tmp_path / "large")
    (tmp_path / "bytes").write_bytes(b"a: \xff\xfe")
    with pytest.raises(UsageError, match="not UTF-8"):
        read(tmp_path / "bytes")
    with pytest.raises(UsageError, match="No such file"):
        read(tmp_path / "absent")


def test_an_empty_yaml_file_has_no_fields(tmp_path):
    (tmp_path / "a").write_text("")
    assert read_yaml(tmp_path / "a") == {}
    with pytest.raises(UsageError, match="spatial_dims: field required"):
        from_yaml(Plan, tmp_path / "a")


def test_what_a_text_stands_for_is_counted_once_for_each_use():
    line = "[" + ", ".join("x" for _ in range(1000)) + "]"
    assert MOST_NODES == 100_000
    parse_yaml(f"a: &a {line}\nb: [{', '.join(['*a'] * 90)}]", "")
    with pytest.raises(UsageError, match="stands for more than 100,000 values"):
        parse_yaml(f"a: &a {line}\nb: [{', '.join(['*a'] * 110)}]", "")


def test_json_may_go_sixty_levels_deep():
    assert parse_json("[" * 60 + "]" * 60, "")
