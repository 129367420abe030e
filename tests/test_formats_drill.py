"""The drill of formats finds what it looks for."""

import numpy as np
import pandas as pd
import pytest

from drills import formats
from tests.sounds import song, write


def clips(*rows):
    return pd.DataFrame(rows, columns=formats.COLUMNS)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([("a", 0.0, 5.0), ("a", 5.0, 1.01)], (0, 0, 0.0)),
        ([("a", 0.0, 5.0), ("a", 5.0, 1.03)], (0, 0, 0.02)),
        ([("a", 0.0, 5.0), ("a", 5.0, 1.2)], (1, 0, 0.19)),
        ([("a", 0.0, 5.0)], (0, 1, 0.0)),
        ([("a", 0.0, 5.0), ("a", 5.0, 5.0), ("a", 10.0, 2.0)], (1, 0, 0.0)),
        ([("b", 0.0, 5.0), ("b", 5.0, 1.01)], (2, 0, 0.0)),
    ],
)
def test_other_clips_are_counted(found, expected):
    reference = clips(("a", 0.0, 5.0), ("a", 5.0, 1.01))
    n_other, n_at_limit, largest_s = formats.compare(reference, clips(*found), 0.05)
    assert (n_other, n_at_limit) == expected[:2]
    if n_other < 2 and not n_at_limit and len(found) == 2:
        assert largest_s == pytest.approx(expected[2])


def test_a_row_for_every_format(tmp_path, capsys):
    for i in range(4):
        write(tmp_path / "AB"[i % 2] / f"{i}.wav", np.tile(song(3.4, 48_000, seed=i), (2, 1)), 48_000)
    assert formats.main(["--raw_dir", str(tmp_path), "--formats", "mp3-vbr-no-xing-id3"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")][1:]
    assert [row.split(" | ")[0] for row in rows] == ["| wav", "| mp3-vbr-no-xing-id3"]
    assert all(" | 0 | 0 | 0 | 0 | " in row for row in rows)
