"""Find recordings of the same sound: encoded again, resampled, louder, inverted, trimmed, or overlapping.

An index of the peaks of all spectra (`landmarks`) proposes pairs of recordings and their lag. The waveforms decide: two
recordings are the same sound if they correlate at that lag.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.core import lazy, runs, workers
from utils.core.errors import InputError
from utils.data import landmarks, spool

with lazy.imported_on_first_use():
    import scipy

# ---- the index
NEXT_PEAKS = 7  # a peak makes a hash with each two of the next seven peaks
MOST_FRAMES_APART = 63
PEAK_BITS = 27  # the index holds 134 million peaks: about 1,400 h at 16 kHz
HASHES_AT_ONCE = 2**21
LINKS = 4  # a hash is compared with the next four equal ones only, so that a common hash takes no more time
LEAST_HITS = 3
LEAST_SPREAD = 16  # frames from the first to the last hit; one note that two recordings share by chance has less
LAGS_PER_PAIR = 3
CANDIDATES = 8  # of a recording, among those after it
# ---- the decision
WINDOW_S, LEAST_WINDOW_S = 2.0, 0.5
WINDOWS = 4  # of a pair and lag
LOWEST_HZ = 150.0  # wind and hum are below it, and correlate by chance
LEAST_CORRELATION = 0.5
LEAST_REMAINDER = 0.25
HOPELESS, SURE = 0.2, 0.98  # correlation of a window: below or above, no other window is tried
PAIRS_PER_TASK = 32
LEAST_SHARE = 0.25  # of the shorter recording: with less, the two are neighbouring parts that overlap a little


@dataclass(frozen=True)
class Copy:
    """Two recordings of the same sound.

    Attributes
    ----------
    path, other : str
    lag : int
        In samples: t in `path` is t + lag in `other`.
    correlation : float
        Highest |r| of the waveforms in a window of at most 2 s, among the windows tried; 1 if the sound is equal.
    """

    path: str
    other: str
    lag: int
    correlation: float


@dataclass(frozen=True)
class Place:
    """Place of a recording in a sound that other recordings may share.

    Attributes
    ----------
    sound : str
        Path of its first recording.
    start : int
        Sample of the sound at which the recording starts; may be negative.
    """

    sound: str
    start: int


def find(
    sounds: Sequence[spool.Spooled], spool_dirs: Mapping[str, Path], sample_rate_hz: int, pool_map: workers.Map
) -> list[Copy]:
    """Return the pairs of recordings of the same sound; three or more are linked by a chain of pairs.

    Parameters
    ----------
    sounds : sequence of Spooled
        Their order decides only which pairs a chain has.
    spool_dirs : mapping of str to Path
        Folder of the PCM, by path of the sound file.
    sample_rate_hz : int
        Of the PCM.
    pool_map : callable
        See `workers.worker_pool`.

    Returns
    -------
    list of Copy
        In the order of `sounds`.
    """
    first: dict[str, spool.Spooled] = {}
    copies = []
    for sound in sounds:
        if (equal := first.setdefault(sound.sha256, sound)) is not sound:
            copies.append(Copy(equal.path, sound.path, 0, 1.0))
    distinct = list(first.values())
    candidates = propose([landmarks.unpack(sound.peaks) for sound in distinct], sample_rate_hz)
    # Absolute, because workers need not run in the same folder.
    pcm = [(spool_dirs[s.path].absolute() / spool.pcm_name(s.path), s.n_samples) for s in distinct]
    tasks = [
        CompareTask(sample_rate_hz, tuple((pcm[c.one], pcm[c.other], c) for c in batch))
        for batch in (candidates[i : i + PAIRS_PER_TASK] for i in range(0, len(candidates), PAIRS_PER_TASK))
    ]
    best: dict[tuple[int, int], tuple[float, int]] = {}
    results = (result for batch in pool_map(compare, tasks) for result in batch)
    for candidate, lag, correlation in runs.progress(results, len(candidates), "comparing", "pairs"):
        pair = candidate.one, candidate.other
        best[pair] = max(best.get(pair, (0.0, 0)), (correlation, lag))
    for (one, other), (correlation, lag) in best.items():
        if correlation >= LEAST_CORRELATION:
            copies.append(Copy(distinct[one].path, distinct[other].path, lag, correlation))
    number = {sound.path: i for i, sound in enumerate(sounds)}
    return sorted(copies, key=lambda copy: (number[copy.path], number[copy.other]))


# ------------------------------------------------------------------------------------------------ the index


@dataclass(frozen=True)
class Candidate:
    """Two recordings that may be the same sound.

    Attributes
    ----------
    one, other : int
        Numbers of the recordings; `one` is the lower.
    lag : int
        In samples, to about a frame: t in `one` is t + lag in `other`.
    starts : tuple of int
        First samples, in `one`, of the windows that have most peaks in common.
    """

    one: int
    other: int
    lag: int
    starts: tuple[int, ...]


def propose(peaks: Sequence[tuple[np.ndarray, np.ndarray]], sample_rate_hz: int) -> list[Candidate]:
    """Return the pairs of recordings that share hashes at one lag.

    At least `LEAST_HITS` peaks start equal hashes, the last at least `LEAST_SPREAD` frames after the first. A hash is
    the frequencies of three peaks and the frames between them. Time and memory are linear in the number of hits, of
    which each hash has at most `LINKS`. A hit takes 8 bytes.

    Parameters
    ----------
    peaks : sequence of (ndarray, ndarray)
        Of every recording, as from `landmarks.unpack`.
    sample_rate_hz : int

    Returns
    -------
    list of Candidate
        Sorted; at most `CANDIDATES` with the same `one`.

    Raises
    ------
    InputError
        If there are more peaks than the index holds.
    """
    owners = np.repeat(np.arange(len(peaks), dtype=np.int32), [len(frames) for frames, _ in peaks])
    if not len(owners):
        return []
    frames = np.concatenate([frames for frames, _ in peaks])
    chosen: list[Candidate] = []
    for one, other in _hits(owners, frames, np.concatenate([bins for _, bins in peaks])):
        chosen += _frequent(owners, frames, one, other, sample_rate_hz)
    return sorted(chosen, key=lambda c: (c.one, c.other, c.lag))


def _frequent(
    owners: np.ndarray, frames: np.ndarray, one: np.ndarray, other: np.ndarray, sample_rate_hz: int
) -> list[Candidate]:
    """Return the candidates among some hits, which have all hits of a recording `one`, or none."""
    # One number holds a pair and a lag, so that one sort brings equal hits together.
    n_recordings = int(owners[-1]) + 1
    lags = frames[other].astype(np.int64) - frames[one]
    lowest = int(lags.min(initial=0))
    n_lags = int(lags.max(initial=0)) - lowest + 2
    keys = (owners[one].astype(np.int64) * n_recordings + owners[other]) * n_lags + (lags - lowest)
    ordered = np.sort(keys)  # most keys are hit once, by chance, and are removed here
    near = ordered[: 1 - LEAST_HITS][ordered[LEAST_HITS - 1 :] - ordered[: 1 - LEAST_HITS] <= 1]
    table = np.zeros(2**20, bool)  # by the last bits of a key; the few others that share them are removed below
    table[near & (len(table) - 1)] = table[(near + 1) & (len(table) - 1)] = True
    frequent = table[keys & (len(table) - 1)]
    keys, one = keys[frequent], one[frequent]
    order = np.lexsort((one, keys))
    keys, one = keys[order], one[order]
    fresh = np.ones(len(keys), bool)  # several hashes of a peak count as one hit
    fresh[1:] = (keys[1:] != keys[:-1]) | (one[1:] != one[:-1])
    keys, at = keys[fresh], frames[one[fresh]]
    kinds, firsts, hits = np.unique(keys, return_index=True, return_counts=True)
    # A lag that is not a whole number of frames is divided between two.
    both, earliest, latest = hits.copy(), at[firsts], at[firsts + hits - 1]
    is_next = kinds[1:] == kinds[:-1] + 1
    both[:-1][is_next] += hits[1:][is_next]
    earliest[:-1][is_next] = np.minimum(earliest[:-1], earliest[1:])[is_next]
    latest[:-1][is_next] = np.maximum(latest[:-1], latest[1:])[is_next]
    enough = np.flatnonzero((both >= LEAST_HITS) & (latest - earliest >= LEAST_SPREAD))
    order = np.lexsort((kinds[enough], -both[enough], kinds[enough] // (n_lags * n_recordings)))
    chosen: list[Candidate] = []
    of_one, of_pair = Counter(), defaultdict(list)
    for i in enough[order]:
        pair, lag = divmod(int(kinds[i]), n_lags)
        number, other_number = divmod(pair, n_recordings)
        near = any(abs(lag - taken) <= 1 for taken in of_pair[pair])
        if of_one[number] == CANDIDATES or len(of_pair[pair]) == LAGS_PER_PAIR or near:
            continue
        of_one[number] += 1
        of_pair[pair].append(lag)
        samples = np.sort(at[firsts[i] : firsts[i] + both[i]].astype(np.int64)) * landmarks.HOP
        starts = _fullest(samples, round(WINDOW_S * sample_rate_hz))
        middle = (lag + lowest) * landmarks.HOP + landmarks.HOP // 2
        chosen.append(Candidate(number, other_number, middle, starts))
    return chosen


def _hits(owners: np.ndarray, frames: np.ndarray, bins: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the peaks of different recordings, int32 of shape (n,) each, that start equal hashes.

    The recording of the first is the lower. Some recordings after the other, each with all its hits.
    """
    if len(owners) >= 2**PEAK_BITS:
        raise InputError(
            f"the spectra have {len(owners):,} peaks; the index of near copies holds at most {2**PEAK_BITS - 1:,} "
            "(about 1,400 h at 16 kHz): divide the recordings among several data sets"
        )
    n_parts = min(256, 1 + len(owners) * math.comb(NEXT_PEAKS, 2) // HASHES_AT_ONCE)
    # Peaks at which other hits begin to come together: the first of some recordings.
    starts = np.searchsorted(owners, owners[len(owners) * np.arange(1, n_parts) // n_parts])
    found: list[list[np.ndarray]] = [[] for _ in range(n_parts)]
    for part in range(n_parts):
        hashes = _hashes(owners, frames, bins, np.flatnonzero(bins % n_parts == part))
        hashes.sort()
        first = (hashes & (2**PEAK_BITS - 1)).astype(np.int32)
        hashes >>= PEAK_BITS
        hits = []
        for step in range(1, LINKS + 1):
            same = np.flatnonzero(hashes[step:] == hashes[:-step])
            one, other = first[same], first[same + step]
            apart = owners[one] != owners[other]
            hits.append((one[apart].astype(np.int64) << 32) | other[apart])
        ordered = np.sort(np.concatenate(hits))
        for own, some in zip(found, np.split(ordered, np.searchsorted(ordered, starts << 32)), strict=True):
            own.append(some.copy())  # a view would keep the hits of all recordings
    while found:
        hits = np.concatenate(found.pop())
        yield (hits >> 32).astype(np.int32), hits.astype(np.int32)  # the lower half of an int64 is what fits


def _hashes(owners: np.ndarray, frames: np.ndarray, bins: np.ndarray, peaks: np.ndarray) -> np.ndarray:
    """Return hash and number, as one int64 each, of `peaks` with each two of their next `NEXT_PEAKS` peaks."""
    starts = bins[peaks].astype(np.int64) << 28
    nearer: list[np.ndarray] = []
    hashes = []
    for step in range(1, NEXT_PEAKS + 1):
        later = np.minimum(peaks + step, len(owners) - 1)
        apart, of = (frames[later] - frames[peaks]).astype(np.int64), bins[later].astype(np.int64)
        whole = (peaks + step < len(owners)) & (owners[later] == owners[peaks]) & (apart <= MOST_FRAMES_APART)
        rows = np.flatnonzero(whole)  # so the nearer peaks are of this recording, and as near
        far = starts[rows] | (of[rows] << 12) | apart[rows]
        hashes += [((far | near[rows]) << PEAK_BITS) | peaks[rows] for near in nearer]
        nearer.append((of << 20) | (apart << 6))
    return np.concatenate(hashes)


def _fullest(hits: np.ndarray, window: int) -> tuple[int, ...]:
    """Return the starts of at most `WINDOWS` windows with most hits that do not overlap; `hits` are ascending."""
    counts = np.searchsorted(hits, hits + window) - np.arange(len(hits))
    starts: list[int] = []
    for i in np.argsort(-counts, kind="stable"):
        if all(abs(int(hits[i]) - start) >= window for start in starts):
            starts.append(int(hits[i]))
        if len(starts) == WINDOWS:
            break
    return tuple(starts)


# --------------------------------------------------------------------------------------------- the decision


@dataclass(frozen=True)
class CompareTask:
    """Pairs to compare: path of the PCM and number of samples of both recordings, and the candidate."""

    sample_rate_hz: int
    pairs: tuple[tuple[tuple[Path, int], tuple[Path, int], Candidate], ...]


def compare(task: CompareTask) -> list[tuple[Candidate, int, float]]:
    """Return every candidate with its lag, in samples, and the correlation there; 0 if it is not a copy."""
    return [(pair[-1], *_compare(task.sample_rate_hz, *pair)) for pair in task.pairs]


def _compare(
    sample_rate_hz: int, one: tuple[Path, int], other: tuple[Path, int], candidate: Candidate
) -> tuple[int, float]:
    slack = 2 * landmarks.HOP  # the lag is known to a frame
    low = max(0, slack - candidate.lag)
    high = min(one[1], other[1] - candidate.lag - slack)
    length = min(round(WINDOW_S * sample_rate_hz), high - low)
    if length < LEAST_WINDOW_S * sample_rate_hz:
        return candidate.lag, 0.0
    best = (0.0, candidate.lag)
    for start in dict.fromkeys(min(max(start, low), high - length) for start in candidate.starts):
        x = _read(one[0], start, length)
        y = _read(other[0], start + candidate.lag - slack, length + 2 * slack)
        shift, value = correlate(x, y, sample_rate_hz)
        best = max(best, (value, candidate.lag - slack + shift))
        if not HOPELESS <= value < SURE:
            break
    return best[1], best[0]


def _read(path: Path, start: int, length: int) -> np.ndarray:
    return np.fromfile(path, "<i2", length, offset=2 * start)


def correlate(x: np.ndarray, y: np.ndarray, sample_rate_hz: int) -> tuple[int, float]:
    """Find `x` in `y`.

    Parameters
    ----------
    x : ndarray, shape (n,)
    y : ndarray, shape (m,)
        With m >= n.
    sample_rate_hz : int

    Returns
    -------
    shift : int
        First sample of the part of `y` that correlates best with `x`.
    correlation : float
        |r| there; 0 if steady tones explain it. Recordings with the same tones correlate at many shifts. The
        correlation of each recording with itself some time later measures the part of the tones. The correlation
        must explain a part of the rest.
    """
    size = scipy.fft.next_fast_len(len(y), real=True)
    spectra = scipy.fft.rfft(np.stack([np.pad(x, (0, len(y) - len(x))), y]).astype(np.float32), size)
    spectra[:, : math.ceil(LOWEST_HZ * size / sample_rate_hz)] = 0
    n_shifts = len(y) - len(x) + 1
    products = np.abs(scipy.fft.irfft(np.conj(spectra[0]) * spectra[1], size)[:n_shifts])
    filtered = scipy.fft.irfft(spectra, size)
    x, y = filtered[0, : len(x)], filtered[1, : len(y)]
    power = np.concatenate([[0.0], np.cumsum(np.square(y), dtype=np.float64)])
    norms = np.sqrt(np.square(x).sum() * (power[len(x) :] - power[:n_shifts]))
    values = np.divide(products, norms, out=np.zeros_like(products), where=norms > 1e-9 * len(x))
    shift = int(values.argmax())
    value = min(float(values[shift]), 1.0)
    if value < LEAST_CORRELATION:
        return shift, value
    tones = math.sqrt(_repetition(x) * _repetition(y[shift : shift + len(x)]))
    if value - tones < max(LEAST_REMAINDER * (1 - tones), 1e-4):
        value = 0.0
    return shift, value


def _repetition(samples: np.ndarray) -> float:
    """Return the highest |r| of samples with themselves, an eighth to a quarter of their length later."""
    n = len(samples)
    size = scipy.fft.next_fast_len(n + n // 4, real=True)
    spectrum = scipy.fft.rfft(samples, size)
    later = np.arange(n // 8, n // 4)
    products = np.abs(scipy.fft.irfft(np.square(np.abs(spectrum)), size)[later])
    power = np.concatenate([[0.0], np.cumsum(np.square(samples), dtype=np.float64)])
    norms = np.sqrt(power[n - later] * (power[n] - power[later]))
    return min(float(np.divide(products, norms, out=np.zeros_like(products), where=norms > 1e-9 * n).max()), 1.0)


# ---------------------------------------------------------------------------------------- sounds of several


def places(copies: Iterable[Copy]) -> dict[str, Place]:
    """Return the place, by path, of every recording in the sound that it shares with its linked copies."""
    linked = defaultdict(list)
    for copy in copies:
        linked[copy.path].append((copy.other, -copy.lag))
        linked[copy.other].append((copy.path, copy.lag))
    found: dict[str, Place] = {}
    for first in linked:
        waiting = [] if first in found else [first]
        found.setdefault(first, Place(first, 0))
        while waiting:
            path = waiting.pop()
            for other, shift in linked[path]:
                if other not in found:
                    found[other] = Place(first, found[path].start + shift)
                    waiting.append(other)
    return found


def keys(place: Place | None, clip: tuple[int, int] | None, clip_samples: int) -> list[str]:
    """Return keys that keep the clips of one sound together, for `splits.merge_groups`.

    Parameters
    ----------
    place : Place or None
        Of the recording; None if no other recording is the same sound.
    clip : tuple of int or None
        First sample and length of a clip. Clips share a key if they share more than a tenth of a clip's length, and
        never if they share no sound. None gives the key of the recording.
    clip_samples : int
        Length of a whole clip.
    """
    if place is None:
        return []
    if clip is None:
        return [f"sound:{place.sound}"]
    cell = clip_samples / 10
    first = place.start + clip[0] + cell / 2
    last = max(first, first + clip[1] - cell - 1)
    return [f"sound:{place.sound}:{i}" for i in range(math.floor(first / cell), math.floor(last / cell) + 1)]
