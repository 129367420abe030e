"""Which labels with times are in which windows of a recording. Times in, labels out; nothing is read or written."""

import bisect
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from utils.data.timed_labels import Annotation

MIN_OVERLAP_S = 0.25  # opensoundscape recommends it for songs
ONLY_SECONDARY = "(only secondary labels)"
# Sums of decimal fractions are not exact: without it, 0.1 s to 0.35 s would be shorter than 0.25 s.
TOLERANCE_S = 5e-7


@dataclass(frozen=True)
class Window:
    """The labels of a window.

    Attributes
    ----------
    ranked : tuple of str
        Its labels. Those that fill more of the window come first; equals come by name.
    secondary : tuple of str
        Labels that may or may not be in the window, by name.
    """

    ranked: tuple[str, ...] = ()
    secondary: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The label that fills most of the window; empty if there is none."""
        return self.ranked[0] if self.ranked else ""

    @property
    def labels(self) -> tuple[str, ...]:
        """All labels of the window, by name."""
        return tuple(sorted(self.ranked))

    @property
    def is_silent(self) -> bool:
        """Whether no label is, or may be, in the window."""
        return not self.ranked and not self.secondary

    @property
    def counts_for(self) -> tuple[str, ...]:
        """All labels of the window; without one, an empty text for silence and otherwise `ONLY_SECONDARY`."""
        return self.labels or ("" if self.is_silent else ONLY_SECONDARY,)


def labels_of_windows(
    windows: Sequence[tuple[float, float]], annotations: Iterable[Annotation], min_overlap_s: float = MIN_OVERLAP_S
) -> list[Window]:
    """Return the labels of each window of a file.

    A window has a label if one annotation overlaps the window by `min_overlap_s` or more. This is the rule of
    opensoundscape (``BoxedAnnotations.clip_labels``). Its other rules:

    - An annotation without a duration is a point. The window that it falls into has the label; on a border, the later
      window.
    - A label is secondary in a window that it overlaps by less: it cannot be said whether it is in the window.

    Parameters
    ----------
    windows : sequence of (float, float)
        Start and end in seconds; starts and ends are both in ascending order.
    annotations : iterable of Annotation
        Of this file, in any order.
    min_overlap_s : float
        Above 0.
    """
    starts, ends = [start for start, _ in windows], [end for _, end in windows]
    present: list[dict[str, list[tuple[float, float]]]] = [defaultdict(list) for _ in windows]
    touching: list[set[str]] = [set() for _ in windows]
    for a in annotations:
        if a.end_s == a.start_s:
            i = bisect.bisect_right(starts, a.start_s) - 1
            if i >= 0 and a.start_s < ends[i]:
                present[i][a.label].append((a.start_s, a.end_s))
            continue
        for i in range(bisect.bisect_right(ends, a.start_s), bisect.bisect_left(starts, a.end_s)):
            piece = max(starts[i], a.start_s), min(ends[i], a.end_s)
            overlap_s = piece[1] - piece[0]
            if overlap_s >= min_overlap_s - TOLERANCE_S:
                present[i][a.label].append(piece)
            elif overlap_s > TOLERANCE_S:
                touching[i].add(a.label)
    return [_window(own, others) for own, others in zip(present, touching, strict=True)]


def are_within(
    windows: Sequence[tuple[float, float]], stretches: Iterable[tuple[float, float]], tolerance_s: float = 1e-5
) -> list[bool]:
    """Return whether each window, from start to end in seconds, lies in stretches, which may overlap or touch."""
    joined: list[list[float]] = []
    for start_s, end_s in sorted(stretches):
        if joined and start_s <= joined[-1][1] + tolerance_s:
            joined[-1][1] = max(joined[-1][1], end_s)
        else:
            joined.append([start_s, end_s])
    found = []
    for start_s, end_s in windows:
        i = bisect.bisect_right(joined, start_s + tolerance_s, key=lambda stretch: stretch[0]) - 1
        found.append(i >= 0 and end_s <= joined[i][1] + tolerance_s)
    return found


def _window(present: dict[str, list[tuple[float, float]]], touching: set[str]) -> Window:
    filled_s = {label: round(_union_s(pieces), 6) for label, pieces in present.items()}
    ranked = sorted(filled_s, key=lambda name: (-filled_s[name], name))
    return Window(tuple(ranked), tuple(sorted(touching - present.keys())))


def _union_s(pieces: list[tuple[float, float]]) -> float:
    """Return the seconds that pieces cover together: two birds of a species can sing at once."""
    total_s, reached_s = 0.0, 0.0
    for start_s, end_s in sorted(pieces):
        total_s += max(0.0, end_s - max(start_s, reached_s))
        reached_s = max(reached_s, end_s)
    return total_s
