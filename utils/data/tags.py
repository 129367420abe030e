"""Recordist, id and licence of a recording, from the tags that xeno-canto writes into every file."""

import re
from dataclasses import dataclass
from pathlib import Path

import mutagen
from mutagen.id3 import ID3

from utils.data.recording_ids import tidy

ID3_SUFFIXES = frozenset({".mp3", ".mp2", ".mpga"})
OTHER_SUFFIXES = frozenset(
    {".flac", ".ogg", ".oga", ".opus", ".m4a", ".mp4", ".wma"}
)  # formats to which mp3 files are converted
ARTIST_KEYS = ("TPE1", "artist", "\xa9ART", "Author")  # in ID3, Vorbis comments, MP4 and ASF
LICENCE_KEYS = ("WCOP", "license", "licence")
COLLECTION = "xeno-canto"
PAGE = re.compile(r"xeno-canto\.org/(\d+)", re.IGNORECASE | re.ASCII)
NUMBER = re.compile(r"(?<![a-z0-9])xc\s?(\d+)(?![a-z0-9])", re.IGNORECASE | re.ASCII)
LENGTH_OF_ID3V1 = 30  # characters of a name in the first version of ID3: a name of this length may be cut


@dataclass(frozen=True)
class Tags:
    """Data on the recording from the tags of its file.

    Attributes
    ----------
    recordist, recording_id, licence : str or None
        From tags of xeno-canto; None if these do not name it.
    other_artist : str or None
        Artist of other tags: a person, or the name of an app, a publisher or a device.
    """

    recordist: str | None = None
    recording_id: str | None = None
    licence: str | None = None
    other_artist: str | None = None


def read_tags(path: Path) -> Tags:
    """Read the tags of a sound file; all values are unknown without tags or with damaged tags.

    xeno-canto writes the recordist into TPE1, page and number into WOAF and COMM, the licence into WCOP; programs that
    convert a file keep some of these. Tags are xeno-canto's if one of them names it. The artist in other tags is not
    used as recordist: phones write the name of their app, and the recordings of an app come from many persons.

    Raises
    ------
    OSError
        If the file cannot be opened or read.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in ID3_SUFFIXES | OTHER_SUFFIXES:
        return Tags()
    with Path(path).open("rb") as file:
        try:
            found = ID3(fileobj=file) if suffix in ID3_SUFFIXES else getattr(mutagen.File(file), "tags", None) or {}
        except Exception as error:  # many types are possible, depending on the damage
            if error.args and getattr(error.args[0], "errno", None) is not None:
                raise error.args[0] from error  # a fault of the machine, not of the file
            return Tags()
    is_cut = getattr(found, "version", (2,))[0] == 1
    texts = {key: text for key, value in found.items() if (text := _text(value))}
    artist = next((texts[key] for key in ARTIST_KEYS if key in texts), None)
    if artist is not None and is_cut and len(artist) >= LENGTH_OF_ID3V1:
        artist = None
    if not any(COLLECTION in text.casefold() for text in texts.values()):
        return Tags(other_artist=artist)
    # Read the page first: a comment may name other recordings.
    in_order = sorted(texts.items(), key=lambda item: (not item[0].startswith("WOA"), item[0]))
    numbers = [found[1] for pattern in (PAGE, NUMBER) for _, text in in_order if (found := pattern.search(text))]
    licence = next((texts[key] for key in LICENCE_KEYS if key in texts), None)
    return Tags(artist, f"XC{numbers[0]}" if numbers else None, licence)


def _text(value: object) -> str:
    """Return the printable text of a frame's text or address, or of a list of texts."""
    parts = value.url if hasattr(value, "url") else getattr(value, "text", value)
    parts = parts if isinstance(parts, list) else [parts]
    text = tidy("; ".join(str(part) for part in parts if not isinstance(part, bytes)))
    return "".join(c for c in text if c.isprintable())
