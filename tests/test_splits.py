"""Splits: what stays together, who is in which split, and how near the shares come to the fractions."""

import itertools
import random
from collections import Counter, defaultdict

import pytest

from utils.core.errors import UsageError
from utils.data.splits import (
    FOLDS,
    SPLIT_BY,
    SPLITS,
    Heard,
    assign_folds,
    assign_splits,
    group_keys,
    merge_groups,
    split_in_fold,
    who_was_heard,
)

FRACTIONS = {"train": 0.7, "val": 0.15, "test": 0.15}


def item(**changed):
    one = {
        "label": "Rook",
        "recordist": "Ada",
        "recording_id": "XC1",
        "audio_sha256": "aa",
        "clip_id": "XC1:0",
    }
    return one | changed


def together(split_by, *items):
    """Say whether all items end in one group."""
    return len(set(merge_groups([group_keys(split_by, **i) for i in items]))) == 1


def place(groups, labels, weights, seed=0, val=0.15, test=0.15):
    return assign_splits(groups, labels, weights, val, test, seed)


def shares_by_label(split_of, groups, labels, weights):
    shares = defaultdict(Counter)
    for group, label, weight in zip(groups, labels, weights, strict=True):
        shares[label][split_of[group]] += weight
        shares[None][split_of[group]] += weight
    return {label: {s: n / c.total() for s, n in c.items()} for label, c in shares.items()}


def single_label_case(rng, n_labels, max_groups, max_weight):
    groups, labels, weights = [], [], []
    for label in range(n_labels):
        for group in range(rng.randint(1, max_groups)):
            for _ in range(rng.randint(1, 3)):
                groups.append(f"g{group}|l{label}")
                labels.append(f"l{label}")
                weights.append(rng.randint(1, max_weight))
    return groups, labels, weights


# ---------------------------------------------------------------------------------------- what stays together


@pytest.mark.parametrize(
    ("changed", "kept_together"),
    [
        ({"clip_id": "XC1:1"}, {"recordist", "recordist_and_species", "recording"}),
        (
            {"recording_id": "XC2", "clip_id": "XC2:0", "audio_sha256": "bb"},
            {"recordist", "recordist_and_species"},
        ),
        (
            {"label": "Jay", "recording_id": "XC2", "clip_id": "XC2:0", "audio_sha256": "bb"},
            {"recordist"},
        ),
        ({"recordist": "Bo", "recording_id": "XC2", "clip_id": "XC2:0"}, set(SPLIT_BY)),  # equal audio
        ({"recordist": "Bo", "recording_id": "XC2", "clip_id": "XC2:1"}, set(SPLIT_BY) - {"clip"}),
        ({"recordist": "Bo", "recording_id": "XC2", "clip_id": "XC2:0", "audio_sha256": "bb"}, set()),
        ({"recordist": None, "recording_id": "XC2", "clip_id": "XC2:0", "audio_sha256": "bb"}, set()),
        ({"recordist": None, "clip_id": "XC1:1"}, {"recordist", "recordist_and_species", "recording"}),
    ],
)
def test_what_two_items_must_share_to_stay_together(changed, kept_together):
    assert {s for s in SPLIT_BY if together(s, item(), item(**changed))} == kept_together


def test_pieces_of_one_origin_stay_together_under_several_labels():
    one = item(origin="20250601_063000")
    other = item(label="Jay", recordist=None, recording_id="Jay/2", audio_sha256="bb", clip_id="Jay/2:0")
    assert {s for s in SPLIT_BY if together(s, one, other | {"origin": "20250601_063000"})} == set(SPLIT_BY) - {"clip"}
    assert not any(together(s, one, other | {"origin": "20250601_070000"}) for s in SPLIT_BY)


@pytest.mark.parametrize("split_by", ["recordist", "recordist_and_species"])
def test_recordings_of_unknown_recordists_are_no_group(split_by):
    one = item(recordist=None)
    other = item(recordist=None, recording_id="XC2", clip_id="XC2:0", audio_sha256="bb")
    assert not together(split_by, one, other)


def test_group_names_can_be_read():
    names = {s: merge_groups([group_keys(s, **item())])[0] for s in SPLIT_BY}
    assert names == {"recordist": "Ada", "recordist_and_species": "Ada|Rook", "recording": "XC1", "clip": "XC1:0"}
    assert merge_groups([group_keys("recordist", **item(recordist=None))]) == ["XC1"]


