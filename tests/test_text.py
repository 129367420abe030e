"""Counts in log lines."""

import pytest

from utils.core.text import counted


@pytest.mark.parametrize(("n", "words"), [(0, "0 files"), (1, "1 file"), (2, "2 files"), (21, "21 files")])
def test_a_number_stands_with_its_noun(n, words):
    assert counted(n, "file") == words


def test_a_verb_follows_the_number():
    assert [counted(n, "label has", "labels have") for n in (1, 2)] == ["1 label has", "2 labels have"]
