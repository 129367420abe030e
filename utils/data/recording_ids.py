"""Find the files that are pieces of one recording, from their names alone."""

import logging
import math
import posixpath
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from utils.core.text import counted

log = logging.getLogger(__name__)

XENO_CANTO_ID = re.compile(r"(?<![a-z0-9])xc\d+(?![a-z0-9])", re.IGNORECASE | re.ASCII)

# Endings of names that always mark a piece or a copy of a file. A character must stand before them.
SECONDS = r"\d+(?:\.\d+)?"
PIECE_SUFFIXES = [
    re.compile(rf"(?<=[^/])[ _-]{pattern}$", re.IGNORECASE | re.ASCII)
    for pattern in (
        rf"{SECONDS}s(?:ec)?[ _-]{SECONDS}s(?:ec)?",  # _9.0s_12.0s: BirdNET-Analyzer, opensoundscape
        r"\d+\.\d+[ _-]\d+\.\d+",  # _9.0_12.0
        r"\d+\.\d+s(?:ec)?",  # _9.0s
        r"(?:segment|seg|part|chunk|clip|piece|slice|snippet|window|excerpt|aug(?:mented)?)[ _-]?\d+",
        r"(?:-[ _])?copy(?:[ _]?\(?\d+\)?)?",
    )
]
BIRDNET_PREFIX = re.compile(r"(?:(?<=/)|^)[01]\.\d+_\d+_(?=[^/]+$)", re.ASCII)  # 0.93_3_: confidence and rank

# Endings that can have several meanings; the names of the other files show whether they mark a piece.
NUMBERED = re.compile(r"(?P<stem>[^/]+?)(?P<mark>[ _-]+)(?P<number>\d{1,4})", re.ASCII)
BRACKETED = re.compile(r"(?P<stem>[^/]+?)(?P<mark> ?\()(?P<number>\d{1,4})\)", re.ASCII)
GLUED = re.compile(r"(?P<stem>[^/]*\d{8}[T_-]?\d{6})(?P<mark>)(?P<number>\d{3})", re.ASCII)  # sox: … : newfile
START_AND_END = re.compile(r"(?P<stem>[^/]+?)[_-](?P<start>0|[1-9]\d*)[_-](?P<end>[1-9]\d*)", re.ASCII)
BARE_PIECE = re.compile(
    r"(?:(?:segment|seg|part|chunk|clip|piece)[ _-]?)?(?P<number>\d{1,4})", re.IGNORECASE | re.ASCII
)
BARE_TIMES = re.compile(rf"{SECONDS}s?[ _-]{SECONDS}s?|{SECONDS}s", re.ASCII)

_YEAR, _MONTH, _DAY = r"(?:19|20)\d\d", r"(?:0[1-9]|1[0-2])", r"(?:0[1-9]|[12]\d|3[01])"
# 20251231, 31122025 and 12312025
DATE = rf"(?:{_YEAR}[-_]?{_MONTH}[-_]?{_DAY}|(?:{_DAY}[-_]?{_MONTH}|{_MONTH}[-_]?{_DAY})[-_]?{_YEAR})"
MOMENT = re.compile(rf"{DATE}[T _-]*(?:[01]\d|2[0-3])[-_:h]?[0-5]\d(?:[-_:m]?[0-5]\d)?Z?$", re.ASCII)  # date and time
SHORT_DATE = re.compile(rf"{DATE}|\d\d{_MONTH}{_DAY}", re.ASCII)
YEAR = re.compile(_YEAR, re.ASCII)
LAST_NUMBER = re.compile(r"\d{5,}$", re.ASCII)
LEAST_ALIKE = 5  # files of a folder that differ only by a number; fewer give no warning


@dataclass(frozen=True)
class RecordingName:
    """The recording of a file, from the name of the file.

    Attributes
    ----------
    recording_id : str
    origin : str or None
        A text that all pieces of one original recording share, whatever their label. None if there are no other pieces.
    """

    recording_id: str
    origin: str | None = None