def test_equal_audio_joins_two_recordists():
    keys = [group_keys("recordist", **item(recordist=r, recording_id=i)) for r, i in [("Bo", "XC2"), ("Ada", "XC1")]]
    assert merge_groups(keys) == ["Ada", "Ada"]


def test_merge_groups_agrees_with_repeated_merging():
    rng = random.Random(1)
    for _ in range(200):
        keys = [[f"k{rng.randrange(30)}" for _ in range(rng.randint(1, 3))] for _ in range(rng.randint(1, 20))]
        components = [set(k) for k in keys]
        for _ in keys:
            components = [set().union(*(other for other in components if one & other)) for one in components]
        names = merge_groups(keys)
        for one, other in itertools.combinations(range(len(keys)), 2):
            assert (names[one] == names[other]) == (components[one] == components[other])
        order = rng.sample(range(len(keys)), len(keys))
        assert merge_groups([keys[i] for i in order]) == [names[i] for i in order]


def test_merge_groups_takes_long_chains():
    assert set(merge_groups([[f"{i:06d}", f"{i + 1:06d}"] for i in range(100_000)])) == {"000000"}


# --------------------------------------------------------------------------------------------------- coverage


def test_every_label_is_in_every_split_wherever_it_has_three_groups():
    rng = random.Random(2)
    for case in range(60):
        groups, labels, weights = single_label_case(rng, rng.randint(1, 12), 9, rng.choice([1, 5, 200]))
        split_of, warnings = place(groups, labels, weights, seed=case)
        n_groups = {label: len({g for g, one in zip(groups, labels, strict=True) if one == label}) for label in labels}
        for label, shares in shares_by_label(split_of, groups, labels, weights).items():
            if label is None:
                continue
            wanted = {1: {"train"}, 2: {"train", "test"}}.get(n_groups[label], {"train", "val", "test"})
            assert set(shares) == wanted
            is_named = any(label in text.partition(": ")[2].split(", ") for text in warnings)
            assert is_named == (n_groups[label] < 3)


def test_labels_with_few_groups_are_warned_about_by_name():
    groups = ["a1", "b1", "b2", "c1", "c2", "c3"]
    split_of, warnings = place(groups, [g[0] for g in groups], [1] * 6)
    assert split_of["a1"] == "train"
    assert {split_of["b1"], split_of["b2"]} == {"train", "test"}
    assert {split_of["c1"], split_of["c2"], split_of["c3"]} == {"train", "val", "test"}
    assert warnings == [
        "labels with 1 group are not in val and test: a",
        "labels with 2 groups are not in val: b",
    ]


def test_an_empty_split_is_warned_about():
    split_of, warnings = place(["a1", "b1", "b2"], ["a", "b", "b"], [1, 1, 1])
    assert "val" not in split_of.values()
    assert warnings[-1] == "the split val is empty: there are too few groups"


@pytest.mark.parametrize(
    ("val", "test", "expected"),
    [(0, 0, {"train"}), (0.2, 0, {"train", "val"}), (0, 0.2, {"train", "test"})],
)
def test_a_fraction_of_zero_leaves_the_split_empty(val, test, expected):
    groups = [f"{label}{i}" for label in "abc" for i in range(6)]
    split_of, warnings = place(groups, [g[0] for g in groups], [1] * 18, val=val, test=test)
    assert set(split_of.values()) == expected
    assert warnings == []


def test_without_a_test_split_the_second_group_goes_to_val():
    split_of, warnings = place(["a1", "a2"], ["a", "a"], [1, 1], val=0.2, test=0)
    assert set(split_of.values()) == {"train", "val"}
    assert warnings == []


def test_groups_that_span_labels_cover_every_split_where_a_division_exists():
    """Hide a division that covers everything among random groups, and ask for one."""
    rng = random.Random(3)
    n_found = 0
    for case in range(30):
        n_labels = rng.randint(4, 10)
        groups, labels = [], []
        for split in range(3):
            for label in range(n_labels):
                groups.append(f"r{split}-{rng.randrange(3)}")  # at most three recordists a split
                labels.append(f"l{label}")
        split_of, warnings = place(groups, labels, [rng.randint(1, 9) for _ in groups], seed=case)
        covered = {(split_of[g], label) for g, label in zip(groups, labels, strict=True)}
        assert (len(covered) == 3 * n_labels) == (warnings == [])
        n_found += warnings == []
    assert n_found >= 28


