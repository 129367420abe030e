"""The answers of a review page as annotations of stage 01: only reviewed windows become clips."""

import numpy as np
import pandas as pd
import pytest

from tests.browser import Browser
from tests.sounds import song, write
from tests.stages import load_stage
from utils.data import annotations
from utils.data.windows import are_within
from utils.figures.review_page import Item, encode, write_page

RATE_HZ = 8000
NIGHTS = [f'site "a" & b/night{i}.wav' for i in range(4)]
HEADER = "file,start,end,label,answer,asked,why,score\n"
# Of each night, 8 s long: asked, start and end in s, the keys of the answer, and the labels of the clip.
QUESTIONS = [
    ("Crow", 0.0, 2.0, "y", ["Crow"]),
    ("Wren", 0.0, 2.0, "y", ["Crow", "Wren"]),
    ("Wren", 2.0, 4.0, "n", []),
    ("Crow", 4.0, 6.0, "oWren", ["Wren"]),
    ("Crow", 6.0, 7.5, "u", None),
]
EXPECTED = {0.0: ["Crow", "Wren"], 2.0: [], 4.0: ["Wren"]}


def quoted(text):
    return '"' + text.replace('"', '""') + '"'


def saved_by_hand():
    rows = [(0.0, 2.0, "Crow", "yes", "Crow"), (0.0, 2.0, "Wren", "yes", "Wren"), (2.0, 4.0, "", "no", "Wren")]
    rows += [(4.0, 6.0, "Wren", "other", "Crow")]
    return HEADER + "".join(
        ",".join([quoted(night), str(start), str(end), *map(quoted, (*texts, "best")), "0.5"]) + "\n"
        for night in NIGHTS
        for start, end, *texts in rows
    )


@pytest.fixture(scope="module")
def raw_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    for i, night in enumerate(NIGHTS):
        write(folder / night, song(7.5, RATE_HZ, 1, i), RATE_HZ)
    return folder


def clips_of(raw_dir, table, output_dir):
    """Return the labels of each clip that 01 makes, by its file and start."""
    words = ["--raw_dir", raw_dir, "--annotations", table, "--output_dir", output_dir, "--num_workers", 1]
    words += ["--sample_rate", RATE_HZ, "--clip_seconds", 2, "--min_recordings", 2]
    assert load_stage("01_data_processing").main([str(word) for word in words]) == 0
    clips = pd.concat(map(pd.read_parquet, output_dir.glob("clips-*.parquet")))
    return {(clip.source_path, clip.start_s): list(clip.labels) for clip in clips.itertuples()}


def test_only_reviewed_windows_become_clips_and_no_is_silence(raw_dir, tmp_path, caplog):
    (tmp_path / "review.csv").write_text(saved_by_hand())
    with caplog.at_level("INFO"):
        found = clips_of(raw_dir, tmp_path / "review.csv", tmp_path / "out")
    assert found == {(night, start): labels for night in NIGHTS for start, labels in EXPECTED.items()}
    assert "after their last clip are left out" not in caplog.text, "the last clip is not in a reviewed window"
    assert "4 clips are left out: not in reviewed stretches" in caplog.text


def test_the_rows_of_a_kaleidoscope_table_that_nobody_verified_are_not_silence(raw_dir, tmp_path):
    rows = ["INDIR,FOLDER,IN FILE,OFFSET,DURATION,TOP1MATCH,MANUAL ID"]
    for night in NIGHTS:
        where = f",{quoted(night.split('/')[0])},{night.split('/')[1]}"
        rows += [f"{where},0,2,Crow,Crow", f"{where},0,1,Wren,Wren", f"{where},2.5,1,Crow,", f"{where},4,2,Crow,Wren"]
    (tmp_path / "id.csv").write_text("\n".join(rows))
    found = clips_of(raw_dir, tmp_path / "id.csv", tmp_path / "out")
    expected = {0.0: ["Crow", "Wren"], 4.0: ["Wren"], 6.0: []}
    assert found == {(night, start): labels for night in NIGHTS for start, labels in expected.items()}


def test_answers_of_a_page_in_a_browser_become_clips(raw_dir, tmp_path):
    media = encode(np.zeros(RATE_HZ, np.float32), RATE_HZ)
    items = [
        Item(asked, "best", night, start, end, 0.5, media) for night in NIGHTS for asked, start, end, *_ in QUESTIONS
    ]
    write_page(tmp_path / "review.html", "x", ["Crow", "Wren"], items)
    (tmp_path / "saved").mkdir()
    browser = Browser(tmp_path / "saved", tmp_path / "profile")
    try:
        browser.open(tmp_path / "review.html")
        for *_, keys, _ in QUESTIONS * len(NIGHTS):
            browser.press(keys[0])
            browser.press(*keys[1:], *(["Enter"] if len(keys) > 1 else []))
        browser.click("#save")
        saved = browser.saved()
    finally:
        browser.close()
    # The page asks label by label of its list; the rows are those by hand.
    assert sorted(saved.decode().splitlines()) == sorted(saved_by_hand().splitlines())
    (tmp_path / "review.csv").write_bytes(saved)
    found = clips_of(raw_dir, tmp_path / "review.csv", tmp_path / "out")
    assert found == {(night, start): labels for night in NIGHTS for start, labels in EXPECTED.items()}


def test_a_table_of_answers_tells_its_stretches_and_its_problems(tmp_path):
    rows = ['"a.wav",0.0,2.0,"Crow","yes","Crow","best",0.5', '"a.wav",2.0,4.0,"","no","Crow","best",0.5']
    rows += ['"b.wav",5.0,4.0,"","no","Crow","best",0.5', '"b.wav",x,4.0,"","no","Crow","best",0.5']
    (tmp_path / "review.csv").write_text(HEADER + "\n".join(rows))
    table = annotations.read_all(tmp_path / "review.csv")
    assert table.heard == {"a.wav": [(0.0, 2.0), (2.0, 4.0)], "b.wav": []} and table.files == ["a.wav", "b.wav"]
    assert [(a.file, a.start_s, a.label) for a in table.annotations] == [("a.wav", 0.0, "Crow")]
    assert len(table.problems) == 2


def test_of_several_tables_one_that_tells_the_whole_file_counts(tmp_path):
    row = '"{}",{},{},"Crow","yes","Crow","best",0.5\n'
    (tmp_path / "1.csv").write_text(HEADER + row.format("a.wav", 0.0, 2.0) + row.format("b.wav", 0.0, 2.0))
    (tmp_path / "2.csv").write_text(HEADER + row.format("a.wav", 1.0, 3.0) + row.format("b.wav", 0.0, 2.0))
    (tmp_path / "3.csv").write_text("file,start,end,label\nb.wav,7.0,8.0,Wren\n")
    assert annotations.read_all(tmp_path).heard == {"a.wav": [(0.0, 2.0), (1.0, 3.0)]}


def test_windows_within_stretches_that_touch_or_overlap():
    windows = [(0.0, 2.0), (1.0, 3.0), (2.0, 4.0), (3.5, 5.5), (5.0, 7.0), (8.0, 9.0), (9.000005, 9.5)]
    stretches = [(8.0, 9.0), (2.0, 4.0), (0.0, 2.0), (3.0, 5.0), (9.0, 9.5)]
    assert are_within(windows, stretches) == [True, True, True, False, False, True, True]
    assert are_within(windows[:2], []) == [False, False]
