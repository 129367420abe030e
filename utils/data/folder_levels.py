"""Find the level of a folder tree that names the species."""

import logging
import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path

from utils.core.errors import InputError
from utils.core.text import counted
from utils.data.recording_ids import tidy

log = logging.getLogger(__name__)

Folders = tuple[str, ...]

FOLDER_SUFFIX = re.compile(r"(?<=.)[ _-]+(sounds?|audio|recordings?)$", re.IGNORECASE)

SPLIT = re.compile(
    r"(train(ing)?|val(id(ation)?)?|dev(el(opment)?)?|eval(uation)?|test(ing)?|hold[ _-]?out)"
    r"([ _-]?(set|split|data|short|audio|soundscapes?|clips|files|\d+))*",
    re.IGNORECASE,
)
NUMBER_OR_LETTER = r"[ _-]?(\d+[a-z]?|[a-z]\d*)"
PART = re.compile(
    r"(fold|split|part|batch|set|subset|site|station|plot|transect|point|location|recorder|logger|unit|device|aru|"
    rf"audiomoth|card|session|visit|day|night|week|survey|area|zone|region){NUMBER_OR_LETTER}"
    r"|(19|20)\d\d([-_ ]?\d\d?){0,2}|spring|summer|autumn|fall|winter",
    re.IGNORECASE,
)
# Folders below a species: kinds of sounds, sexes, ages, formats, qualities.
KIND = re.compile(
    r"(.*[^a-z])?(songs?|calls?|alarm|drum(s|ming)?|flight|begging|duet|contact|male|female|adult|juvenile|nestling|"
    r"pair|wav|mp3|flac|ogg|audio|sounds?|recordings?|raw|clean|good|bad|other|misc|gesang|rufe?|xeno[- _]?canto)"
    r"([^a-z].*)?|q?[a-e]|\d{1,2}",
    re.IGNORECASE,
)
# Turdus merula, Corvus_corone_cornix: names of persons and places have a capital in the second word.
BINOMIAL = re.compile(r"[A-Z][a-z]{2,}(-[a-z]+)?[ _-][a-z]{3,}(-[a-z]+)?([ _-][a-z]{3,})?")
NAMED = 4


def label_of(folder: str) -> str:
    """Return the label for a folder's name."""
    return FOLDER_SUFFIX.sub("", tidy(folder))


def check_level(flag: str, level: int, files: Sequence[Folders], raw_dir: Path) -> None:
    """Raise `InputError` if no file has `level` folders above it; `files` as for `find_label_level`."""
    deepest = max(map(len, files), default=level)
    if deepest < level:
        raise InputError(
            f"{flag} {level}: the deepest file below {raw_dir} has {counted(deepest, 'folder')}; give a level that "
            f"files have, or leave {flag} out"
        )


def find_label_level(files: Sequence[Folders], raw_dir: Path) -> int:
    """Return the level of folders that holds the labels, counted from 1 (the folders in `raw_dir`).

    It is the first level with at least two folders. In these cases the level is not clear, and the function raises an
    error:

    - The folders of this level are named after splits (``train``, ``test``), or after parts of a collection (``fold1``,
      ``SiteA``, ``2021``) and contain folders.
    - The folders below are named like species (*Turdus merula*), and those of this level are not.
    - Most files are in folders below that have the same names in several folders of this level, and neither these names
      (``song``, ``call``) nor those of this level (*Turdus merula*) show which of the two is the species.

    Parameters
    ----------
    files : sequence of tuple of str
        Folders of every sound file, from `raw_dir` down.
    raw_dir : Path
        Path for the messages.

    Raises
    ------
    InputError
        If it is not clear; the message names the levels, and ``--label_level``, which sets the level.
    """
    level = _first_with_several(set(files))
    uppers = sorted({folders[level] for folders in files if len(folders) > level})
    if len(uppers) < 2:
        return level + 1
    place = raw_dir.joinpath(*next(folders for folders in files if len(folders) > level)[:level])
    nested = [folders for folders in files if len(folders) > level + 1]
    lowers = sorted({folders[level + 1] for folders in nested})
    deeper, this = f"--label_level {level + 2}", f"--label_level {level + 1}"
    _check_named_after(uppers, lowers, level, place, is_nested=len(nested) > len(files) / 2)
    of_upper = defaultdict(list)
    for folders in files:
        if len(folders) > level:
            of_upper[folders[level]].append(folders)
    if _are_species(uppers):
        _warn_of_odd_ones(of_upper, level, place)
    elif nested and _are_species(lowers):
        raise InputError(
            f"{place}: the folders in {_some(uppers)} are named like species ({_some(lowers)}): give {deeper} to use "
            f"these as the labels, with --recordist_level {level + 1} if the folders above are recordists or sites, "
            f"which stay on one side of the split; or {this} if {_some(uppers)} are the labels"
        )
    if not nested or all(KIND.fullmatch(name) or PART.fullmatch(name) for name in lowers):
        return level + 1
    parents = defaultdict(set)
    for folders in nested:
        parents[folders[level + 1]].add(folders[level])
    repeated = {name for name, own in parents.items() if len(own) > 1}
    if sum(folders[level + 1] in repeated for folders in nested) < len(files) / 2:
        return level + 1
    if _are_species(uppers):
        log.warning(
            "%s: folders of several species contain folders of the same name (%s). If they are recordists or sites, "
            "--recordist_level %d keeps each on one side of the split",
            *(place, _some(repeated), level + 2),
        )
        return level + 1
    raise InputError(
        f"{place}: several of the folders {_some(uppers)} contain folders of the same name ({_some(repeated)}). If "
        f"the species are {_some(repeated, 2)}, give {deeper}; if they are {_some(uppers, 2)}, give {this}. With "
        f"--recordist_level the other level, if it is that of recordists or sites, stays on one side of the split"
    )


