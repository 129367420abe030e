"""Names of recordists: one key per person for all spellings; similar names for the user to judge."""

import csv
import itertools
import logging
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from utils.core.errors import InputError
from utils.core.text import counted
from utils.data.recording_ids import tidy

log = logging.getLogger(__name__)

# Letters with a stroke have no decomposition in Unicode; tables without them use these letters.
STROKES = str.maketrans({"ø": "o", "ł": "l", "đ": "d", "ð": "d", "ħ": "h", "ı": "i", "æ": "ae", "œ": "oe", "þ": "th"})
APOSTROPHES = str.maketrans("", "", "'’‘ʼ`´ʻ")
# Accents of the Latin, Greek and Cyrillic scripts. In others a combining sign is a vowel or another consonant.
ACCENTS = re.compile("[\u0300-\u036f]")
SHORTEST_NEAR = 8  # characters of names that are compared letter by letter: shorter ones are similar by chance
MOST_ALIKE = 50  # names that share a word and are compared with each other
NAMED = 10
NOT_TURNED = {"jr", "sr", "ii", "iii", "iv", "phd", "dr", "md", "msc"}  # "Smith, Jr." is not a first name

UNKNOWN_WORDS = frozenset(
    {
        "unknown",
        "unk",
        "anonymous",
        "anonymus",
        "anon",
        "anonym",
        "anonyme",
        "anonimo",
        "anonymer",
        "various",
        "several",
    }
    | {"multiple", "different", "unbekannt", "unbekannter", "inconnu", "desconocido", "desconhecido", "sconosciuto"}
    | {"onbekend", "okand", "ukjent", "ukendt", "unnamed", "unspecified", "none", "null", "nan", "na", "nil", "tbd"}
)
FILLER_WORDS = frozenset(
    {
        "recordist",
        "recordists",
        "recorder",
        "author",
        "authors",
        "person",
        "people",
        "artist",
        "artists",
        "user",
        "users",
    }
    | {"observer", "observers", "contributor", "contributors", "name", "by", "the"}
)
UNKNOWN_KEYS = frozenset({"n a", "n n", "nn", "not specified", "not known", "not available", "not given", "no name"})


def recordist_key(name: str) -> str:
    """Return the key that all spellings of a person's name share; empty for a name without letters.

    Compatibility forms are unified (NFKC). Case, accents, punctuation, invisible characters and double spaces are
    removed. "Last, First" is reversed. ``Jérôme  FISCHER``, ``jerome fischer`` and ``Fischer, Jérôme`` share a key.
    ``Müller`` and ``Mueller``, ``L. Lachmann`` and ``Lars Lachmann`` have different keys (`similar_names`).
    """
    text = unicodedata.normalize("NFKC", name).casefold().translate(APOSTROPHES)
    last, comma, first = text.partition(",")
    if comma and last.strip() and first.strip() and "," not in first and not set(_words(first)) & NOT_TURNED:
        text = f"{first} {last}"
    text = ACCENTS.sub("", unicodedata.normalize("NFD", text)).translate(STROKES)
    return " ".join(_words(unicodedata.normalize("NFC", text)))


def _words(text: str) -> list[str]:
    """Return the words of a text: letters, their marks, and digits; invisible format characters split no word."""
    kinds = ((c, unicodedata.category(c)) for c in text)
    return "".join(c if kind[0] in "LMN" else "" if kind == "Cf" else " " for c, kind in kinds).split()


def is_unknown(name: str) -> bool:
    """Return whether a name means an unknown person: ``Unknown recordist``, ``anon.``, ``n/a``, ``-``."""
    key = recordist_key(name)
    if not key:
        return all(unicodedata.category(c)[0] in "PZC" for c in name)
    words = set(key.split())
    return key in UNKNOWN_KEYS or (bool(words & UNKNOWN_WORDS) and words <= UNKNOWN_WORDS | FILLER_WORDS)


def one_spelling(names: Sequence[str], same: Sequence[Sequence[str]] = ()) -> dict[str, str]:
    """Return one spelling for each name; log the names that were unified.

    Parameters
    ----------
    names : sequence of str
        Recordist of every recording, none unknown.
    same : sequence of sequence of str
        Names of one person according to the user, one row per person; the first name is used.

    Returns
    -------
    dict of str to str
        By name as it was found. The spelling of most recordings is used; of equally frequent ones, the first in the
        alphabet.
    """
    counts = Counter(names)
    key_of = {name: recordist_key(name) or name for name in counts}
    person: dict[str, str] = {}

    def root(key: str) -> str:
        while person.get(key, key) != key:
            key = person[key]
        return key

    chosen, missing = {}, []
    known = set(key_of.values())
    for row in same:
        keys = [recordist_key(name) for name in row]
        missing += [name for name, key in zip(row, keys, strict=True) if key not in known]
        for key in keys[1:]:
            person[root(key)] = root(keys[0])
        chosen.setdefault(root(keys[0]), row[0])
    if missing:
        n_missing = counted(len(missing), "recordist")
        log.warning("--same_recordist names %s that no recording has: %s", n_missing, _some(missing))
    spellings = defaultdict(list)
    for name, n in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        spellings[root(key_of[name])].append((name, n))
    result = {}
    for key, own in spellings.items():
        called = chosen.get(key, own[0][0])
        result |= dict.fromkeys((name for name, _ in own), called)
    several = [own for own in spellings.values() if len(own) > 1]
    if several:
        texts = [" = ".join(f"{name} ({n})" for name, n in own) for own in several]
        n_several = counted(len(several), "recordist is", "recordists are")
        log.info("%s spelled in several ways and treated as one: %s", n_several, _some(texts))
    return result


