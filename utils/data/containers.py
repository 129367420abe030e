"""The place of the sound in a file: the length in its header, the true length, and the data before and after it.

Decoders trust headers. Headers are wrong, although all the sound follows them, after a loss of power, on a full disk,
if a program writes to a pipe, or beyond a size of 4 GiB. The functions here decode nothing: they find the first and
last byte of the sound from the content of the file.
"""

import io
import os
from dataclasses import dataclass
from pathlib import Path

from utils.core.errors import machine_fault

# Chunks that may follow the sound. A chunk with another id must fit into the file; otherwise it is not a chunk.
KNOWN_CHUNKS = {b"LIST", b"bext", b"id3 ", b"ID3 ", b"JUNK", b"junk", b"FLLR", b"PAD ", b"cue ", b"wamd", b"guan"}
KNOWN_CHUNKS |= {b"iXML", b"axml", b"fact", b"PEAK", b"smpl", b"inst", b"afsp", b"cart", b"chna", b"DISP", b"_PMX"}
KNOWN_CHUNKS |= {b"ANNO", b"COMT"}
TAGS = (b"TAG", b"ID3", b"APETAGEX", b"LYRICSBEGIN")
BLOCK_BYTES = 2**20
OGG_HEADER_BYTES = 27
FIRST_PAGE_FLAG = 2
# Programs that write to a pipe cannot fill in the size later; they write about 2 GiB or 4 GiB (sox, arecord, ffmpeg).
PIPE_SIZES = (2**31, 2**32 - 1)
PIPE_TOLERANCE = 8192
W64_GUID = bytes.fromhex("f3acd3118cd100c04f8edb8a")  # follows the four letters of all chunks except the first


class View(io.RawIOBase):
    """A section of an open file, read like a file of its own.

    Libraries hide errors of the operating system, and treat a lost disk as the end of the file. This class stores such
    an error; `check` raises it.

    Parameters
    ----------
    path : Path
        Path for messages.
    descriptor : int
        Descriptor of the open file; its position is neither used nor changed.
    start, stop : int
        First byte, and the first byte after the section.
    """

    def __init__(self, path: Path, descriptor: int, start: int, stop: int):
        super().__init__()
        self.path, self.descriptor, self.start, self.stop = path, descriptor, start, stop
        self.position = 0
        self.fault: OSError | None = None

    @property
    def size(self) -> int:
        """Number of bytes."""
        return self.stop - self.start

    def part(self, start: int, stop: int) -> "View":
        """Return a section of this one."""
        return View(self.path, self.descriptor, self.start + start, self.start + stop)

    def bytes_at(self, start: int, n: int) -> bytes:
        """Return `n` bytes from `start`, fewer at the end. Raise `InputError` for a fault of the machine."""
        try:
            return os.pread(self.descriptor, max(0, min(n, self.size - start)), self.start + start)
        except OSError as error:
            raise machine_fault(self.path, error) from error

    def check(self) -> None:
        """Raise `InputError` if a library caught a fault of the machine."""
        if self.fault is not None:
            raise machine_fault(self.path, self.fault) from self.fault

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.position = max(0, offset + (0, self.position, self.size)[whence])
        return self.position

    def readinto(self, buffer: memoryview) -> int:
        n = max(0, min(len(buffer), self.size - self.position))
        try:
            n = os.preadv(self.descriptor, [memoryview(buffer)[:n]], self.start + self.position)
        except OSError as error:  # an exception would be lost in a library's own code
            self.fault = self.fault or error
            return 0
        self.position += n
        return n


# ----------------------------------------------------------------------------------- WAV and its relatives


