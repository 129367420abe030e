"""Stage 04, run in-process: what it measures, draws, recommends, takes again and refuses."""

import itertools
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from experiments import figures, publish
from tests.data import LABELS, small_model, write_processed
from tests.stages import load_stage
from utils.core import records
from utils.data import clip_arrays, clips
from utils.layers import analysis, hidden_states, linear_maps, similarity
from utils.layers.convexity import graph_convexity, sample_pairs
from utils.layers.euclidean_convexity import euclidean_convexity
from utils.layers.probes import fit_and_predict
from utils.models import architectures, encoders, model_folder, predict
from utils.models.encoder_parts import EncoderParts
from utils.pruning import layer_selection, recommendation

stage = load_stage("04_analysis")
pytestmark = pytest.mark.usefixtures("blank_figures")
FIGURES = (
    *("graph_convexity", "cka", "mutual_knn", "cosine", "block_influence", "angular_distance", "linear_residual"),
    *("probe", "overview"),
)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return write_processed(tmp_path_factory.mktemp("data") / "processed")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    """A model folder with the labels of the data, as stage 02 would leave it; its weights are random."""
    runs_dir = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    loaded = small_model("wav2vec2")
    encoders.save_model(loaded, runs_dir / "fine_tuned")
    return runs_dir / "fine_tuned"


def run(model_dir, data_dir, output_dir, *more):
    words = ["--model_dir", model_dir, "--data_dir", data_dir, "--output_dir", output_dir, "--device", "cpu", *more]
    return stage.main([str(word) for word in words])


