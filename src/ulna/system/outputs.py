"""Output folders: one rule that keeps what others made. Nothing is replaced that ulna did not write itself.

`check_folder` refuses folders in which files of ulna could replace, or pass for, images, references or a run.
`check_free` refuses a folder in which something else lies, for work that fills one, or goes on in one of its own.
`check_names` refuses to replace single files. All are asked before any work.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

from ulna.errors import UsageError, listed
from ulna.system import names
from ulna.system.files import TEMPORARY, unwritable
from ulna.system.locking import LOCK
from ulna.system.trees import TREE_SUFFIX, is_tree, tree_files

RUN_FILE, FOLDS_FILE, PREDICT_FILE = names.RUN_FILE, names.FOLDS_FILE, names.PREDICT_FILE
_SHOWN = 3  # names in a message
# folders of a data set, in lower case: not every file system tells Labels from labels
DATA_FOLDERS = frozenset({"images", "labels", "imagestr", "labelstr", "imagests", "labelsts"})
# where one case has a folder of its own, and where the folders of a data set have other names: only beside each other
PAIRED = {"images": "masks", "masks": "images", "original": "ground truth", "ground truth": "original"}
# what `predict` notes in a folder while it works, and what `explain` says of its maps
JOURNAL, EXPLAIN_FILE = "predict.unfinished.jsonl", "explain.json"
SHARES = ".predict-shares"  # where the processes of one `predict` divide its cases, until it has ended
WRITTEN = frozenset({PREDICT_FILE, JOURNAL, SHARES, EXPLAIN_FILE, "summary.json"})  # marks of ulna's own


def check_folder(out: Path, inputs: Iterable[Path] = (), remedy: str = "choose another --out") -> None:
    """Refuse an output folder that belongs to somebody else; links and `..` are followed first.

    Refused are: what is no folder, a run folder, a data set's root, its images/ or labels/ (also where it does not exist
    yet: masks in it would pass for references), the images/ and masks/ of a case, and a folder that is an input or holds
    one. A masks/ beside an images/ of several images is as good as any while it holds nothing but what ulna wrote.

    Args:
        out: where files are to be written; it need not exist.
        inputs: files and folders that are read.
        remedy: how the message ends.

    Raises:
        UsageError: with the reason.
    """
    _check_kind(out, remedy)
    real = Path(os.path.realpath(out))
    if os.path.lexists(out / RUN_FILE):
        raise UsageError(f"{out}: is a run folder with files of its own; {remedy}")
    if os.path.lexists(out / FOLDS_FILE):
        raise UsageError(f"{out}: holds the run folders of a cross-validation; {remedy}")
    for read in dict.fromkeys(inputs):
        folders = (read,) if read.is_dir() else (read.parent, Path(os.path.realpath(read)).parent)
        if any(same_place(real, folder) for folder in folders):
            raise UsageError(f"{out}: holds the images or the references ({read}), which stay as they are; {remedy}")
        if read.suffix.lower() == TREE_SUFFIX and real.is_relative_to(os.path.realpath(read)):
            raise UsageError(f"{out}: lies in an image ({read}), which stays as it is; {remedy}")
    if _is_root(real):
        raise UsageError(f"{out}: is the root of a data set, which stays as it is; {remedy}")
    if real.name.lower() in DATA_FOLDERS and _is_root(real.parent, but=real.name.lower()):
        raise UsageError(f"{out}: belongs to the data set {real.parent}, which stays as it is; {remedy}")
    if _is_paired(real):
        raise UsageError(f"{out}: holds, or would pass for, references of {real.parent}, which stay; {remedy}")


def check_free(
    out: Path, own: Collection[str] = (), *, what: str = "is not empty", remedy: str = "choose another --out"
) -> None:
    """Refuse a folder that something else lies in.

    Args:
        out: where files are to be written; it need not exist.
        own: the names of what may lie there: earlier work of the same kind.
        what: how the message says what is wrong.
        remedy: how the message ends.

    Raises:
        UsageError: with some of what lies there.
    """
    _check_kind(out, remedy)
    others = foreign(out, own)
    if others:
        raise UsageError(f"{out}: {what} ({listed(others, _SHOWN)}); {remedy}")


def foreign(folder: Path, own: Collection[str] = ()) -> list[str]:
    """The names in a folder that are neither in `own` nor transient; none where there is no folder.

    Raises:
        UsageError: if it cannot be read.
    """
    if not folder.is_dir():
        return []
    try:
        names = [path.name for path in folder.iterdir()]
    except OSError as error:
        raise UsageError(f"{folder}: cannot be read ({error.strerror}); check its permissions") from None
    return sorted(name for name in names if name not in own and not is_transient(name))


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, where there is none.

    Raises:
        UsageError: if it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from None


def _check_kind(out: Path, remedy: str) -> None:
    """Refuse what is no folder."""
    if os.path.lexists(out) and not out.is_dir():
        what = "is a file" if out.exists() else "is a link to nothing"
        raise UsageError(f"{out}: {what}; {remedy}")


def _is_root(folder: Path, but: str = "") -> bool:
    """Whether a folder holds the folders of a data set, or of its cases; `but` is one that does not count."""
    names = set(_folders(folder)) - {but}
    if names & DATA_FOLDERS or {"original", "ground truth"} <= names:
        return True
    return not but and any({"images", "masks"} <= _folders(child).keys() for child in _folders(folder).values())


def _is_paired(folder: Path) -> bool:
    """Whether a folder is one of two that belong together, as CASE/images and CASE/masks do."""
    name = _plain_name(folder.name)
    beside = _folders(folder.parent).get(PAIRED.get(name, ""))
    if beside is None or name != "masks":
        return beside is not None
    mine = {name for name in _names(folder) if not is_transient(name)}
    images = [image for image in _names(beside) if not image.startswith(".")]
    return len(images) <= 1 or (bool(mine) and not mine & WRITTEN)


def _folders(folder: Path) -> dict[str, Path]:
    """The folders in a folder by their plain names; none where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return {_plain_name(entry.name): Path(entry.path) for entry in entries if entry.is_dir()}
    except OSError:
        return {}


