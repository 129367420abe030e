"""Sound files as blocks of float32, from the decoder that reads all of the file: libsndfile or FFmpeg (PyAV).

libsndfile reads uncompressed files and FLAC exactly. FFmpeg reads all other formats: libsndfile 1.2.2 ends an mp3 with
variable bit rate and no Xing tag at an estimated length, and supports neither m4a nor wma.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import soundfile

from utils.core.errors import FAULTS_OF_A_FILE, InputError, is_memory_left, is_out_of_memory, machine_fault
from utils.data.containers import Data, View, end_of_tag, end_without_tags, find_data, ogg_links

if TYPE_CHECKING:  # PyAV loads at the first use: a folder of WAV files never needs it
    import av

BLOCK_VALUES = 2**17  # samples per block, over all channels
MISSING_S = 0.5  # a file that is this much shorter than in its header was truncated
UNEXPLAINED_S = 0.1  # this much data after the promised end, neither chunks nor zeros, are sound
UNEXPLAINED_BYTES = 2**16  # the same for a compressed file
MICROSECONDS = 1e6  # FFmpeg's unit of a container's length
SNDFILE_SYSTEM_ERROR = 2
SNDFILE_UNKNOWN_LENGTH = 2**62
LINEAR_BYTES = {"PCM_S8": 1, "PCM_U8": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8}
LINEAR_BYTES |= {"ULAW": 1, "ALAW": 1}
FINER_THAN_16_BIT = ("PCM_24", "PCM_32", "FLOAT", "DOUBLE")
# Containers of sound. FFmpeg also opens playlists, which could make it read other files or the network.
FFMPEG_FORMATS = (
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,dsf,dts,eac3,flac,flv,loas,matroska,mov,mp3,mpc,mpc8,mpeg,mpegts"
    ",ogg,rm,tak,tta,w64,wav,wv"
)


class Undecodable(Exception):
    """A file without usable sound; the message is the reason, for a user who knows the file."""


class Block(NamedTuple):
    """Samples, float32 of shape (channels, n), valid until the next block; full scale is 1."""

    rate_hz: int
    samples: np.ndarray


class Source(Protocol):
    """A sound file that can be read once from its start to its end.

    Attributes
    ----------
    is_fine : bool
        Whether its samples are exact and have more than 16 bits, so that they can be scaled without loss.
    warnings : list of str
        Faults of the file; complete after all blocks are read.
    """

    is_fine: bool
    warnings: list[str]

    def blocks(self) -> Iterator[Block]:
        """Yield the whole sound. Rate and number of channels may change between blocks."""

    def promised_seconds(self) -> float | None:
        """Return the length in the header; decoding finds the true one."""


@contextlib.contextmanager
def opened(path: Path) -> Iterator[View]:
    """Open a file that was listed.

    Raises
    ------
    Undecodable
        If it is empty or this user must not read it.
    InputError
        If it has disappeared, or the machine cannot read it.
    """
    try:
        file = Path(path).open("rb", buffering=0)  # noqa: SIM115
    except OSError as error:
        if error.errno in FAULTS_OF_A_FILE:
            raise Undecodable(f"cannot be opened: {error.strerror}") from error
        raise machine_fault(path, error) from error
    with file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            raise Undecodable("empty: the file has 0 bytes")
        yield View(path, file.fileno(), 0, size)


@contextlib.contextmanager
def source_of(view: View) -> Iterator[Source]:
    """Choose the decoder of a file by its content; its name may be wrong."""
    sound = None
    magic = view.bytes_at(end_of_tag(view), 4)
    if magic != b"OggS" and not (magic[:1] == b"\xff" and magic[1:2] >= b"\xe0"):
        with contextlib.suppress(soundfile.LibsndfileError):
            os.lseek(view.descriptor, 0, os.SEEK_SET)
            sound = _Stream(view.descriptor, closefd=False)
    if sound is None:
        yield FfmpegSource(view)
        return
    with sound:
        yield FfmpegSource(view) if sound.format == "MP3" else SndfileSource(view, sound)


def promised_seconds(path: Path) -> float | None:
    """Return the length of a file from its header; without a header, FFmpeg's estimate from its size, or None."""
    try:
        with opened(path) as view, source_of(view) as source:
            return source.promised_seconds()
    except (Undecodable, InputError):  # decoding reports the fault
        return None


# --------------------------------------------------------------------------------------------- libsndfile


class _Stream(soundfile.SoundFile):
    """A file that is read only from start to end: without this, soundfile would seek after every read."""

    def seekable(self) -> bool:
        return False


