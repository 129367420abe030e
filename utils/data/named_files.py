"""Which sound file a table of labels means: it may write a bare name, or a path of the machine that made it."""

import posixpath
import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from utils.core.text import some

NO_FILE = "no such file in the folder of recordings"


def match(
    names: Iterable[str],
    paths: Sequence[str],
    raw_dir: Path,
    suffixes: Collection[str],
    named_after: Collection[str] = (),
) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Find the files that tables name.

    Case and Unicode form do not count, and if no file has the suffix of the name, any other does. The folders that a
    name gives must be those of the file. Two kinds of names may differ in their first folders, because these can be
    those of another machine, or those of the tables: an absolute path, and the name of a table. They mean the file with
    most folders in common. If two names with different folders mean the same file equally well, neither is used: they
    may be two files, of which one is missing.

    Parameters
    ----------
    names : iterable of str
        With ``/`` between folders.
    paths : sequence of str
        All sound files, relative to `raw_dir`.
    raw_dir : Path
    suffixes : collection of str
        Of sound files, in lower case.
    named_after : collection of str
        The names that are those of tables. A name without a suffix counts as one, too.

    Returns
    -------
    path_of : dict of str to str
        By name.
    problems : list of (str, str)
        Each name that means no file, or several, and the reason.
    """
    above = [_fold(part) for part in Path(raw_dir).resolve().parts]
    by_name, by_stem = defaultdict(list), defaultdict(list)
    for path in paths:
        name = posixpath.basename(_fold(path))
        by_name[name].append(path)
        by_stem[posixpath.splitext(name)[0]].append(path)
    path_of, problems, alike = {}, [], defaultdict(list)
    for name in names:
        *folders, last = _fold(posixpath.normpath(name)).split("/")
        stem, suffix = posixpath.splitext(last)
        is_sound = suffix in suffixes
        is_absolute = re.match(r"/|[a-z]:", _fold(name)) is not None
        is_loose = name in named_after or not is_sound or ".." in folders or is_absolute
        found = by_name.get(last) or by_stem.get(stem if is_sound else last, [])
        n_common = {path: _n_common(folders, [*above, *_fold(path).split("/")[:-1]]) for path in found}
        if not is_loose:
            n_common = {path: n for path, n in n_common.items() if n == len(folders)}
        most = max(n_common.values(), default=0)
        best = [path for path, n in n_common.items() if n == most]
        own = "/".join([*folders, stem if is_sound else last])
        whole = [path for path in best if posixpath.splitext(_fold(path))[0] == own]
        best = whole if len(whole) == 1 else best
        if len(best) == 1:
            path_of[name] = best[0]
            alike[best[0]].append((most, folders, name))
        else:
            several = f"several files have this name ({some(sorted(best), 3)}): give the path in the tables"
            problems.append((name, several if best else NO_FILE))
    for path, own in alike.items():
        for name in _doubtful(own, path.count("/")):
            del path_of[name]
            others = some(sorted(other for _, _, other in own if other != name), 3)
            problems.append((name, f"it may be {path}, but so may {others}: give the path in the tables"))
    return path_of, problems


def _doubtful(own: Sequence[tuple[int, Sequence[str], str]], n_folders: int) -> list[str]:
    """Return the names of one file that may mean another one; `own` has its folders in common, folders and name."""
    unsure = [(n, folders, name) for n, folders, name in own if folders and n < max(n_folders, 1)]
    most, longest, _ = max(own, key=lambda item: (item[0], len(item[1])))
    odd = [item for item in unsure if _n_common(item[1], longest) < min(len(item[1]), len(longest))]
    is_tie = any(n == most for n, _, _ in odd)
    return [name for _, _, name in (unsure if is_tie else odd)]


def _fold(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()


def _n_common(folders: Sequence[str], others: Sequence[str]) -> int:
    """Return the number of last folders that two paths have in common."""
    n = 0
    while n < min(len(folders), len(others)) and folders[-1 - n] == others[-1 - n]:
        n += 1
    return n
