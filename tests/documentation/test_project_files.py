"""Files about the project agree with pyproject.toml and constraints.txt, and invent no names or addresses."""

import re
import tomllib

import pytest
import yaml

from tests.places import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINNED = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
ABOUT = [
    *(ROOT / name for name in ("CITATION.cff", "SECURITY.md", "CODE_OF_CONDUCT.md", "CONTRIBUTING.md", "mkdocs.yml")),
    *(path for path in (ROOT / ".github").rglob("*") if path.is_file()),
]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_citation_is_that_of_the_project():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert citation["authors"] == PROJECT["authors"]
    assert {"cff-version", "message", "title"} <= set(citation)


@pytest.mark.parametrize("path", ABOUT, ids=lambda path: path.name)
def test_no_address_is_invented(path):
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"[\w.]+@[\w-]+\.\w+", text)
    assert [link for link in re.findall(r"https?://\S+", text) if "pytorch.org" not in link] == []


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_may_only_read_and_names_versions(path):
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"]) for step in steps if "uses" in step)
    made = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    called = {name for step in steps for name in re.findall(r"\bmake (\w+)", step.get("run", ""))}
    assert called <= made
    pins = {pin for step in steps for pin in re.findall(r"torch==([\d.]+)(?!\*)\b", step.get("run", ""))}
    assert pins <= {PINNED["torch"]}


def test_hosted_tests_take_the_oldest_and_newest_versions():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8"))["jobs"]
    lowest = next(one for one in PROJECT["dependencies"] if one.startswith("torch>=")).removeprefix("torch>=")
    assert jobs["torch"]["strategy"]["matrix"]["torch"] == [f"torch=={lowest}.*", "torch"]
    python = jobs["pinned"]["strategy"]["matrix"]["python"]
    assert python == ["3.11", "3.12", "3.13"]
    assert PROJECT["requires-python"] == f">={python[0]}"


def test_hooks_have_the_pinned_versions():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert [repo["repo"] for repo in hooks] == ["local"]
    pins = [pin for hook in hooks[0]["hooks"] for pin in hook.get("additional_dependencies", ())]
    assert pins and set(pins) == {f"ruff=={PINNED['ruff']}"}


def test_what_builds_the_site_is_pinned():
    pinned = {normal(name) for name in PINNED}
    wanted = [normal(re.match(r"[\w-]+", one)[0]) for one in PROJECT["optional-dependencies"]["docs"]]
    assert wanted and [name for name in wanted if name not in pinned] == []


def test_templates_of_issues_ask_for_no_images_of_patients():
    templates = [
        yaml.safe_load(path.read_text(encoding="utf-8")) for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")
    ]
    forms = [template for template in templates if "body" in template]
    assert len(forms) == 2
    assert all({"name", "description", "body"} <= set(form) for form in forms)
    assert any("images of patients" in str(form) for form in forms)
