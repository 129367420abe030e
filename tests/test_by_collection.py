"""Scores by collection by hand, the level of knowing the collection alone, and labels of one collection."""

import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tests.data import write_processed
from tests.results import write_result
from tests.stages import load_stage
from utils.core.files import write_csv
from utils.data import recordings_table
from utils.scores import by_collection, evaluation, intervals

LABELS = ["Crow", "Rook", "Wren"]
COLUMNS = ["recording_id", "label", "split", "n_clips", "collection"]


def write_recordings(data_dir, *rows):
    write_csv(data_dir / recordings_table.NAME, COLUMNS, rows)


def test_the_guess_is_the_most_frequent_label_of_the_collection_in_train(tmp_path):
    write_recordings(
        tmp_path,
        ("r1", "Crow", "train", 3, "C1"),
        ("r2", "Rook", "train", 2, "C1"),
        ("r3", "Rook", "train", 2, "C2"),
        ("r4", "Wren", "train", 2, "C2"),  # as many: the lower id is taken
        ("r5", "Wren", "train", 4, ""),
        ("r6", "Rook", "val", 9, "C1"),
        *(("t1", "Crow", "test", 1, "C1"), ("t3", "Rook", "test", 1, "C2"), ("t4", "Wren", "test", 1, "C3")),
        ("t5", "Crow", "test", 1, ""),
    )
    found = by_collection.collections_of(["t1", "t1", "t3", "t4", "t5", "gone"], LABELS, tmp_path)
    assert found["collection"].tolist() == ["C1", "C1", "C2", "C3", "", ""]
    # In all of train there are 3 Crow, 4 Rook and 6 Wren.
    assert found["guessed_id"].tolist() == [0, 0, 1, 2, 2, 2]


def test_the_guess_knows_the_train_side_of_its_fold(tmp_path):
    rows = [(f"r{k}", label, f"fold-{k}", 1, "C1") for k, label in enumerate(LABELS, 1)]
    write_recordings(tmp_path, *rows)
    # Fold k is test and the next is val, so the one after that is all of train.
    for fold, guess in {1: 2, 2: 0, 3: 1}.items():
        assert by_collection.collections_of([f"r{fold}"], LABELS, tmp_path, fold)["guessed_id"].tolist() == [guess]


def test_only_the_clips_in_train_count_where_a_split_divides_recordings(tmp_path, monkeypatch):
    write_recordings(tmp_path, ("r1", "Crow", "train|test", 9, "C1"), ("r2", "Rook", "train|val", 4, "C1"))
    train = SimpleNamespace(table=pd.DataFrame({"recording_id": ["r1", "r1", "r2", "r2", "r2"]}))
    asked = []
    monkeypatch.setattr(by_collection.clips, "read_clips", lambda *args, fold: asked.append((*args, fold)) or train)
    assert by_collection.collections_of(["r1"], LABELS, tmp_path)["guessed_id"].tolist() == [1]
    assert asked == [(tmp_path, "train", None)]


def test_without_recordings_no_collection_is_known(tmp_path):
    found = by_collection.collections_of(["a"], LABELS, tmp_path)
    assert found.to_dict("list") == {"collection": [""], "guessed_id": [3]}
    table = pd.DataFrame({"label_id": [0], "predicted_id": [0], "group": ["g"]})
    assert by_collection.score(table, found) is None


def scored():
    """Return clips of two collections and one of none, and what is known of them."""
    table = pd.DataFrame(
        {
            "label_id": [0, 0, 1, 1, 2, 2, 0],
            "predicted_id": [0, 1, 1, 1, 2, 0, 1],
            "group": ["a", "b", "b", "c", "d", "e", "f"],
        }
    )
    names = ["C1"] * 4 + ["C2"] * 2 + [""]
    return table, pd.DataFrame({"collection": names, "guessed_id": [1, 1, 1, 1, 2, 2, 2]})


def test_scores_by_hand():
    table, known = scored()
    found = by_collection.score(table, known).set_index("collection")
    assert found.index.tolist() == ["C1", "C2", "unknown", by_collection.MEAN, by_collection.ALONE]
    assert found["n_clips"].tolist() == [4, 2, 1, 6, 7]
    assert found["n_groups"].tolist() == [3, 2, 1, 5, 6]
    assert found["n_labels"].tolist() == [2, 1, 1, 3, 3]
    # C1: F1 of Crow 2/3, of Rook 4/5. C2: F1 of Wren 2/3. Alone: Crow 0, Rook 2/3, Wren 4/5; right in 4 of 7.
    assert found["accuracy"].tolist() == pytest.approx([3 / 4, 1 / 2, 0, 5 / 8, 4 / 7])
    assert found["macro_f1"].tolist() == pytest.approx([11 / 15, 2 / 3, 0, 7 / 10, 22 / 45])
    assert found.loc["unknown", ["accuracy_low", "macro_f1_high"]].isna().all()  # of one group