def test_an_impossible_cover_is_warned_about_by_name():
    # Label a is nowhere but with its own unique label, so wherever it is tested another is never trained on.
    groups = ["r1", "r1", "r2", "r2", "r3", "r3"]
    split_of, warnings = place(groups, ["a", "x", "a", "y", "a", "z"], [1] * 6)
    assert set(split_of.values()) == {"train"}
    assert any("other labels" in text and text.endswith(": a") for text in warnings)


# ----------------------------------------------------------------------------------------------------- shares


def missing_and_distance(place_of, content, n_labels):
    """Cost of a division, written out: what `assign_splits` says that it minimises."""
    weights = [
        [sum(c.get(label, 0) for c, s in zip(content, place_of, strict=True) if s == split) for split in FRACTIONS]
        for label in range(n_labels)
    ]
    weights.append([sum(column) for column in zip(*weights, strict=True)])
    total = sum(weights[-1])
    distance = sum(
        (w - f * sum(row)) ** 2 / (total * sum(row))
        for row in weights
        for w, f in zip(row, FRACTIONS.values(), strict=True)
    )
    missing = 0
    for label in range(n_labels):
        n_groups = sum(label in c for c in content)
        for split, weight in list({"train": 4, "test": 2, "val": 1}.items())[:n_groups]:
            if not any(label in c and s == split for c, s in zip(content, place_of, strict=True)):
                missing += weight
    return missing, distance


@pytest.mark.parametrize("spans_labels", [False, True])
def test_small_cases_are_as_good_as_the_best_of_all_divisions(spans_labels):
    rng = random.Random(4)
    for case in range(25):
        n_groups, n_labels = rng.randint(1, 7), rng.randint(1, 3)
        content = []
        for _ in range(n_groups):
            own = rng.sample(range(n_labels), rng.randint(1, n_labels) if spans_labels else 1)
            content.append({label: rng.randint(1, 20) for label in own})
        rows = [(f"g{i}", str(label), w) for i, c in enumerate(content) for label, w in c.items()]
        n_seen = len({label for _, label, _ in rows})
        names = {label: i for i, label in enumerate(sorted({label for _, label, _ in rows}))}
        content = [{names[str(label)]: w for label, w in c.items()} for c in content]
        split_of, _ = place(*zip(*rows, strict=True), seed=case)
        got = missing_and_distance([split_of[f"g{i}"] for i in range(n_groups)], content, n_seen)
        divisions = itertools.product(FRACTIONS, repeat=n_groups)
        best = min(missing_and_distance(division, content, n_seen) for division in divisions)
        assert got[0] == best[0]
        assert got[1] <= best[1] * 1.05 + 1e-9


def test_shares_come_near_the_fractions_in_large_cases():
    rng = random.Random(5)
    groups, labels, weights = [], [], []
    for label in range(50):
        for group in range(rng.randint(20, 80)):
            groups.append(f"g{label}-{group}")
            labels.append(f"l{label}")
            weights.append(rng.choice([1, 1, 2, 3, 8, 30]))
    split_of, warnings = place(groups, labels, weights)
    assert warnings == []
    for label, shares in shares_by_label(split_of, groups, labels, weights).items():
        own = [w for one, w in zip(labels, weights, strict=True) if label in (one, None)]
        # No division can promise less than half of the heaviest group.
        tolerance = max(0.5 * max(own) / sum(own), 0.005)
        for split, fraction in FRACTIONS.items():
            assert abs(shares[split] - fraction) < tolerance


def test_the_whole_is_balanced_where_labels_leave_a_choice():
    # Ten equal groups a label: one or two of them in val, so the sum decides which.
    groups = [f"{label}-{i}" for label in range(20) for i in range(10)]
    split_of, _ = place(groups, [g.partition("-")[0] for g in groups], [1] * 200)
    counts = Counter(split_of.values())
    assert counts["val"] == counts["test"] == 30


def test_ten_thousand_groups_and_a_thousand_labels():
    rng = random.Random(6)
    groups = [f"r{i}" for i in range(10_000)]
    labels = [f"l{i % 1000}" for i in range(10_000)]
    weights = [rng.randint(1, 50) for _ in groups]
    split_of, warnings = place(groups, labels, weights)
    shares = shares_by_label(split_of, groups, labels, weights)
    assert warnings == []
    assert all(set(s) == set(FRACTIONS) for s in shares.values())
    assert shares[None]["test"] == pytest.approx(0.15, abs=0.01)


# ------------------------------------------------------------------------------------------------ determinism