def similar_names(names: Iterable[str]) -> list[tuple[str, str, str]]:
    """Return the pairs of names that may be one person, with the reason; none of them is merged.

    Reasons: the same words in another order; all words or initials of one name are in the other, with the same last
    name; the keys differ by one letter, or by two neighbouring letters exchanged.

    Parameters
    ----------
    names : iterable of str
        One spelling per person.

    Returns
    -------
    list of (str, str, str)
        Sorted.
    """
    words = {name: recordist_key(name).split() for name in sorted(set(names))}
    # Team 1 and Team 2 are two recordists.
    numbers = {name: sorted(word for word in own if any(map(str.isdigit, word))) for name, own in words.items()}
    pairs: dict[tuple[str, str], str] = {}

    def add(reason: str, buckets: Iterable[list[str]], fits: Callable[[str, str], bool]) -> None:
        for bucket in buckets:
            for one, other in itertools.combinations(sorted(set(bucket)), 2):
                if (one, other) not in pairs and numbers[one] == numbers[other] and fits(one, other):
                    pairs[one, other] = reason

    in_any_order, by_word, by_gap = defaultdict(list), defaultdict(list), defaultdict(list)
    for name, own in words.items():
        in_any_order[tuple(sorted(own))].append(name)
        for word in set(own):
            if len(word) > 2:
                by_word[word].append(name)
        key = " ".join(own)
        if len(key) >= SHORTEST_NEAR:
            for i in range(len(key)):
                by_gap[key[:i] + key[i + 1 :]].append(name)
            by_gap[key].append(name)
    add("same words in another order", in_any_order.values(), lambda one, other: True)
    # A word in very many names is a title or a frequent first name: last names are less frequent.
    frequent = max(MOST_ALIKE, len(words) // 10)
    rare = (own for own in by_word.values() if len(own) <= frequent)
    add("one name is within the other", rare, lambda one, other: _is_within(words[one], words[other]))
    add(
        "one letter differs",
        by_gap.values(),
        lambda one, other: _differ_by_one(*(" ".join(words[n]) for n in (one, other))),
    )
    return [(one, other, reason) for (one, other), reason in sorted(pairs.items())]


def _is_within(one: list[str], other: list[str]) -> bool:
    """Return whether the longer name has all words of the shorter one, in order, in full or as initials."""
    short, long = sorted((one, other), key=lambda words: (len(words), sum(map(len, words))))
    if len(short) == 1 and short[0] != long[-1]:
        return False
    n_full, place = 0, 0
    for word in short:
        fitting = [
            i
            for i in range(place, len(long))
            if long[i] == word or (1 in (len(word), len(long[i])) and long[i][0] == word[0])
        ]
        if not fitting:
            return False
        n_full += len(word) > 2 and long[fitting[0]] == word
        place = fitting[0] + 1
    return n_full > 0


def _differ_by_one(one: str, other: str) -> bool:
    """Return whether two names differ by one letter, or by two neighbouring letters exchanged.

    Names with different initials are two persons.
    """
    pairs = list(zip(one.split(), other.split(), strict=False))
    if any(len(a) == len(b) == 1 and a != b for a, b in pairs):
        return False
    if len(one) > len(other):
        one, other = other, one
    start = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))
    if len(one) < len(other):
        return len(other) == len(one) + 1 and one[start:] == other[start + 1 :]
    return one[start + 1 :] == other[start + 1 :] or (
        one[start : start + 2] == other[start : start + 2][::-1] and one[start + 2 :] == other[start + 2 :]
    )


def read_same_recordist(path: Path) -> list[list[str]]:
    """Read a CSV with all names of a person in one row; a first row that begins with ``recordist`` is a header.

    Raises
    ------
    InputError
        If it cannot be read, or a row has an unknown person or only one name.
    """
    expected = "expected a CSV in UTF-8, one row per person: all names, such as Lars Lachmann,L. Lachmann"
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            rows = [[tidy(cell) for cell in row if cell.strip()] for row in csv.reader(file)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read ({error}); {expected}") from error
    if rows and rows[0] and rows[0][0].casefold() == "recordist":
        rows = rows[1:]
    rows = [row for row in rows if row]
    if not rows:
        raise InputError(f"{path} has no names; {expected}, or leave --same_recordist out")
    for row in rows:
        unknown = [name for name in row if is_unknown(name)]
        if unknown:
            raise InputError(f"{path}: {unknown[0]!r} means an unknown person and cannot be {row[0]!r}; {expected}")
        if len(row) == 1:
            raise InputError(f"{path}: the row {row[0]!r} has only one name; {expected}")
    return rows


def _some(texts: Sequence[str]) -> str:
    return ", ".join(texts[:NAMED]) + (", …" if len(texts) > NAMED else "")