def tidy(text: str) -> str:
    """Return `text` in Unicode's composed form, with single spaces."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def name_recordings(paths: Sequence[str], labels: Sequence[str]) -> list[RecordingName]:
    """Return the recording of every file; the pieces of one recording share its id.

    The id is the ``XC123`` in the file's name, or the name of the nearest folder that is such an id. Otherwise it is
    the path of the file without suffix, and without these marks of a piece:

    - **always**: start and end in seconds (``_9.0s_12.0s``, with BirdNET-Analyzer's ``0.93_3_`` before it), a word
      and a number (``_segment_4``, ``-part2``), ``- Copy``;
    - a **number** after a date and time, or after an id of five digits or more (``20250601_063000_001``, sox's
      ``20250601_063000001``): the name before it names one recording;
    - numbers that increase by **equal steps** of two or more from the start, in several series of a folder (``_5``,
      ``_10``, ``_15``: seconds), and pairs of equal distance (``_0_3000``, ``_3000_6000``: milliseconds);
    - `` (1)``, if there is a file with the same name without it;
    - the whole name, if it is a number and each of several folders of a label holds 0, 1, 2, … (**one folder per
      recording**).

    Other files that differ only by a number (``rook_1``, ``rook_2``) may be pieces or recordings: they stay recordings,
    and a warning counts them. Pieces of one recording under several labels are one recording per label, with the same
    `origin`, which keeps them on one side of the split.

    Parameters
    ----------
    paths : sequence of str
        POSIX paths, without duplicates.
    labels : sequence of str
        Label of each path.

    Returns
    -------
    list of RecordingName
        In the order of `paths`.
    """
    names: dict[int, str] = {}
    is_piece, is_segment, open_bases = set(), set(), {}
    for i, path in enumerate(paths):
        found = _xeno_canto_id(path)
        if found:
            names[i] = found
            continue
        base = tidy(posixpath.splitext(path)[0])
        names[i], is_timed = _without_certain_marks(base)
        if names[i] != base:
            is_piece.add(i)
        if is_timed and BIRDNET_PREFIX.search(names[i]):
            names[i] = BIRDNET_PREFIX.sub("", names[i])
            is_segment.add(i)
        open_bases[i] = names[i]
    joined = _by_numbers(open_bases) | _by_folders(open_bases, labels)
    _warn_of_numbers({i: base for i, base in open_bases.items() if i not in joined and i not in is_piece})
    names |= joined
    is_piece |= joined.keys()
    _log_pieces(paths, names, is_piece)

    labels_of = defaultdict(set)
    for i in open_bases:
        labels_of[names[i]].add(labels[i])
    recordings = []
    for i in range(len(paths)):
        name, origin = names[i], None
        shared = posixpath.basename(name)
        if i in is_segment or (i in is_piece and sum(c.isdigit() for c in shared) >= LEAST_ALIKE):
            origin = shared.casefold()
        if i in is_piece and len(labels_of[name]) > 1:
            origin, name = origin or name, f"{name} ({labels[i]})"
        recordings.append(RecordingName(name, origin))
    return recordings


def _xeno_canto_id(path: str) -> str | None:
    *folders, name = path.split("/")
    found = XENO_CANTO_ID.search(name)
    for folder in reversed(folders):
        found = found or XENO_CANTO_ID.fullmatch(folder)
    return found[0].upper() if found else None


def _without_certain_marks(base: str) -> tuple[str, bool]:
    """Return a name without the endings in `PIECE_SUFFIXES`, and whether those were times."""
    is_timed = False
    while True:
        found = next((k for k, pattern in enumerate(PIECE_SUFFIXES) if pattern.search(base)), None)
        if found is None:
            return base, is_timed
        is_timed = is_timed or found < 3
        base = PIECE_SUFFIXES[found].sub("", base)


def _by_numbers(bases: dict[int, str]) -> dict[int, str]:
    """Return the recordings of the names that end with a number, if the names in the same folder show them."""
    numbered, spans = defaultdict(list), defaultdict(list)
    everything = set(bases.values())
    for i, base in bases.items():
        folder, name = posixpath.split(base)
        found = BRACKETED.fullmatch(name) or GLUED.fullmatch(name) or NUMBERED.fullmatch(name)
        if found and not MOMENT.search(name):  # 06-30-05: the last number is part of the time
            stem = posixpath.join(folder, found["stem"])
            numbered[stem, found["mark"]].append((i, int(found["number"])))
        found = START_AND_END.fullmatch(name)
        if found and int(found["start"]) < int(found["end"]):
            spans[posixpath.join(folder, found["stem"])].append((i, int(found["start"]), int(found["end"])))
    joined = {}
    steps = {key: _equal_steps({number for _, number in members}) for key, members in numbered.items()}
    n_alike = Counter((posixpath.dirname(stem), mark, steps[stem, mark]) for stem, mark in numbered)
    for (stem, mark), members in numbered.items():
        is_copy = mark.endswith("(") and stem in everything
        # A single series may also number recordings.
        step = steps[stem, mark]
        is_cut = step > 1 and n_alike[posixpath.dirname(stem), mark, step] > 1
        if is_copy or is_cut or _names_one_recording(stem):
            joined |= {i: stem for i, _ in members}
    for stem, members in spans.items():
        if len(members) > 1 and {end - start for _, start, end in members} != {1} and _are_equally_long(members):
            joined |= {i: stem for i, _, _ in members}
    return joined


def _names_one_recording(stem: str) -> bool:
    """Return whether a name ends with a date and time, or a long number that is not a date."""
    name = posixpath.basename(stem)
    if MOMENT.search(name):
        return True
    number = LAST_NUMBER.search(name)
    return number is not None and not SHORT_DATE.fullmatch(number[0])


def _equal_steps(numbers: set[int]) -> int:
    """Return the step of three or more numbers that start at 0 or at one step and have equal distances; otherwise 0."""
    step = math.gcd(*numbers)
    return step if len(numbers) > 2 and max(numbers) // step + (0 in numbers) == len(numbers) else 0


def _are_equally_long(members: list[tuple[int, int, int]]) -> bool:
    return len({end - start for _, start, end in members}) == 1


def _by_folders(bases: dict[int, str], labels: Sequence[str]) -> dict[int, str]:
    """Return the recordings of files with one folder per recording: several folders of a label hold 0, 1, 2, … each."""
    contents = defaultdict(list)
    for i, base in bases.items():
        contents[posixpath.dirname(base)].append(i)
    siblings, parents = defaultdict(list), Counter()
    for folder, members in contents.items():
        own = {labels[i] for i in members}
        parents[posixpath.basename(folder)] += 1
        if len(own) == 1 and "/" in folder and _is_folder_of_pieces(folder, [bases[i] for i in members]):
            siblings[posixpath.dirname(folder), own.pop()].append(folder)
    joined = {}
    for folders in siblings.values():
        # A folder name under several species names a kind of sound (song, call), a year or a place.
        own = [folder for folder in folders if parents[posixpath.basename(folder)] == 1]
        if len(own) > 1:
            joined |= {i: folder for folder in own for i in contents[folder]}
    return joined


def _is_folder_of_pieces(folder: str, bases: list[str]) -> bool:
    place = posixpath.basename(folder)
    if not any(c.isdigit() for c in place) or YEAR.fullmatch(place):
        return False
    names = [posixpath.basename(base).removeprefix(place).lstrip(" _-") for base in bases]
    if all(BARE_TIMES.fullmatch(name) for name in names):
        return True
    numbers = sorted(int(found["number"]) for name in names if (found := BARE_PIECE.fullmatch(name)))
    return len(numbers) == len(names) and numbers[0] < 2 and numbers == list(range(numbers[0], numbers[0] + len(names)))


def _log_pieces(paths: Sequence[str], names: dict[int, str], pieces: set[int]) -> None:
    of = Counter(names[i] for i in pieces)
    several = [i for i in sorted(pieces) if of[names[i]] > 1]
    if several:
        examples = [paths[i] for i in several if names[i] == names[several[0]]][:2]
        log.info(
            "%d files are pieces of %s by their names, such as %s of %s: the pieces of a recording stay "
            "together; to change this, give a metadata table with the column recording_id",
            *(len(several), counted(len({names[i] for i in several}), "recording"), " and ".join(examples)),
            names[several[0]],
        )


def _warn_of_numbers(bases: dict[int, str]) -> None:
    """Warn of many files in a folder that differ only by a number: they may be pieces."""
    alike = defaultdict(list)
    for base in bases.values():
        folder, name = posixpath.split(base)
        found = BRACKETED.fullmatch(name) or NUMBERED.fullmatch(name) or re.fullmatch(r"(.*?)(\d{1,4})", name)
        if found and not MOMENT.search(name):
            stem, number = found.groups()[0], found.groups()[-1]
            alike[posixpath.join(folder, stem)].append((int(number), base))
    # Times of day and serial numbers have gaps; numbers of pieces or recordings have few.
    many = [
        sorted(own)
        for _, own in sorted(alike.items())
        if len(own) >= LEAST_ALIKE
        and (max(own)[0] - min(own)[0] < 2 * len(own) or _equal_steps({number for number, _ in own}))
    ]
    if many:
        log.warning(
            "%d files in %d series differ only by a number, such as %s and %s: each is treated as a recording. If they "
            "are pieces of one recording, train and test both contain pieces of it, and the scores are too high: "
            "give a metadata table with the same recording_id for all pieces of a recording",
            *(sum(map(len, many)), len(many), many[0][0][1], many[0][1][1]),
        )
