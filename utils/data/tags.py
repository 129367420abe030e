"""Who recorded a file, and what it is, by the tags that xeno-canto writes into every file that it serves."""

import re
from dataclasses import dataclass
from pathlib import Path

import mutagen
from mutagen.id3 import ID3

from utils.data.recording_ids import tidy

ID3_SUFFIXES = frozenset({".mp3", ".mp2", ".mpga"})
OTHER_SUFFIXES = frozenset(
    {".flac", ".ogg", ".oga", ".opus", ".m4a", ".mp4", ".wma"}
)  # what mp3 files are converted to
ARTIST_KEYS = ("TPE1", "artist", "\xa9ART", "Author")  # of ID3, Vorbis comments, MP4 and ASF
LICENCE_KEYS = ("WCOP", "license", "licence")
COLLECTION = "xeno-canto"
PAGE = re.compile(r"xeno-canto\.org/(\d+)", re.IGNORECASE | re.ASCII)
NUMBER = re.compile(r"(?<![a-z0-9])xc\s?(\d+)(?![a-z0-9])", re.IGNORECASE | re.ASCII)
LENGTH_OF_ID3V1 = 30  # characters of a name in the first version of ID3: one that fills them may be cut


@dataclass(frozen=True)
class Tags:
    """What a file's tags say.

    Attributes
    ----------
    recordist, recording_id, licence : str or None
        From tags of xeno-canto; None where they do not say.
    other_artist : str or None
        Artist of other tags: a person, or the name of an app, a publisher or a device.
    """

    recordist: str | None = None
    recording_id: str | None = None
    licence: str | None = None
    other_artist: str | None = None


def read_tags(path: Path) -> Tags:
    """Read the tags of a sound file; without any, or with damaged ones, nothing is known.

    xeno-canto names the recordist in TPE1, page and number in WOAF and COMM, the licence in WCOP; programs that
    convert a file keep some of it. Tags are xeno-canto's if any of them names it. What others write as artist is
    no recordist here: phones name their app, and all recordings of an app are not one person's.

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
        except Exception as error:  # of many kinds, by whatever is damaged
            if error.args and getattr(error.args[0], "errno", None) is not None:
                raise error.args[0] from error  # the machine's fault, not the file's
            return Tags()
    is_cut = getattr(found, "version", (2,))[0] == 1
    texts = {key: text for key, value in found.items() if (text := _text(value))}
    artist = next((texts[key] for key in ARTIST_KEYS if key in texts), None)
    if artist is not None and is_cut and len(artist) >= LENGTH_OF_ID3V1:
        artist = None
    if not any(COLLECTION in text.casefold() for text in texts.values()):
        return Tags(other_artist=artist)
    # The page first: a comment may name other recordings.
    in_order = sorted(texts.items(), key=lambda item: (not item[0].startswith("WOA"), item[0]))
    numbers = [found[1] for pattern in (PAGE, NUMBER) for _, text in in_order if (found := pattern.search(text))]
    licence = next((texts[key] for key in LICENCE_KEYS if key in texts), None)
    return Tags(artist, f"XC{numbers[0]}" if numbers else None, licence)


def _text(value: object) -> str:
    """Return what can be printed of a frame's text or address, or of a list of texts."""
    parts = value.url if hasattr(value, "url") else getattr(value, "text", value)
    parts = parts if isinstance(parts, list) else [parts]
    text = tidy("; ".join(str(part) for part in parts if not isinstance(part, bytes)))
    return "".join(c for c in text if c.isprintable())