def test_the_result_depends_on_the_seed_and_not_on_the_order():
    rng = random.Random(7)
    rows = list(zip(*single_label_case(rng, 8, 9, 20), strict=True))
    first = place(*zip(*rows, strict=True), seed=1)
    for _ in range(3):
        rng.shuffle(rows)
        assert place(*zip(*rows, strict=True), seed=1) == first
    assert any(place(*zip(*rows, strict=True), seed=seed) != first for seed in (2, 3, 4))


def test_over_many_seeds_every_group_is_tested():
    groups = [f"g{i}" for i in range(12)]
    tested = Counter()
    for seed in range(60):
        split_of, _ = place(groups, ["a"] * 12, [5] * 12, seed=seed)
        tested.update(group for group, split in split_of.items() if split == "test")
    assert set(tested) == set(groups)


# ----------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(("val", "test"), [(0.5, 0.5), (0.7, 0.6), (0.3, 0.7)])
def test_fractions_that_leave_nothing_to_train_on_are_refused(val, test):
    with pytest.raises(UsageError, match=r"--val_fraction .* leave nothing to train on"):
        place(["a"], ["a"], [1], val=val, test=test)


def test_weightless_items_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        place(["a", "b"], ["a", "a"], [1, 0])


# ------------------------------------------------------------------------------------------------------ folds


def random_recordists(rng, n_labels, n_recordists):
    """Return groups that span labels: some large, some of one recording."""
    groups, labels, weights = [], [], []
    for recordist in range(n_recordists):
        for label in rng.sample(range(n_labels), rng.randint(1, min(4, n_labels))):
            groups.append(f"r{recordist:03d}")
            labels.append(f"l{label}")
            weights.append(rng.choice([1, 2, 3, 30]))
    return groups, labels, weights


def test_the_fold_after_the_tested_one_is_val():
    splits = {fold: [split_in_fold(name, fold, 4) for name in ("train", *FOLDS[:4])] for fold in (1, 4)}
    assert splits == {
        1: ["train", "test", "val", "train", "train"],
        4: ["train", "val", "train", "train", "test"],
    }


@pytest.mark.parametrize("n_folds", [3, 5, 8])
def test_each_group_is_tested_once_and_each_tested_label_is_trained_on(n_folds):
    rng = random.Random(n_folds)
    for case in range(15):
        groups, labels, weights = random_recordists(rng, rng.randint(2, 12), rng.randint(3 * n_folds, 60))
        fold_of, warnings = assign_folds(groups, labels, weights, n_folds, seed=case)
        assert set(fold_of) == set(groups)
        assert set(FOLDS[:n_folds]) <= set(fold_of.values()) <= {"train", *FOLDS[:n_folds]}
        never_tested = {group for group, name in fold_of.items() if name == "train"}
        assert bool(never_tested) == bool(warnings)
        for fold in range(1, n_folds + 1):
            seen = defaultdict(set)
            for group, label in zip(groups, labels, strict=True):
                seen[split_in_fold(fold_of[group], fold, n_folds)].add(label)
            assert seen["test"] <= seen["train"]


def test_folds_are_stratified_and_large_groups_are_tested_too():
    groups = [f"{label}{i}" for label in "abcd" for i in range(10)]
    labels = [group[0] for group in groups]
    weights = [40 if group.endswith(("0", "5")) else 4 for group in groups]
    fold_of, warnings = assign_folds(groups, labels, weights, 5, seed=1)
    assert warnings == []
    assert "train" not in fold_of.values(), "a group that is always trained on is never tested"
    n_of = Counter()
    for group, label, weight in zip(groups, labels, weights, strict=True):
        n_of[fold_of[group], label] += weight
    for label in "abcd":  # two groups of 40 clips and eight of 4: no better division exists
        assert sorted(n_of[name, label] for name in FOLDS[:5]) in ([8, 8, 16, 40, 40], [8, 12, 12, 40, 40])
    totals = Counter()
    for (name, _), n in n_of.items():
        totals[name] += n
    assert max(totals.values()) - min(totals.values()) <= 16  # of 448 clips in 5 folds, eight groups of 40 among them


def test_a_label_of_one_group_is_trained_on_in_each_fold_and_named():
    groups = [f"a{i}" for i in range(10)] + ["b0"]
    fold_of, warnings = assign_folds(groups, [group[0] for group in groups], [2] * 11, 5, seed=0)
    assert [group for group, name in fold_of.items() if name == "train"] == ["b0"]
    assert warnings == [
        "labels whose recordings are all of one group are trained on in each fold and never tested: b (2 clips)"
    ]