def _names(folder: Path) -> set[str]:
    try:
        return {path.name for path in folder.iterdir()}
    except OSError:
        return set()


def _plain_name(name: str) -> str:
    """In lower case, with spaces: data sets come with Ground Truth, ground_truth and ground-truth."""
    return name.lower().replace("_", " ").replace("-", " ")


def same_place(a: Path, b: Path) -> bool:
    """Whether two paths are one place, also where names are told apart by their letters' case on one of them only."""
    try:
        return a.samefile(b)
    except OSError:  # one of them is not there
        return os.path.realpath(a) == os.path.realpath(b)


def check_names(out: Path, own: Mapping[str, Callable[[Path], bool]], remedy: str = "choose another --out") -> None:
    """Refuse to replace files of others in an output folder.

    Args:
        out: the folder.
        own: every name that will be written -> whether what has that name was written by ulna.
        remedy: how the message ends.

    Raises:
        UsageError: with all files in the way.
    """
    foreign = [name for name, is_own in own.items() if os.path.lexists(out / name) and not _is_own(out / name, is_own)]
    if foreign:
        are = "is" if len(foreign) == 1 else "are"
        raise UsageError(f"{out}: {listed(foreign)} {are} not written by ulna, and would be replaced; {remedy}")


def _is_own(path: Path, is_own: Callable[[Path], bool]) -> bool:
    try:
        return is_plain(path) and is_own(path)
    except (OSError, ValueError):  # neither readable nor in the form that ulna writes
        return False


def is_transient(name: str) -> bool:
    """Whether a name is of a lock or of what is not yet in place: nobody's work, also where a killed process left it."""
    return name == LOCK or name.startswith(TEMPORARY)


def is_plain(path: Path) -> bool:
    """Whether an ordinary file has this name: no link, whatever it leads to, and no folder."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def file_digest(*paths: Path) -> str:
    """The SHA-256 of one file's bytes, or of several files' one after the other, in hexadecimal digits.

    Of a folder that is one image, such as OME-Zarr: of the names and bytes of all its files.

    Raises:
        OSError: if one of them cannot be read; what is no file (a pipe would wait for ever) is never opened.
    """
    if len(paths) != 1:
        return hashlib.sha256("".join(file_digest(path) for path in paths).encode()).hexdigest()
    if is_tree(paths[0]):
        rows = [f"{file.relative_to(paths[0]).as_posix()}\n{file_digest(file)}\n" for file in tree_files(paths[0])]
        return hashlib.sha256("".join(rows).encode("utf-8", "surrogateescape")).hexdigest()
    if not paths[0].is_file():
        raise OSError(f"{paths[0]}: is no file")
    with paths[0].open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def ignores_case(folder: Path) -> bool:
    """Whether a folder that exists takes `a` and `A` for one name."""
    probe = folder / f"{TEMPORARY}{os.getpid()}-case"
    try:
        probe.touch()
        return probe.with_name(probe.name.upper()).exists()
    finally:
        probe.unlink(missing_ok=True)
