"""Which labels with times are in which windows: opensoundscape's table by hand, and the rules where ours differ."""

import random

import pytest

from utils.data.timed_labels import Annotation
from utils.data.windows import Window, labels_of_windows

LABELS = ["Crow", "Rook", "Tit", "Wren"]
NIGHT = [
    (0.0, 1.0, "Crow"),
    (1.9, 2.15, "Crow"),
    (1.75, 3.0, "Wren"),
    (3.8, 4.25, "Rook"),
    (4.5, 4.7, "Wren"),
    (7.0, 9.5, "Crow"),
    (5.5, 10.4, "Rook"),
    (9.0, 12.0, "Tit"),
]
# Printed by opensoundscape 0.13.2: BoxedAnnotations(...).clip_labels(clip_duration=2, min_label_overlap=0.25,
# full_duration=11.0, final_clip="remainder", class_subset=LABELS).astype(int)
OPENSOUNDSCAPE = {
    (0.0, 2.0): [1, 0, 0, 1],
    (2.0, 4.0): [0, 0, 0, 1],
    (4.0, 6.0): [0, 1, 0, 0],
    (6.0, 8.0): [1, 1, 0, 0],
    (8.0, 10.0): [1, 1, 1, 0],
    (10.0, 11.0): [0, 1, 1, 0],
}


def annotations(rows):
    return [Annotation("night.wav", *row) for row in rows]


def multi_hot(windows):
    return [[int(label in window.labels) for label in LABELS] for window in windows]


def two_second_windows(n):
    return [(2.0 * i, 2.0 * i + 2) for i in range(n)]


@pytest.mark.parametrize("seed", range(3))
def test_the_table_of_opensoundscape_cell_by_cell_in_any_order_of_the_rows(seed):
    rows = random.Random(seed).sample(NIGHT, len(NIGHT))
    windows = labels_of_windows(list(OPENSOUNDSCAPE), annotations(rows), 0.25)
    assert multi_hot(windows) == list(OPENSOUNDSCAPE.values())


def test_the_example_of_the_document():
    rows = annotations([(1.0, 3.5, "Wren"), (3.0, 5.1, "Crow"), (8.0, 11.0, "Wren")])
    windows = labels_of_windows([(5.0 * i, 5.0 * i + 5) for i in range(4)], rows)
    assert windows == [Window(("Wren", "Crow")), Window(("Wren",), ("Crow",)), Window(("Wren",)), Window()]


def test_an_overlap_below_the_least_is_neither_a_label_nor_silence():
    windows = labels_of_windows(list(OPENSOUNDSCAPE), annotations(NIGHT), 0.25)
    assert [window.secondary for window in windows] == [(), ("Crow", "Rook"), ("Wren",), (), (), ()]
    assert windows[1] == Window(("Wren",), ("Crow", "Rook"))
    call = labels_of_windows(two_second_windows(2), annotations([(0.5, 0.6, "Crow")]))
    assert call == [Window((), ("Crow",)), Window()]
    assert [window.is_silent for window in call] == [False, True]


@pytest.mark.parametrize(
    ("row", "least_s"),
    [
        ((0.1, 0.35, "Crow"), 0.25),  # opensoundscape: 0.35 - 0.1 = 0.24999999999999997 is too short
        ((1.7, 2.0, "Crow"), 0.3),
        ((1.75, 9.0, "Crow"), 0.25),
        ((0.0, 2.0, "Crow"), 2.0),
    ],
)
def test_an_overlap_of_exactly_the_least_counts(row, least_s):
    first = labels_of_windows(two_second_windows(2), annotations([row]), least_s)[0]
    assert first.labels == ("Crow",)
    longer = labels_of_windows(two_second_windows(2), annotations([row]), least_s + 0.001)[0]
    assert longer.labels == () and longer.secondary == ("Crow",)


def test_the_last_window_ends_where_its_sound_ends():
    """By default opensoundscape extends the last window: it gives it labels that lie after the end of the file."""
    late = annotations([(11.0, 11.9, "Tit"), (10.9, 11.6, "Wren")])
    windows = labels_of_windows([(8.0, 10.0), (10.0, 11.0)], late)
    assert windows == [Window(), Window((), ("Wren",))]


def test_a_label_between_windows_is_in_none():
    assert (
        labels_of_windows([(0.0, 1.0), (3.0, 4.0)], annotations([(1.0, 3.0, "Crow"), (2, 2, "Wren")])) == [Window()] * 2
    )
    assert labels_of_windows([], annotations(NIGHT)) == []


def test_a_point_is_in_the_window_that_it_falls_into_and_on_a_border_in_the_later_one():
    rows = [(0.0, 0.0, "Crow"), (1.99, 1.99, "Wren"), (2.0, 2.0, "Rook"), (4.0, 4.0, "Tit")]
    assert [window.labels for window in labels_of_windows(two_second_windows(2), annotations(rows))] == [
        ("Crow", "Wren"),
        ("Rook",),
    ]


def test_the_first_label_is_the_one_that_fills_most_of_the_window():
    def first(*rows):
        return labels_of_windows([(0.0, 5.0)], annotations(rows))[0].label

    assert first((0, 1, "Crow"), (1, 3, "Wren")) == "Wren"
    assert first((0, 1, "Wren"), (3, 4, "Crow")) == "Crow", "of equals the first by name"
    assert first((0, 0.7, "Wren"), (1, 1.7, "Wren"), (2, 3, "Crow")) == "Wren", "its annotations count together"
    assert first((0, 1, "Wren"), (0.2, 1.1, "Wren"), (2, 3.2, "Crow")) == "Crow", "two birds at once count once"
    assert first((0, 9, "Wren"), (0, 5, "Crow")) == "Crow", "only what is in the window counts"
    assert first((0, 0, "Wren")) == "Wren" and first() == ""


def test_the_rule_holds_for_random_annotations_and_overlapping_windows():
    rng = random.Random(5)
    for _ in range(200):
        step, length, least = rng.choice([1, 2]), rng.choice([2, 3]), rng.choice([0.25, 0.5, 1.0])
        windows = [(step * i, step * i + length) for i in range(6)]
        rows = [
            (start := rng.randrange(40) / 4, start + rng.randrange(1, 12) / 4, rng.choice(LABELS)) for _ in range(6)
        ]
        for (low, high), found in zip(windows, labels_of_windows(windows, annotations(rows), least), strict=True):
            most = {}
            for start, end, label in rows:
                most[label] = max(most.get(label, 0), min(end, high) - max(start, low))
            assert found.labels == tuple(sorted(label for label, s in most.items() if s >= least))
            assert found.secondary == tuple(sorted(label for label, s in most.items() if 0 < s < least))