@dataclass(frozen=True)
class Chunks:
    """The layout of a format with chunks.

    Attributes
    ----------
    byteorder : {"little", "big"}
    first : int
        Position of the first chunk, in bytes.
    id_bytes, size_bytes : int
    counts_header : bool
        Whether a chunk's size includes its id and size.
    multiple : int
        The position of each chunk is a multiple of this number of bytes.
    data : bytes
        Id of the chunk that holds the sound.
    skip : int
        Bytes in it before the sound.
    """

    byteorder: str
    first: int
    id_bytes: int
    size_bytes: int
    counts_header: bool
    multiple: int
    data: bytes
    skip: int

    @property
    def header_bytes(self) -> int:
        return self.id_bytes + self.size_bytes

    def at(self, view: View, position: int) -> tuple[bytes, int] | None:
        """Return id and size (of the content) of the chunk at a byte; None at the end of the file."""
        header = view.bytes_at(position, self.header_bytes)
        if len(header) < self.header_bytes:
            return None
        size = int.from_bytes(header[self.id_bytes :], self.byteorder)
        return header[: self.id_bytes], size - self.header_bytes * self.counts_header

    def padded(self, position: int) -> int:
        return -(-position // self.multiple) * self.multiple


RIFF = Chunks("little", 12, 4, 4, False, 2, b"data", 0)
LAYOUTS = {
    b"RIFF": RIFF,
    b"RF64": RIFF,
    b"BW64": RIFF,
    b"RIFX": Chunks("big", 12, 4, 4, False, 2, b"data", 0),
    b"FORM": Chunks("big", 12, 4, 4, False, 2, b"SSND", 8),
    b"riff": Chunks("little", 40, 16, 8, True, 8, b"data" + W64_GUID, 0),
    b"caff": Chunks("big", 8, 4, 8, False, 1, b"data", 4),
}


@dataclass(frozen=True)
class Data:
    """The sound of an uncompressed file.

    Attributes
    ----------
    start : int
        Position of the first byte.
    promised_bytes : int or None
        Size in the header; None if the header does not give it.
    bytes : int
        True size: up to the next chunk, or to the end of the file.
    byteorder : {"little", "big"}
        The usual one of the format.
    """

    start: int
    promised_bytes: int | None
    bytes: int
    byteorder: str


def find_data(view: View) -> Data | None:
    """Find the sound of a WAV, RF64, BW64, W64, AIFF, CAF or AU file; None for other formats and without sound.

    Chunks, tags or zeros may follow the promised end. If other data follow, the promise is wrong and the sound
    continues: to the end of the file, or to a promised end plus a multiple of 4 GiB if chunks begin there.
    """
    magic = view.bytes_at(0, 4)
    if magic == b".snd":
        header = view.bytes_at(0, 12)
        start, promised = (int.from_bytes(header[i : i + 4], "big") for i in (4, 8))
        return _extent(view, None, start, None if promised == 2**32 - 1 else promised, "big")
    layout = LAYOUTS.get(magic)
    if layout is None:
        return None
    position, size_64 = layout.first, None
    while (chunk := layout.at(view, position)) is not None:
        name, promised = chunk
        content = position + layout.header_bytes
        if name == b"ds64":
            size_64 = int.from_bytes(view.bytes_at(content + 8, 8), "little")
        if name == layout.data:
            start = content + layout.skip
            if layout.data == b"SSND":
                start += int.from_bytes(view.bytes_at(content, 4), "big")
            promised -= start - content
            if magic in (b"RF64", b"BW64") and promised == 2**32 - 1 and size_64 is not None:
                promised = size_64
            is_open = promised <= 0 or (layout.size_bytes == 8 and promised >= 2**63 - 1 - start)
            is_open = is_open or (layout.size_bytes == 4 and start + promised > view.size and _is_of_a_pipe(promised))
            return _extent(view, layout, start, None if is_open else promised, layout.byteorder)
        if promised < 0:
            return None
        position = layout.padded(content + promised)
    return None


def _is_of_a_pipe(size: int) -> bool:
    return any(abs(size - pipe) <= PIPE_TOLERANCE for pipe in PIPE_SIZES)


def _extent(view: View, layout: Chunks | None, start: int, promised: int | None, byteorder: str) -> Data | None:
    to_end = view.size - start
    if to_end < 0:
        return None
    if promised is None:
        if _holds_no_sound(view, layout, start):
            return Data(start, 0, 0, byteorder)
        return Data(start, None, to_end, byteorder)
    for n_bytes in range(promised, to_end + 1, 2**32):
        if _holds_no_sound(view, layout, start + n_bytes):
            return Data(start, promised, n_bytes, byteorder)
    return Data(start, promised, to_end, byteorder)


def _holds_no_sound(view: View, layout: Chunks | None, position: int) -> bool:
    """Return whether all data from a byte on are chunks, tags or zeros; also True if there are none."""
    starts = {position} if layout is None else {position, layout.padded(position)}
    return any(_is_chunks(view, layout, start) for start in starts) or _is_zeros(view, position)


def _is_chunks(view: View, layout: Chunks | None, position: int) -> bool:
    while position < view.size:
        if view.bytes_at(position, 16).startswith(TAGS):
            return True
        chunk = None if layout is None else layout.at(view, position)
        if chunk is None:
            return False
        name, size = chunk
        content = position + layout.header_bytes
        if name[:4] not in KNOWN_CHUNKS and not (
            size >= 0 and content + size <= view.size and name[:4].isascii() and name[:4].decode("ascii").isprintable()
        ):
            return False
        position = layout.padded(content + max(0, size))
    return True


def _is_zeros(view: View, position: int) -> bool:
    if any(view.bytes_at(max(position, view.size - BLOCK_BYTES), BLOCK_BYTES)):
        return False  # checked at the end first, before gigabytes are read
    while block := view.bytes_at(position, BLOCK_BYTES):
        if block.count(0) != len(block):
            return False
        position += len(block)
    return True


# --------------------------------------------------------------------------------------------- Ogg and mp3


def ogg_links(view: View) -> tuple[list[tuple[int, int]], bool]:
    """Divide an Ogg file into its consecutive streams (a "chain"), whose rates and channels may differ.

    FFmpeg 8.1 reads a chain as one stream: it refuses a chain whose parameters change, and does not trim the end of a
    stream as its last page requires. Each link is a whole file by itself.

    Returns
    -------
    list of (int, int)
        First byte of each link, and the first byte after it.
    bool
        Whether the file ends within a page.
    """
    file = io.BufferedReader(view.part(0, view.size), 2**16)
    links, start, position, was_first = [], 0, 0, True
    breaks_off = False
    while True:
        file.seek(position)
        header = file.read(OGG_HEADER_BYTES)
        if header[:4] != b"OggS":
            file.raw.check()
            position = _next_page(view, position + 1)
            if position is None:
                break
            continue
        if len(header) < OGG_HEADER_BYTES:
            breaks_off = True
            break
        table = file.read(header[26])
        is_first = bool(header[5] & FIRST_PAGE_FLAG)
        if is_first and not was_first:
            links.append((start, position))
            start = position
        was_first = is_first
        position += OGG_HEADER_BYTES + header[26] + sum(table)
        if len(table) < header[26] or position > view.size:
            breaks_off = True
            break
    file.raw.check()
    return [*links, (start, view.size)], breaks_off


def _next_page(view: View, position: int) -> int | None:
    """Return the position of the next page, after any data that are not a page."""
    while len(block := view.bytes_at(position, BLOCK_BYTES)) >= 4:
        found = block.find(b"OggS")
        if found >= 0:
            return position + found
        position += len(block) - 3
    return None


def end_of_tag(view: View) -> int:
    """Return the end of the ID3v2 tags at the start of the file; 0 if there are none."""
    position = 0
    while (header := view.bytes_at(position, 10)).startswith(b"ID3") and len(header) == 10:
        position += 10 + _synchsafe(header[6:]) + (10 if header[5] & 0x10 else 0)
    return position


def _synchsafe(four: bytes) -> int:
    return sum((byte & 0x7F) << shift for byte, shift in zip(four, (21, 14, 7, 0), strict=True))


def end_without_tags(view: View) -> int:
    """Return the end of the sound of an mp3: FFmpeg would search for sound in the tags after it."""
    end = view.size
    while True:
        tail = view.bytes_at(max(0, end - 128), min(end, 128))
        if len(tail) == 128 and tail.startswith(b"TAG"):
            size = 128
        elif tail[-32:].startswith(b"APETAGEX"):
            has_header = tail[-9] & 0x80
            size = int.from_bytes(tail[-20:-16], "little") + (32 if has_header else 0)
        elif tail.endswith(b"LYRICS200") and tail[-15:-9].isdigit():
            size = int(tail[-15:-9]) + 15
        elif len(tail) >= 10 and tail[-10:].startswith(b"3DI"):
            size = _synchsafe(tail[-4:]) + 20
        else:
            return end
        if not 0 < size <= end:
            return end
        end -= size