class SndfileSource:
    """A file that libsndfile decodes exactly; its true length is found in the file."""

    def __init__(self, view: View, sound: soundfile.SoundFile):
        self.view, self.sound = view, sound
        self.is_fine = sound.subtype in FINER_THAN_16_BIT
        self.warnings: list[str] = []
        self.n_frames = 0

    def promised_seconds(self) -> float | None:
        known = 0 <= self.sound.frames < SNDFILE_UNKNOWN_LENGTH
        return self.sound.frames / self.sound.samplerate if known else None

    def blocks(self) -> Iterator[Block]:
        rate = self.sound.samplerate
        data = find_data(self.view)
        frame_bytes = LINEAR_BYTES.get(self.sound.subtype, 0) * self.sound.channels
        n_there = None if data is None or not frame_bytes else data.bytes // frame_bytes
        yield from self.read(self.sound, n_there)
        promised = self.sound.frames if 0 <= self.sound.frames < SNDFILE_UNKNOWN_LENGTH else None
        if data is not None and data.promised_bytes is None:
            promised = None
        elif n_there is not None:
            promised = data.promised_bytes // frame_bytes
        if n_there is not None and n_there - self.n_frames >= UNEXPLAINED_S * rate and not self.warnings:
            yield from self.read_on(data, frame_bytes, n_there)
        elif (
            data is not None
            and not frame_bytes
            and data.bytes > (data.promised_bytes or data.bytes) + UNEXPLAINED_BYTES
        ):
            n_bytes = data.bytes - data.promised_bytes
            self.warnings.append(f"{n_bytes} bytes after the end that its header gives are not read")
        if promised is None:
            return
        lengths = f"{promised / rate:.2f} s, {self.n_frames / rate:.2f} s"
        if promised - self.n_frames > MISSING_S * rate:
            self.warnings.append(f"breaks off: its header promises {lengths} could be decoded")
        elif self.n_frames - promised >= UNEXPLAINED_S * rate:
            self.warnings.append(f"longer than its header promises: it promises {lengths} are there and used")

    def read(self, sound: soundfile.SoundFile, n_most: int | None) -> Iterator[Block]:
        buffer = np.empty((max(1, BLOCK_VALUES // sound.channels), sound.channels), np.float32)
        while True:
            # After an error, libsndfile does not report how much it decoded: the remaining NaN show it.
            buffer.fill(np.nan)
            error = None
            try:
                n = sound.buffer_read_into(buffer, "float32")
            except soundfile.LibsndfileError as problem:
                if problem.code == SNDFILE_SYSTEM_ERROR:
                    raise machine_fault(self.view.path, OSError(problem.error_string)) from problem
                error = problem
                n = len(buffer) - int(np.isnan(buffer[:, -1]).sum())
            if n_most is not None:
                n = min(n, n_most - self.n_frames)
            self.n_frames += n
            if n:
                yield Block(self.sound.samplerate, buffer[:n].T)
            if error is not None:
                at_s = self.n_frames / self.sound.samplerate
                self.warnings.append(f"damaged after {at_s:.2f} s ({error.error_string.rstrip('.')})")
            if error is not None or n == 0:
                return

    def read_on(self, data: Data, frame_bytes: int, n_there: int) -> Iterator[Block]:
        """Read the data after the end that the header gives."""
        start, stop = (data.start + n * frame_bytes for n in (self.n_frames, n_there))
        rest = self.view.part(start, stop)
        endian = self.sound.endian if self.sound.endian != "FILE" else data.byteorder.upper()
        how = {"samplerate": self.sound.samplerate, "channels": self.sound.channels, "subtype": self.sound.subtype}
        with _Stream(rest, format="RAW", endian=endian, **how) as sound:
            yield from self.read(sound, n_there)
        rest.check()


# ------------------------------------------------------------------------------------------------- FFmpeg


class FfmpegSource:
    """A compressed file, decoded by FFmpeg in this thread."""

    def __init__(self, view: View):
        self.view = view
        self.is_fine = False
        self.warnings: list[str] = []

    def promised_seconds(self) -> float | None:
        with _open(self.view) as container:
            return None if container.duration is None else container.duration / MICROSECONDS

    def blocks(self) -> Iterator[Block]:
        if self.view.bytes_at(0, 4) != b"OggS":
            yield from self.read(self.view.part(0, end_without_tags(self.view)), 0.0)
            return
        links, breaks_off = ogg_links(self.view)
        seconds = 0.0
        for start, stop in links:
            seconds += yield from self.read(self.view.part(start, stop), seconds)
        if breaks_off:
            self.warnings.append(f"breaks off: the file ends within a page, {seconds:.2f} s could be decoded")

    def read(self, view: View, before_s: float) -> Iterator[Block]:
        """Yield the blocks of a section of the file, `before_s` from its start; return its seconds."""
        with _open(view) as container:
            stream = container.streams.best("audio")
            if stream is None:
                raise Undecodable("no sound in it")
            if (n_streams := len(container.streams.audio)) > 1:
                self.warnings.append(f"holds {n_streams} streams of sound: number {stream.index + 1} is used")
            if stream.codec_context is None:
                raise Undecodable("no sound that FFmpeg can decode")
            codec = stream.codec_context.codec
            self.is_fine = codec.lossless and not codec.lossy and stream.codec_context.format.bytes > 2
            decoding = _Decoding(container, stream)
            duration = stream.duration
            promised_s = 0.0 if duration is None else float(duration * stream.time_base)
            n_most = None
            if codec.name == "vorbis" and container.format.name == "ogg" and promised_s:
                # FFmpeg 8.1 does not trim the end of a stream with only one page of sound.
                n_most = round(promised_s * stream.codec_context.sample_rate)
            yield from decoding.blocks(n_most)
            view.check()
        if decoding.n_damaged:
            at_s = before_s + decoding.damaged_s
            self.warnings.append(f"damaged at {at_s:.2f} s: {decoding.n_damaged} packets of it cannot be decoded")
        seconds = decoding.seconds
        if decoding.span_s - seconds > MISSING_S:
            missing_s = decoding.span_s - seconds
            self.warnings.append(f"damaged: {missing_s:.2f} s are missing in it, and the rest is earlier by that time")
        elif promised_s - seconds > MISSING_S and not _is_an_estimate(view, duration):
            lengths = f"its header promises {promised_s:.2f} s, {seconds:.2f} s could be decoded"
            self.warnings.append(lengths if decoding.n_damaged else f"breaks off: {lengths}")
        return seconds


def _open(view: View) -> "av.container.InputContainer":
    import av

    try:
        return av.open(view, options={"format_whitelist": FFMPEG_FORMATS}, metadata_errors="replace")
    except av.FFmpegError as error:
        _check_memory(error)
        view.check()
        raise Undecodable(f"no sound that libsndfile or FFmpeg can read: {error.strerror}") from error


def _check_memory(error: Exception) -> None:
    """Raise a memory error if no memory is left: a damaged file can ask for more than any machine has."""
    if is_out_of_memory(error) and not is_memory_left():
        raise error


class _Decoding:
    """A stream of sound during decoding, from packets to blocks."""

    def __init__(self, container: "av.container.InputContainer", stream: "av.AudioStream"):
        self.container, self.stream = container, stream
        stream.codec_context.thread_count = 1
        self.n_damaged = 0
        self.damaged_s = self.seconds = self.span_s = 0.0

    def blocks(self, n_most: int | None = None) -> Iterator[Block]:
        """Yield the sound, `n_most` samples at most."""
        n_left = np.inf if n_most is None else n_most
        rate, buffer, rows, filled = 0, np.empty((0, 0), np.float32), [], 0
        first = last = None
        is_planar_float = None
        for frame in self.frames():
            if is_planar_float is None:  # a decoder keeps its format; a check of each small frame is slow
                is_planar_float = frame.format.name == "fltp"
            n, planes = frame.samples, frame.planes if is_planar_float else ()
            n_channels = len(planes) or frame.layout.nb_channels
            if frame.sample_rate != rate or n_channels != len(buffer) or filled + n > buffer.shape[1]:
                if filled:
                    yield Block(rate, buffer[:, :filled])
                filled = 0
                if frame.sample_rate != rate or n_channels != len(buffer) or n > buffer.shape[1]:
                    rate = frame.sample_rate
                    buffer = np.empty((n_channels, max(n, BLOCK_VALUES // n_channels)), np.float32)
                    rows = [memoryview(row).cast("B") for row in buffer]
            if is_planar_float:
                # NumPy's slices need twice as long, and a second of mp3 has 40 frames.
                for row, plane in zip(rows, planes, strict=True):
                    row[4 * filled : 4 * (filled + n)] = memoryview(plane)[: 4 * n]
            else:
                buffer[:, filled : filled + n] = _as_float(frame, n_channels)
            if n > n_left:
                n = n_left
            n_left -= n
            filled += n
            self.seconds += n / rate
            first, last = first or frame, frame
        if filled:
            yield Block(rate, buffer[:, :filled])
        if last is not None and first.pts is not None and last.pts is not None:
            self.span_s = float((last.pts - first.pts) * last.time_base) + last.samples / last.sample_rate

    def frames(self) -> Iterator["av.AudioFrame"]:
        """Decode; continue after packets that cannot be decoded."""
        import av

        packets = self.container.demux(self.stream)
        while True:
            try:
                for packet in packets:  # ends after a reading error
                    yield from packet.decode()
                return
            except av.FFmpegError as error:
                _check_memory(error)
                self.note_damage()

    def note_damage(self) -> None:
        self.damaged_s = self.damaged_s if self.n_damaged else self.seconds
        self.n_damaged += 1


def _as_float(frame: "av.AudioFrame", n_channels: int) -> np.ndarray:
    samples = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, n_channels).T
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128) / 128
    if samples.dtype.kind == "i":
        return samples.astype(np.float32) / np.float32(-float(np.iinfo(samples.dtype).min))
    return samples.astype(np.float32)


class _Longer(View):
    """A file that reports a size slightly above its true size."""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return super().seek(offset + (self.size // 64 if whence == os.SEEK_END else 0), whence)


def _is_an_estimate(view: View, duration: int) -> bool:
    """Return whether FFmpeg's duration of a file is an estimate from its size, and not from a header."""
    try:
        with _open(_Longer(view.path, view.descriptor, view.start, view.stop)) as container:
            return container.streams.best("audio").duration != duration
    except Undecodable:
        return True