def test_two_groups_of_a_label_are_not_in_neighbouring_folds():
    for seed in range(10):
        groups = [f"a{i}" for i in range(10)] + ["b0", "b1", "c0", "c1"]
        fold_of, warnings = assign_folds(groups, [group[0] for group in groups], [2] * 14, 5, seed)
        assert warnings == []
        for label in "bc":
            one, other = (FOLDS.index(fold_of[f"{label}{i}"]) for i in range(2))
            assert (one - other) % 5 in (2, 3)


def test_with_three_folds_a_label_of_two_groups_keeps_one_in_train():
    groups = [f"a{i}" for i in range(9)] + ["b0", "b1"]
    fold_of, warnings = assign_folds(groups, [group[0] for group in groups], [2] * 9 + [5, 3], 3, seed=0)
    assert fold_of["b1"] == "train"
    assert fold_of["b0"] in FOLDS
    assert warnings == [
        "labels with too few groups for training in each fold: their smallest group is never tested: b (3 clips)"
    ]


def test_folds_depend_on_the_items_and_the_seed_alone():
    rng = random.Random(5)
    items = list(zip(*random_recordists(rng, 8, 40), strict=True))
    expected = assign_folds(*zip(*items, strict=True), 5, 3)
    for _ in range(3):
        assert assign_folds(*zip(*rng.sample(items, len(items)), strict=True), 5, 3) == expected
    assert assign_folds(*zip(*items, strict=True), 5, 4) != expected


def test_more_folds_than_groups_are_refused():
    with pytest.raises(UsageError, match="--folds 5: there are only 4 groups"):
        assign_folds(["a", "b", "c", "d"], ["x"] * 4, [1] * 4, 5, 0)
    with pytest.raises(
        UsageError, match="only 2 groups; add recordings by more recordists"
    ):  # no fewer folds are allowed
        assign_folds(["a", "b"], ["x", "x"], [1, 1], 3, seed=0)
    with pytest.raises(UsageError, match="nothing is left for fold-"):
        assign_folds(["a", "b", "c"], ["x", "y", "z"], [1] * 3, 3, 0)


# --------------------------------------------------------------------------------------------- who was heard


def test_who_was_heard_counts_clips_by_hand():
    items = [
        ("train", ["Rook"], ["Ada"], 9),
        ("train", ["Jay"], ["Bo"], 9),
        ("val", ["Rook"], ["Cy"], 9),
        ("test", ["Rook"], ["Ada"], 1),  # the same species
        ("test", ["Rook"], ["Bo"], 2),  # another species
        ("test", ["Rook"], ["Bo", "Ada"], 4),  # recorded by two, of whom one is heard with this species
        ("test", ["Rook"], ["Cy"], 8),  # heard in val alone
        ("test", ["Jay"], [], 16),
    ]
    several = [*items, ("test", ["Jay", "Rook"], ["Bo"], 32), ("test", [], ["Bo"], 64), ("train", [], ["Di"], 9)]
    assert who_was_heard(several) == Heard(n_clips=127, same_species=37, other_species=66, unknown=16)
    heard = who_was_heard(items)
    assert heard == Heard(n_clips=31, same_species=5, other_species=2, unknown=16)
    assert who_was_heard(items, "val") == Heard(n_clips=9)
    assert str(heard) == (
        "recordist heard in train with the same species 5 (16%), with another species 2 (6%), unknown 16 (52%)"
    )
    assert heard + heard == Heard(62, 10, 4, 32)


def test_the_split_by_recordist_lets_nobody_be_heard():
    rng = random.Random(8)
    groups, labels, weights = random_recordists(rng, 10, 60)
    split_of, _ = place(groups, labels, weights)
    items = [(split_of[g], [label], [g], w) for g, label, w in zip(groups, labels, weights, strict=True)]
    for split in SPLITS[1:]:
        heard = who_was_heard(items, split)
        assert heard.n_clips > 0
        assert (heard.same_species, heard.other_species) == (0, 0)


def test_no_label_is_tested_without_training_to_cover_other_labels():
    # Only Ada has recorded a wren. All the others could be tested if she were: she is trained on nevertheless.
    groups, labels = ["Ada"], ["Wren"]
    for label in "bcdefgh":
        groups += ["Ada", f"only-{label}"]
        labels += [label, label]
    split_of, warnings = place(groups, labels, [3] * len(groups), val=0, test=0.3)
    assert split_of["Ada"] == "train"
    assert "labels with 1 group are not in test: Wren" in warnings
