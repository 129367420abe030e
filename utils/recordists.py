"""Who is who: one key a person, whatever the spelling; near-equal names for the user to judge."""

import re
import unicodedata

# Letters that carry their mark within and so have no decomposition; tables typed without them write these.
STROKES = str.maketrans({"ø": "o", "ł": "l", "đ": "d", "ð": "d", "ħ": "h", "ı": "i", "æ": "ae", "œ": "oe", "þ": "th"})
APOSTROPHES = str.maketrans("", "", "'’‘ʼ`´ʻ")
# Accents of the Latin, Greek and Cyrillic scripts. In others a combining sign is a vowel or another consonant.
ACCENTS = re.compile("[\u0300-\u036f]")
NOT_TURNED = {"jr", "sr", "ii", "iii", "iv", "phd", "dr", "md", "msc"}  # "Smith, Jr." is no first name

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
    """Return what all spellings of a person's name have in common; empty for a name without letters.

    Compatibility forms are unified (NFKC); case, accents, punctuation, invisible characters and double spaces go;
    "Last, First" is turned. ``Jérôme  FISCHER``, ``jerome fischer`` and ``Fischer, Jérôme`` share a key. Nothing
    else is merged: ``Müller`` and ``Mueller``, ``L. Lachmann`` and ``Lars Lachmann`` have two (`similar_names`).
    """
    text = unicodedata.normalize("NFKC", name).casefold().translate(APOSTROPHES)
    last, comma, first = text.partition(",")
    if comma and last.strip() and first.strip() and "," not in first and not set(_words(first)) & NOT_TURNED:
        text = f"{first} {last}"
    text = ACCENTS.sub("", unicodedata.normalize("NFD", text)).translate(STROKES)
    return " ".join(_words(unicodedata.normalize("NFC", text)))


def _words(text: str) -> list[str]:
    """Return the words of a text: letters, their marks, and digits; invisible format characters part nothing."""
    kinds = ((c, unicodedata.category(c)) for c in text)
    return "".join(c if kind[0] in "LMN" else "" if kind == "Cf" else " " for c, kind in kinds).split()


def is_unknown(name: str) -> bool:
    """Say whether a name says that nobody knows who it was: ``Unknown recordist``, ``anon.``, ``n/a``, ``-``."""
    key = recordist_key(name)
    if not key:
        return all(unicodedata.category(c)[0] in "PZC" for c in name)
    words = set(key.split())
    return key in UNKNOWN_KEYS or (bool(words & UNKNOWN_WORDS) and words <= UNKNOWN_WORDS | FILLER_WORDS)