def _check_named_after(uppers: list[str], lowers: list[str], level: int, place: Path, is_nested: bool) -> None:
    """Refuse folders that are named after splits, or after parts of a collection; `is_nested`: most contain folders."""
    deeper, this = f"--label_level {level + 2}", f"--label_level {level + 1}"
    n_splits = sum(SPLIT.fullmatch(name) is not None for name in uppers)
    if n_splits > 1 or n_splits == len(uppers):
        if not lowers:
            raise InputError(
                f"{place}: the folders {_some(uppers)} are named after splits, not species, and contain no folders; "
                f"expected a folder per species: give a metadata table with --metadata, or {this} if these are labels"
            )
        raise InputError(
            f"{place}: the folders {_some(uppers)} are named after splits, and the folders in them look like the "
            f"species ({_some(lowers)}): give {deeper} to use these as the labels. The recordings are then split "
            f"again, by recordist; the present split is not kept"
        )
    if all(PART.fullmatch(name) for name in uppers):
        if is_nested:
            raise InputError(
                f"{place}: the folders {_some(uppers)} are named after parts of a collection, and the folders in them "
                f"look like the species ({_some(lowers)}): give {deeper} to use these as the labels, with "
                f"--recordist_level {level + 1} to keep each part on one side of the split; or {this} if "
                f"{_some(uppers)} are the labels"
            )
        log.warning("%s: the labels %s are named after parts of a collection, not after species", place, _some(uppers))


def _first_with_several(folders: Collection[Folders]) -> int:
    """Return the number of folder levels above the species: levels with only one folder that contains audio."""
    level = 0
    while True:
        children = {own[level] for own in folders if len(own) > level}
        if len(children) > 1:
            return level
        if not children:  # a chain of single folders: the last one is the only species
            return max(level - 1, 0)
        level += 1


def _are_species(names: Collection[str]) -> bool:
    return 2 * sum(_is_species(name) for name in names) > len(names)


def _is_species(name: str) -> bool:
    label = label_of(name)
    return BINOMIAL.fullmatch(label) is not None and not KIND.fullmatch(label)


def _warn_of_odd_ones(of_upper: dict[str, list[Folders]], level: int, place: Path) -> None:
    """Warn of folders on the level of the species that are not named like a species, but contain such folders."""
    for name, files in sorted(of_upper.items()):
        below = {folders[level + 1] for folders in files if len(folders) > level + 1}
        if not _is_species(name) and below and all(len(f) > level + 1 for f in files) and all(map(_is_species, below)):
            log.warning(
                "%s: the folder %s is treated as a species, but the folders in it are named like species (%s): move "
                "them to the folder of the others",
                *(place, name, _some(below)),
            )


def _some(names: Collection[str], most: int = NAMED) -> str:
    names = sorted(names)
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
