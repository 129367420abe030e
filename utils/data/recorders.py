"""The start time of a recording, from metadata of recorders: GUANO, an AudioMoth's comment, a bext chunk, the name."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import guano

from utils.data.containers import LAYOUTS, View
from utils.data.sources import opened

LARGEST_CHUNK = 2**16  # bytes; the rest of a longer chunk is not read
INFO_COMMENT = b"ICMT"
# "Recorded at 19:17:30 24/02/2026 (UTC+5:30) by AudioMoth 24F319055FDF2F5B at medium gain …"
AUDIOMOTH = re.compile(
    r"Recorded at (\d\d:\d\d:\d\d)(\.\d+)? (\d\d/\d\d/\d{4}) \(UTC(?:([+-]\d{1,2})(?::(\d\d))?)?\) by AudioMoth"
)
# "Amplitude threshold was …", "Frequency trigger (8.0kHz and …) threshold was …": only loud sections were kept.
GLUED = re.compile(r"Amplitude threshold was|Frequency trigger \(.*\) threshold was", re.IGNORECASE)
DATE_AND_TIME = re.compile(r"(?<!\d)((?:19|20)\d{6})[_T-](\d{6})(?!\d)")  # 20250601_063000, SITE1_20250601_063000
AUDIOMOTH_HEX = re.compile(r"[0-9A-F]{8}")  # 5B1E2A40: seconds since 1970
EARLIEST, LATEST = datetime(2015, 1, 1, tzinfo=UTC), datetime(2038, 1, 1, tzinfo=UTC)  # of such a time


@dataclass(frozen=True)
class Start:
    """The start time of a recording.

    Attributes
    ----------
    time : str
        ISO 8601, with its offset from UTC if that is known; empty if the file does not record it.
    source : str
        ``GUANO``, ``AudioMoth``, ``bext`` or ``file name``; empty if the file does not record it.
    is_glued : bool
        Whether silent sections were left out, so that times in the recording are not times of day.
    """

    time: str = ""
    source: str = ""
    is_glued: bool = False


def read_start(path: Path) -> Start:
    """Read the start time of a recording, from the first source that has it, in the order of `Start.source`.

    Raises
    ------
    InputError
        If the machine cannot read the file.
    """
    with opened(path) as view:
        chunks = dict(_chunks(view))
    comment = chunks.get(INFO_COMMENT, b"").split(b"\0")[0].decode("utf-8", "replace")
    is_glued = bool(AUDIOMOTH.search(comment) and GLUED.search(comment))
    for source, time in (
        ("GUANO", _of_guano(chunks.get(b"guan", b""))),
        ("AudioMoth", _of_audiomoth(comment)),
        ("bext", _of_bext(chunks.get(b"bext", b""))),
        ("file name", _of_name(path)),
    ):
        if time is not None:
            return Start(time.isoformat(), source, is_glued)
    return Start(is_glued=is_glued)


def _chunks(view: View) -> Iterator[tuple[bytes, bytes]]:
    """Yield id and content of a WAV's chunks, and of the entries of its list INFO, without the chunk of the sound."""
    magic = view.bytes_at(0, 4)
    if magic not in (b"RIFF", b"RF64", b"BW64"):
        return
    layout = LAYOUTS[magic]
    position = layout.first
    while (chunk := layout.at(view, position)) is not None:
        name, size = chunk
        start = position + layout.header_bytes
        if name != layout.data:
            content = view.bytes_at(start, min(size, LARGEST_CHUNK))
            yield name, content
            if name == b"LIST" and content[:4] == b"INFO":
                yield from _entries(content[4:])
        position = layout.padded(start + size)


def _entries(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    while len(content) >= 8:
        size = int.from_bytes(content[4:8], "little")
        yield content[:4], content[8 : 8 + size]
        content = content[8 + size + size % 2 :]


def _of_guano(content: bytes) -> datetime | None:
    if not content:
        return None
    try:
        time = guano.GuanoFile.from_string(content.rstrip(b"\0"), strict=False).get("Timestamp")
    except Exception:  # many types are possible, depending on the damage
        return None
    return time if isinstance(time, datetime) else None  # a time that it cannot parse stays text


def _of_audiomoth(comment: str) -> datetime | None:
    found = AUDIOMOTH.search(comment)
    if not found:
        return None
    time, fraction, date, hours, minutes = found.groups()
    offset = timedelta(hours=int(hours or 0))
    offset += timedelta(minutes=int(minutes or 0)) * (-1 if (hours or "").startswith("-") else 1)
    known = _parsed(f"{date} {time}{(fraction or '.0')[:7]}", "%d/%m/%Y %H:%M:%S.%f")
    return None if known is None or abs(offset) >= timedelta(days=1) else known.replace(tzinfo=timezone(offset))


def _of_bext(content: bytes) -> datetime | None:
    text = content[320:338].decode("ascii", "replace")  # OriginationDate and OriginationTime of EBU Tech 3285
    return _parsed(re.sub(r"[-_:;. /]", "", text), "%Y%m%d%H%M%S") if len(text) == 18 else None


def _of_name(path: Path) -> datetime | None:
    if found := DATE_AND_TIME.search(path.stem):
        return _parsed("".join(found.groups()), "%Y%m%d%H%M%S")
    if path.suffix.lower() == ".wav" and AUDIOMOTH_HEX.fullmatch(path.stem):
        time = datetime.fromtimestamp(int(path.stem, 16), UTC)
        return time if EARLIEST <= time < LATEST else None
    return None


def _parsed(text: str, how: str) -> datetime | None:
    try:
        return datetime.strptime(text, how)
    except ValueError:
        return None
