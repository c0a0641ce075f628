"""Images that are a folder, put in place of one another."""

import pytest

from ulna.system import trees
from ulna.system.trees import put_in_place


def tree(path, text):
    path.mkdir(parents=True)
    (path / ".zattrs").write_text(text)
    return path


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_tree_takes_the_name_of_another(tmp_path, monkeypatch, exchanges):
    """By an exchange, in which the name is never free; or by two renames, where there is none."""
    new, old = tree(tmp_path / "staging" / "a.zarr", "new"), tree(tmp_path / "a.zarr", "old")
    if not exchanges:
        monkeypatch.setattr(trees, "_exchange", lambda one, other: False)
    elif not trees._exchange(new, old):
        pytest.skip("this file system exchanges no names")
    else:
        assert ((new / ".zattrs").read_text(), (old / ".zattrs").read_text()) == ("old", "new")
        trees._exchange(new, old)
        monkeypatch.setattr(type(new), "replace", lambda *_: pytest.fail("the name was free for a moment"))
    put_in_place(new, old)
    assert (old / ".zattrs").read_text() == "new"
    assert list((tmp_path / "staging").iterdir()) == []


def test_an_exchange_with_nothing_does_nothing(tmp_path):
    new = tree(tmp_path / "a.zarr", "new")
    assert not trees._exchange(new, tmp_path / "b.zarr")
    assert (new / ".zattrs").read_text() == "new"