@pytest.fixture(scope="module")
def analysed(model_dir, data_dir, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("analysis") / "fine_tuned"
    assert run(model_dir, data_dir, output_dir, "--split", "train", "--per_class", "--num_neighbors", 5) == 0
    return output_dir


@pytest.mark.parametrize("num_neighbors", [1, 12])
def test_layers_whose_pairs_are_mostly_neighbours_are_named(num_neighbors, model_dir, data_dir, tmp_path):
    """With 12 neighbours of 18 clips most pairs are joined; with one, few are."""
    words = ("--metrics", "graph_convexity", "--num_neighbors", num_neighbors)
    assert run(model_dir, data_dir, tmp_path / "out", *words) == 0
    table, text = pd.read_csv(tmp_path / "out" / "graph_convexity.csv"), (tmp_path / "out" / "log.txt").read_text()
    mostly = table["direct_share"] > 0.5
    assert table["mostly_direct"].equals(mostly) and mostly.all() == (num_neighbors == 12)
    assert ("in 4 of 4 layers (0, 1, 2, 3) more than half of the pairs of clips are joined" in text) == mostly.all()
    assert ("graph convexity is highest at layer" in text) == (not mostly.any())
    assert (": this model on other recordings), null (labels permuted between groups)" in text) == (not mostly.any())
    assert "val: 9 groups are few: intervals from fewer than 30 are rough" in text


def tables_of(output_dir):
    return {path.name: path.read_bytes() for path in output_dir.glob("*.csv")}


@pytest.mark.drawn
def test_figures_are_drawn_again_from_the_tables(analysed, tmp_path):
    again = shutil.copytree(analysed, tmp_path / analysed.name)
    for path in [*again.glob("*.p*"), *again.glob("hidden_states*")]:
        path.unlink()
    assert figures.main([str(again)]) == 0
    names = {path.name for path in analysed.glob("*.p*")}
    assert {path.name for path in again.glob("*.p*")} == names and "overview.pdf" in names
    for name in names:
        assert (again / name).read_bytes() == (analysed / name).read_bytes(), name


def test_every_metric_has_its_table_and_figure(analysed):
    for name in (*FIGURES, "graph_convexity_per_class"):
        for suffix in ("pdf", "png"):
            assert (analysed / f"{name}.{suffix}").stat().st_size > 1000, name
        if name != "overview":
            assert not pd.read_csv(analysed / f"{name}.csv").isna().all(axis=None)
    record = json.loads((analysed / "run.json").read_text())
    assert record["status"] == "complete"
    assert " 3 classes, chance 0.333, majority 0.333 (" in (analysed / "log.txt").read_text()
    assert {"hidden_states.npy", "recommendation.json"} <= {output["path"] for output in record["outputs"]}


def test_tables_agree_with_the_rooms_they_come_from(analysed, data_dir):
    states = np.load(analysed / "hidden_states.npy")
    table = pd.read_csv(analysed / "hidden_states_clips.csv")
    assert list(table["clip_id"]) == list(clips.read_clips(data_dir, "train").table["clip_id"])
    found = pd.read_csv(analysed / "graph_convexity.csv")
    assert list(found["layer"]) == [0, 1, 2, 3]
    layer = graph_convexity(states[2], table["label_id"].to_numpy(), table["group"].to_numpy(), 3, k=5, seed=42)
    assert found.loc[2, "convexity"] == pytest.approx(layer.convexity)
    assert found.loc[2, "null_of_groups"] == pytest.approx(layer.null)
    matrix = pd.read_csv(analysed / "cka.csv", index_col="layer").to_numpy()
    np.testing.assert_allclose(matrix, similarity.cka(states))
    knn = pd.read_csv(analysed / "mutual_knn.csv", index_col="layer").to_numpy()
    influence = pd.read_csv(analysed / "block_influence.csv")
    np.testing.assert_allclose(influence["knn_block_influence"], 1 - np.diagonal(knn, 1))
    nulls = pd.read_csv(analysed / "null_levels.csv").set_index("metric")
    _, knn_null = similarity.mutual_knn_and_null(states, None, 5, table["recording_id"], table["group"])
    assert nulls.loc["mutual_knn", "null"] == pytest.approx(knn_null.mean()) and knn_null.mean() > 5 / 35
    np.testing.assert_allclose(influence["knn_block_influence_null"], 1 - np.diagonal(knn_null, 1))
    of_clip = (table["recording_id"].to_numpy(), table["group"].to_numpy())
    expected = similarity.cka_and_null(states, None, "debiased", *of_clip)[1]
    assert nulls.loc["cka", "null"] == pytest.approx(expected.mean()) and 0 < expected.mean() < 1
    assert "know the recording" in nulls.loc["cka", "null_model"]
    assert "of the same group" in nulls.loc["mutual_knn", "null_model"]


def test_influence_and_angles_agree_with_hidden_states_of_plain_transformers(analysed, model_dir, data_dir):
    loaded = encoders.load_model(model_dir, "cpu")
    train = clips.read_clips(data_dir, "train")
    inputs = loaded.extractor([train.audio(i) for i in range(len(train))], sampling_rate=16_000, return_tensors="pt")
    with torch.inference_mode():
        layers = loaded.model(inputs["input_values"], output_hidden_states=True).hidden_states
    cosine = [torch.cosine_similarity(a, b, dim=-1) for a, b in itertools.pairwise(layers)]
    influence = pd.read_csv(analysed / "block_influence.csv")["block_influence"]
    np.testing.assert_allclose(influence, [1 - float(c.mean()) for c in cosine], atol=1e-5)
    table = pd.read_csv(analysed / "angular_distance.csv").set_index(["first_layer", "n_layers"])["angular_distance"]
    assert len(table) == 6
    whole = torch.cosine_similarity(layers[0], layers[3], dim=-1).arccos().mean() / torch.pi
    assert table[0, 3] == pytest.approx(float(whole), abs=1e-4)


def test_the_linear_residual_is_that_of_its_room(analysed, model_dir, data_dir):
    found = linear_maps.linear_residual(
        encoders.load_model(model_dir, "cpu"), clips.read_clips(data_dir, "train"), 16, 42
    )
    table = pd.read_csv(analysed / "linear_residual.csv").set_index(["first_layer", "n_layers"])
    assert len(table) == 6
    assert table.loc[(1, 2), "linear_residual"] == pytest.approx(found.residual[1, 3], abs=1e-6)
    assert table.loc[(1, 2), "linear_residual_null"] == pytest.approx(found.null[1, 3], abs=1e-6)


def test_recommendation_can_be_read_back(analysed, model_dir):
    said = json.loads((analysed / "recommendation.json").read_text())
    assert said["split"] == "train" and said["model_sha256"] == model_folder.model_input(model_dir).sha256
    evidence = recommendation.evidence_from_recommendation(said)
    influence = pd.read_csv(analysed / "block_influence.csv")
    np.testing.assert_allclose(evidence.block_influence, influence["block_influence"])
    for rule, entry in said["rules"].items():
        for depth, keep in entry["keep"].items():
            lists = keep if isinstance(keep[0], list) else [keep]
            assert all(len(kept) == 3 - int(depth) and kept[0] == 0 for kept in lists), rule
    assert set(said["rules"]) == set(layer_selection.RULES)
    assert set(said["two_block_boundary"]) == {"cka", "mutual_knn", "cosine"}


@pytest.mark.drawn
def test_the_same_seed_gives_the_same_numbers(analysed, model_dir, data_dir, tmp_path):
    assert run(model_dir, data_dir, tmp_path / "again", "--split", "train", "--per_class", "--num_neighbors", 5) == 0
    assert tables_of(tmp_path / "again") == tables_of(analysed)
    images = [path.name for path in analysed.glob("*.png")]
    assert all((tmp_path / "again" / name).read_bytes() == (analysed / name).read_bytes() for name in images)


def test_two_threads_give_the_same_numbers_to_a_millionth(analysed, model_dir, data_dir, tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert run(model_dir, data_dir, tmp_path / "two", "--split", "train", "--num_neighbors", 5) == 0
    finally:
        torch.set_num_threads(before)
    for name in FIGURES[:-1]:
        one, two = (pd.read_csv(folder / f"{name}.csv") for folder in (analysed, tmp_path / "two"))
        pd.testing.assert_frame_equal(one, two, rtol=0, atol=1e-6)


def test_hidden_states_are_taken_again_for_other_metrics(model_dir, data_dir, tmp_path, monkeypatch, caplog):
    out = tmp_path / "out"
    assert run(model_dir, data_dir, out, "--metrics", "cka") == 0
    assert run(model_dir, data_dir, out, "--metrics", "cosine") == 4
    assert "made with --metrics" in caplog.text
    with monkeypatch.context() as patch:
        patch.setattr(predict, "input_batches", lambda *_, **__: pytest.fail("the states were there"))
        assert run(model_dir, data_dir, out, "--metrics", "cosine", "--overwrite") == 0
        assert not (out / "cka.csv").exists() and (out / "cosine.csv").exists()
        assert run(model_dir, data_dir, out, "--metrics", "cosine") == 0, "complete: nothing to do"
    calls = []
    batches = predict.input_batches
    monkeypatch.setattr(predict, "input_batches", lambda *a, **k: calls.append(1) or batches(*a, **k))
    assert run(model_dir, data_dir, out, "--metrics", "cosine", "--recompute") == 0
    assert calls


def test_interrupted_and_resumed_is_the_same(analysed, model_dir, data_dir, tmp_path, monkeypatch):
    out = tmp_path / "out"
    arguments = ("--split", "train", "--per_class", "--num_neighbors", 5)
    monkeypatch.setattr(clip_arrays, "SAVE_EVERY_S", 0.0)
    with monkeypatch.context() as patch:
        batches = predict.input_batches

        def dying(*args, **kwargs):
            for number, batch in enumerate(batches(*args, **kwargs)):
                if number == 2:
                    raise OSError(28, "No space left on device")
                yield batch

        patch.setattr(predict, "input_batches", dying)
        assert run(model_dir, data_dir, out, *arguments) == 3
    assert json.loads((out / "run.json").read_text())["status"] == "failed"
    with monkeypatch.context() as patch:
        patch.setattr(analysis, "graph_convexity", _interrupt)
        assert run(model_dir, data_dir, out, *arguments) == 75
    assert run(model_dir, data_dir, out, *arguments) == 0
    assert tables_of(out) == tables_of(analysed)


def _interrupt(*_):
    raise KeyboardInterrupt


def test_test_clips_are_probed_with_train_clips_only(model_dir, data_dir, tmp_path):
    assert run(model_dir, data_dir, tmp_path / "out", "--metrics", "probe", "--split", "test") == 0
    states, train_states = (np.load(tmp_path / "out" / f"{n}.npy") for n in ("hidden_states", "train_hidden_states"))
    ids, train_ids = (
        pd.read_csv(tmp_path / "out" / f"{n}_clips.csv") for n in ("hidden_states", "train_hidden_states")
    )
    assert set(ids["split"]) == {"test"} and set(train_ids["split"]) == {"train"}
    predicted = fit_and_predict(train_states[1], train_ids["label_id"].to_numpy(), states[1])
    table = pd.read_csv(tmp_path / "out" / "probe.csv")
    assert table.loc[1, "accuracy"] == pytest.approx((predicted == ids["label_id"]).mean())
    assert table.loc[1, "majority"] == ids["label"].value_counts(normalize=True).max()
    assert "majority level 0.333" in (tmp_path / "out" / "log.txt").read_text()


@pytest.mark.parametrize(("split", "is_named"), [("val", False), ("test", True), ("all", True)])
def test_values_of_test_clips_should_not_choose_layers(split, is_named, model_dir, data_dir, tmp_path, caplog):
    assert run(model_dir, data_dir, tmp_path / "out", "--metrics", "cosine", "--split", split) == 0
    assert (f"--split {split} has the test clips: layers that these values choose" in caplog.text) == is_named


def test_the_tables_are_published_without_what_can_be_made_again(model_dir, data_dir, tmp_path):
    results_dir, published = tmp_path / "analysis_results", tmp_path / "published"
    out = results_dir / "birds" / "base" / "seed-1"
    assert run(model_dir, data_dir, out, "--metrics", "cosine") == 0
    where = ["--results_dir", str(results_dir), "--published_dir", str(published)]
    assert publish.main(["--name", "birds", *where]) == 0
    copied = published / "birds" / "base" / "seed-1"
    names = sorted(path.name for path in copied.iterdir())
    assert names == ["cosine.csv", "null_levels.csv", "recommendation.json", "run.json"]
    records.check_outputs(copied, records.read_record(copied))
    assert (copied / "cosine.csv").read_bytes() == (out / "cosine.csv").read_bytes()


# ------------------------------------------------------------------------------------- two models


def test_two_models_are_compared_by_what_no_rotation_changes(model_dir, data_dir, tmp_path, caplog):
    encoders.save_model(small_model("hubert"), tmp_path / "other")
    out = tmp_path / "out"
    assert run(model_dir, data_dir, out, "--compare_to", tmp_path / "other") == 0
    looked, words = tmp_path / "looked", ("--compare_to", tmp_path / "other", "--metrics", "cka")
    assert run(model_dir, data_dir, looked, *words, "--split", "test") == 0
    assert "--split test has the test clips: layers that these values choose have scores on test" in caplog.text
    assert json.loads((looked / "run.json").read_text())["metrics"]["n_earlier_looks_at_test"] == 0
    first, second = (np.load(out / f"{name}.npy") for name in ("hidden_states", "other_hidden_states"))
    matrix = pd.read_csv(out / "cka.csv", index_col="layer").to_numpy()
    np.testing.assert_allclose(matrix, similarity.cka(first, second))
    assert (out / "mutual_knn.png").exists() and not (out / "recommendation.json").exists()
    for metric, reason in (("cosine", "no axes in common"), ("graph_convexity", "it measures one model")):
        assert run(model_dir, data_dir, out, "--compare_to", tmp_path / "other", "--metrics", metric) == 2
        assert reason in caplog.text


def test_a_model_compared_with_itself_is_the_same(model_dir, data_dir, tmp_path):
    assert run(model_dir, data_dir, tmp_path / "out", "--compare_to", model_dir, "--metrics", "cka", "cka_rbf") == 0
    for kind in ("cka", "cka_rbf"):
        matrix = pd.read_csv(tmp_path / "out" / f"{kind}.csv", index_col="layer").to_numpy()
        np.testing.assert_allclose(np.diagonal(matrix), 1, atol=1e-6)


# --------------------------------------------------------------------------------- Euclidean convexity


def test_regions_behind_a_linear_head_are_convex(model_dir, data_dir, tmp_path):
    """Mean and projection are linear: on the last layer of a base wav2vec2 every region is convex."""
    out = tmp_path / "out"
    assert run(model_dir, data_dir, out, "--metrics", "euclidean_convexity", "--num_segments", 4) == 0
    table = pd.read_csv(out / "euclidean_convexity.csv")
    assert table["convexity"].iloc[-1] == 1
    assert table["convexity"].between(0, 1).all() and len(table) == 4
    assert pd.read_csv(out / "euclidean_convexity_per_class.csv")["n_pairs"].max() == 4


@pytest.mark.parametrize("name", ["wavlm", "whisper", "wav2vec2-weighted-layer-sum"])
def test_euclidean_convexity_agrees_with_a_walk_through_the_whole_model(name, data_dir):
    """At layer 0, by hand: the interpolated input of block 0 is put into a forward pass of the whole model."""
    torch.manual_seed(1)
    loaded = small_model(name)
    model = loaded.model
    data = clips.read_clips(data_dir, "test")
    logits = predict.predict(loaded, data, 8)
    layers, _ = euclidean_convexity(loaded, data, logits, 3, 4, 0)
    predicted = logits.argmax(axis=1)
    pairs = sample_pairs(predicted, 3, np.random.default_rng(0))
    parts, block = EncoderParts(model), architectures.blocks_of(model)[0]
    scores = []
    with torch.inference_mode():
        for pair in pairs:
            states = []
            for index in pair:
                inputs = loaded.prepare([data.audio(index)], 16_000)
                states.append(parts.front_end(inputs).hidden_states)
            hits = []
            for share in (0.2, 0.4, 0.6, 0.8):
                mixed = share * states[0] + (1 - share) * states[1]
                hook = block.register_forward_pre_hook(
                    lambda module, args, kwargs, mixed=mixed: ((mixed, *args[1:]), kwargs), with_kwargs=True
                )
                hits.append(int(model(**inputs).logits.argmax()) == predicted[pair[0]])
                hook.remove()
            scores.append(np.mean(hits))
    of_class = pd.Series(scores).groupby(predicted[pairs[:, 0]]).mean()
    assert layers.loc[0, "convexity"] == pytest.approx(of_class.mean(), abs=1e-9)


# ------------------------------------------------------------------------------------------- bad input


def test_base_models_are_analysed_but_not_asked_for_classes(data_dir, tmp_path, caplog):
    out = tmp_path / "out"
    assert run("tiny", data_dir, out, "--metrics", "block_influence", "angular_distance", "--split", "val") == 0
    assert run("tiny", data_dir, tmp_path / "other", "--metrics", "euclidean_convexity") == 3
    assert "was not fine-tuned on the labels" in caplog.text


def test_a_class_with_one_clip_is_named_and_left_out(model_dir, tmp_path, caplog):
    data = write_processed(tmp_path / "data")
    table = clips.read_clips(data, "test").table
    one = clips.read_clips(data, "test", max_clips_per_class=1)
    assert len(one.table) == 3 and len(table) == 18
    args = ("--max_clips_per_class", 1, "--metrics", "graph_convexity", "--num_neighbors", 2)
    assert run(model_dir, data, tmp_path / "out", *args) == 3
    assert "no class has two clips" in caplog.text


def test_classes_alone_in_the_split_are_named(analysed, caplog):
    states = np.random.default_rng(0).standard_normal((2, 12, 4)).astype(np.float32)
    label_ids = np.array([0] * 6 + [1] * 5 + [2])
    table = pd.DataFrame({"label_id": label_ids, "group": np.arange(12)})
    hidden = hidden_states.HiddenStates(states, states, states, table)
    layers, classes = analysis.graph_convexity(hidden, LABELS, 3, 5000, 0)
    assert "1 of 3 classes have fewer than two clips" in caplog.text and "Great Tit" in caplog.text
    assert layers["convexity"].notna().all()
    assert classes.loc[classes["label"] == "Great Tit", "convexity"].isna().all()


def test_a_constant_layer_is_no_silent_number(model_dir, data_dir, tmp_path, caplog):
    loaded = encoders.load_model(model_dir, "cpu")
    with torch.no_grad():
        norm = architectures.blocks_of(loaded.model)[2].final_layer_norm
        norm.weight.zero_()
    encoders.save_model(loaded, tmp_path / "constant")
    out = tmp_path / "out"
    assert run(tmp_path / "constant", data_dir, out, "--split", "train", "--num_neighbors", 5) == 0
    matrix = pd.read_csv(out / "cka.csv", index_col="layer").to_numpy()
    assert np.isnan(matrix[3]).all() and np.isfinite(matrix[:3, :3]).all()
    assert "layer 3" in caplog.text
    said = json.loads((out / "recommendation.json").read_text())
    assert said["evidence"]["cka"][0][3] is None


def test_duplicated_clips_change_nothing_but_their_neighbours(data_dir):
    rng = np.random.default_rng(0)
    states = np.repeat(rng.standard_normal((1, 10, 4)).astype(np.float32), 3, axis=1)
    table = pd.DataFrame({"label_id": np.repeat(np.arange(10) % 2, 3), "group": np.arange(30)})
    hidden = hidden_states.HiddenStates(states, states, states, table)
    layers, _ = analysis.graph_convexity(hidden, LABELS[:2], 4, 5000, 0)
    assert np.isfinite(layers[["convexity", "null_of_groups"]]).all(axis=None)


def test_bad_input_is_refused_with_the_fix(model_dir, data_dir, tmp_path, caplog):
    def refused(code, *words, model=model_dir, data=data_dir):
        caplog.clear()
        assert run(model, data, tmp_path / "out" / str(len(list(tmp_path.glob("out/*")))), *words) == code
        return caplog.text

    assert "nearest neighbours" in refused(3, "--metrics", "graph_convexity", "--num_neighbors", 18)
    told = "--num_neighbors is of use only with the metric graph_convexity or mutual_knn, which is not measured here"
    assert told in refused(2, "--metrics", "cka", "--num_neighbors", 5)
    assert "--num_points is of use only with the metric euclidean_convexity" in refused(2, "--num_points", 5)
    assert "--per_class is of use only with" in refused(2, "--compare_to", model_dir, "--per_class")
    assert "no such folder" in refused(3, data=tmp_path / "nothing")
    assert "cannot be loaded" in refused(3, model=tmp_path / "nothing")
    broken = small_model("wav2vec2")
    with torch.no_grad():
        architectures.blocks_of(broken.model)[0].final_layer_norm.bias[:] = float("nan")
    broken.model.save_pretrained(tmp_path / "broken")
    broken.extractor.save_pretrained(tmp_path / "broken")
    assert "NaN or infinite" in refused(3, model=tmp_path / "broken")
    encoders.save_model(encoders.pruned_copy(small_model("wav2vec2"), []), tmp_path / "bare")
    assert "no transformer block left" in refused(3, model=tmp_path / "bare")
    slow = small_model("wav2vec2")
    slow.extractor.sampling_rate = 8000
    encoders.save_model(slow, tmp_path / "slow")
    assert "sample rates differ" in refused(3, model=tmp_path / "slow")


def test_a_split_without_labels_in_common_cannot_be_probed(caplog):
    rng = np.random.default_rng(0)
    states = rng.standard_normal((2, 12, 4)).astype(np.float32)

    def hidden(label_ids):
        table = pd.DataFrame({"label_id": label_ids, "group": np.arange(12)})
        return hidden_states.HiddenStates(states, states, states, table)

    with pytest.raises(Exception, match="no clip of this split has a label"):
        analysis.probe(hidden([3] * 12), hidden([0, 1] * 6), 0)
    found = analysis.probe(hidden([0, 1, 3] * 4), hidden([0, 1] * 6), 0)
    assert "4 of 12 clips have a label that no train clip has: a probe gets them wrong" in caplog.text
    assert (found["accuracy"] <= 8 / 12).all()


def test_help_shows_the_command(capsys):
    assert stage.main(["--help"]) == 0
    assert "python 04_analysis.py --model_dir" in capsys.readouterr().out
