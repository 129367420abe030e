"""Stage 08 --review: the windows on the page are those of the scores, with their own sound, whoever decodes them."""

import base64
import io
import json
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from tests.data import LABELS
from tests.test_08_detection import detect, digests, model_dir, raw_dir  # noqa: F401
from utils.core.errors import InputError
from utils.data import audio, preparation, recordings
from utils.field import review, window_stream
from utils.figures import review_page

WORDS = ("--overlap_seconds", "0.25", "--review", "2", "--save_scores")


@pytest.fixture(scope="module")
def reviewed(model_dir, raw_dir, tmp_path_factory):  # noqa: F811
    output_dir = tmp_path_factory.mktemp("reviewed") / "out"
    assert detect(model_dir, raw_dir, output_dir, *WORDS) == 0
    return output_dir


def items(output_dir):
    page = (output_dir / review_page.NAME).read_text(encoding="utf-8")
    return page, json.loads(re.search(r'id="page">(.*?)</script>', page)[1])["items"]


def test_the_page_shows_the_best_windows_and_others_with_their_scores_and_times(reviewed):
    _, found = items(reviewed)
    scores = pq.read_table(reviewed / "scores.parquet").to_pandas()
    for label in LABELS:
        own = [one for one in found if one["label"] == label]
        assert [one["why"] for one in own] == ["best"] * 2 + ["threshold"] * 2 + ["random"] * 2
        assert len({(one["file"], one["start"]) for one in own}) == 6
        best = scores[label].sort_values(ascending=False, kind="stable")
        assert [one["score"] for one in own[:2]] == [float(f"{score:.4g}") for score in best[:2]]
        for one in own:
            row = scores[(scores["file"] == one["file"]) & (abs(scores["start_s"] - float(one["start"])) < 1e-6)]
            assert one["score"] == float(f"{row[label].item():.4g}") and one["threshold"] == 0.3
            assert bool(one["recorded_at"]) == one["file"].startswith("a_2025")


def test_a_window_sounds_as_in_its_recording(reviewed, raw_dir):  # noqa: F811
    page, found = items(reviewed)
    for number, one in enumerate(found):
        heard, rate_hz = soundfile.read(
            io.BytesIO(base64.b64decode(re.search(rf'id="sound-{number}">(.*?)<', page)[1])), dtype="float32"
        )
        start, end = (round(float(one[name]) * rate_hz) for name in ("start", "end"))
        wanted, _ = soundfile.read(raw_dir / one["file"], dtype="float32", start=start, stop=end)
        assert len(wanted) == end - start == len(heard)
        assert np.corrcoef(heard, wanted)[0, 1] > 0.9


def test_workers_and_shards_write_the_same_page(reviewed, model_dir, raw_dir, tmp_path):  # noqa: F811
    expected = digests(reviewed)
    assert detect(model_dir, raw_dir, tmp_path / "two", *WORDS, workers=2) == 0
    assert digests(tmp_path / "two") == expected
    for number in (1, 2):
        assert detect(model_dir, raw_dir, tmp_path / "shared", *WORDS, "--shard", f"{number}/2") == 0
    assert detect(model_dir, raw_dir, tmp_path / "shared", *WORDS, "--merge_shards", "2") == 0
    assert digests(tmp_path / "shared") == expected


def test_review_alone_keeps_no_table_of_scores(model_dir, raw_dir, tmp_path):  # noqa: F811
    assert detect(model_dir, raw_dir / "site", tmp_path / "out", "--review", "1") == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names >= {review_page.NAME, "detections.csv"} and "scores.parquet" not in names


def test_a_recording_that_has_changed_since_it_was_scored_is_named(raw_dir, tmp_path):  # noqa: F811
    (tmp_path / "b.wav").write_bytes((raw_dir / "site/b.wav").read_bytes())
    listed, _ = preparation.list_files(tmp_path, recordings.find_audio(tmp_path)[1])
    windows = window_stream.WindowFormat(16000, 8000, 8000, 1, 1, "pad")
    task = review.Task(tmp_path, listed["b.wav"], windows, "mean", frozenset({0}))
    assert review.encode_windows(task)[1][0].khz == 8.0
    (tmp_path / "b.wav").write_bytes(b"RIFF")
    with pytest.raises(InputError, match="changed while it was read"):
        review.encode_windows(task)


def test_a_recording_that_cannot_be_read_again_is_named(raw_dir, tmp_path, monkeypatch):  # noqa: F811
    listed, _ = preparation.list_files(raw_dir, recordings.find_audio(raw_dir)[1])
    windows = window_stream.WindowFormat(16000, 8000, 8000, 1, 1, "pad")

    def fail(*args):
        raise audio.Undecodable("broken")

    monkeypatch.setattr(audio, "decode", fail)
    with pytest.raises(InputError, match=r"b\.wav could be read before, and now cannot: broken"):
        review.encode_windows(review.Task(raw_dir, listed["site/b.wav"], windows, "mean", frozenset({0})))