def test_intervals_are_those_of_each_collection_and_of_their_mean():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"label_id": rng.integers(0, 3, 90), "group": np.repeat(np.arange(30), 3)})
    table["predicted_id"] = np.where(rng.random(90) < 0.6, table["label_id"], rng.integers(0, 3, 90))
    names = np.where(table["group"] < 20, "C1", "C2")  # two groups are in both
    names[[0, 89]] = "C2", "C1"
    known = pd.DataFrame({"collection": names, "guessed_id": 0})
    found = by_collection.score(table, known).set_index("collection")

    def columns(part):
        return (part[name].to_numpy() for name in ("label_id", "predicted_id", "group"))

    for name in ("C1", "C2"):
        ends = intervals.score_intervals(*columns(table[names == name]))
        for score, expected in ends.items():
            assert tuple(found.loc[name, [f"{score}_low", f"{score}_high"]]) == pytest.approx(expected)

    def means(part, of_part):
        scores = [
            ((ids == answers).mean(), evaluation.macro_f1(ids, answers))
            for ids, answers, _ in (columns(part[of_part == name]) for name in ("C1", "C2"))
        ]
        return np.mean(scores, axis=0)

    left_out = np.array([means(table[table["group"] != g], names[table["group"] != g]) for g in range(30)])
    error = np.sqrt(29 / 30 * ((left_out - left_out.mean(axis=0)) ** 2).sum(axis=0))
    shares = pd.crosstab(table["group"], names, normalize="columns").to_numpy()
    weights = (shares**2).sum(axis=1)
    critical = stats.t.ppf(0.975, weights.sum() ** 2 / (weights**2).sum() - 1)
    low, high = intervals.share_interval(means(table, names), error, 30, 90, critical)
    assert found.loc[by_collection.MEAN, ["accuracy_low", "macro_f1_low"]].tolist() == pytest.approx(list(low))
    assert found.loc[by_collection.MEAN, ["accuracy_high", "macro_f1_high"]].tolist() == pytest.approx(list(high))


def test_one_collection_or_one_group_has_no_scores_or_no_interval():
    table, known = scored()
    assert by_collection.score(table, known.assign(collection="C1")) is None
    found = by_collection.score(table.assign(group="a"), known).set_index("collection")
    assert np.isnan(found["accuracy_low"]).all() and found.loc[by_collection.MEAN, "accuracy"] == 5 / 8


def test_a_collection_may_be_called_like_a_row(tmp_path, caplog):
    table, known = scored()
    renamed = known.replace({"C1": by_collection.MEAN, "C2": by_collection.ALONE})
    this_run = SimpleNamespace(metrics={})
    args = SimpleNamespace(output_dir=tmp_path, data_dir=tmp_path, pool=None)
    load_stage("03_model_validation").score_collections(args, this_run, table, renamed)
    collections = this_run.metrics["collections"]
    assert [of["accuracy"] for of in collections.values()] == pytest.approx([5 / 8, 4 / 7])
    pd.testing.assert_frame_equal(by_collection.read(tmp_path), by_collection.score(table, renamed), rtol=1e-5)
    assert not [record for record in caplog.records if record.levelname == "WARNING"], "one of one group needs none"


def test_a_collection_of_one_group_is_left_out_with_it():
    table, known = scored()
    found = by_collection.score(table.replace({"group": {"e": "d"}}), known).set_index("collection")
    assert np.isfinite(found.loc[by_collection.MEAN, ["accuracy_low", "macro_f1_high"]].astype(float)).all()


@pytest.mark.parametrize(
    ("collections", "named"),
    [
        (["C1", "C2", "C2", "C2"], "1 of 2 labels have recordings of one collection only, .*: Rook (C2)"),
        (["C1", "C1", "C1", "C1"], None),  # a single collection explains nothing
        (["C1", "C2", "C2", ""], None),
        (["", "", "", ""], None),
        (["C1", "C1", "C2", "C2"], "2 of 2 labels have recordings of one collection only, .*: Crow (C1), Rook (C2)"),
    ],
)
def test_labels_of_one_collection_are_named(collections, named, tmp_path, caplog):
    labels = ["Crow", "Crow", "Rook", "Rook"]
    write_recordings(tmp_path, *((f"r{i}", labels[i], "train", 1, name) for i, name in enumerate(collections)))
    recordings_table.warn_of_labels_of_one_collection(tmp_path)
    if named is None:
        assert not caplog.records
    else:
        start, end = named.split(".*")
        assert caplog.messages[0].startswith(start) and caplog.messages[0].endswith(end)


@pytest.mark.parametrize("is_damaged", [False, True])
@pytest.mark.usefixtures("blank_figures")
def test_folds_of_a_data_set_that_was_made_again_are_not_scored_by_collection(
    is_damaged, tmp_path, monkeypatch, caplog
):
    monkeypatch.chdir(tmp_path)
    write_processed(tmp_path / "data", folds=2, recordists={}, collections={})
    if is_damaged:
        (tmp_path / "data" / "run.json").unlink()
    rng, folders = np.random.default_rng(0), []
    for fold in (1, 2):
        logits, groups = rng.normal(size=(6, 3)).astype(np.float32), [f"{fold}{i}" for i in range(6)]
        known = {"data_sha256": f"other/fold-{fold}-of-2", "split": "test", "logits": logits, "labels": LABELS}
        write_result(tmp_path, f"fold-{fold}", logits.argmax(axis=1), np.arange(6) % 3, groups, **known)
        folders.append(str(tmp_path / f"fold-{fold}"))
    assert load_stage("03_model_validation").main(["--pool", *folders, "--output_dir", str(tmp_path / "all")]) == 0
    assert "data is not the data set of these folds, or not there: no scores by collection" in caplog.text
    assert not (tmp_path / "all" / by_collection.NAME).exists()
    shutil.rmtree(tmp_path / "data")
    caplog.clear()
    assert load_stage("03_model_validation").main(["--pool", *folders, "--output_dir", str(tmp_path / "gone")]) == 0
    assert "or not there: no scores by collection" in caplog.text
