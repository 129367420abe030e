"""Layer selection: every rule against kept lists made by hand, searches against brute force."""

import itertools
import json
import logging
import math
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from utils.core.errors import InputError, UsageError
from utils.core.files import write_json
from utils.pruning.layer_selection import (
    ITERATIVE,
    METRICS,
    RULES,
    SEARCHES,
    Candidate,
    Evidence,
    all_subsets,
    beam,
    candidates,
    exhaustive,
    greedy,
    iterative,
    missing_evidence,
    n_subsets,
)
from utils.pruning.recommendation import evidence_from_recommendation, recommendation

NAN = math.nan
PROTECTIONS = [frozenset(), frozenset({0}), frozenset({0, 3}), frozenset(range(6))]


def removed(found, n_layers):
    """Return the removed blocks of every candidate, having checked what each says of itself."""
    lists = []
    for candidate in found:
        gone = sorted(set(range(n_layers)) - set(candidate.keep))
        assert list(candidate.keep) == sorted(set(candidate.keep))
        assert candidate.n_removed == len(gone)
        lists.append(gone)
    assert [len(gone) for gone in lists] == sorted(len(gone) for gone in lists)
    return lists


def kept(found):
    return [list(candidate.keep) for candidate in found]


def full_evidence(n_layers, seed=0):
    rng = np.random.default_rng(seed)
    square = (n_layers + 1, n_layers + 1)
    return Evidence(
        block_influence=rng.random(n_layers),
        knn_block_influence=rng.random(n_layers),
        angular_distance=rng.random(square),
        linear_residual=rng.random(square),
        cka=rng.random(square),
        convexity=rng.random(n_layers + 1),
    )


def triangle(n_layers, far, **near):
    """Return a matrix of `far` above the diagonal and NaN elsewhere; ``near=`` pairs such as ``_2_5=0.1``."""
    matrix = np.full((n_layers + 1, n_layers + 1), NAN)
    matrix[np.triu_indices(n_layers + 1, 1)] = far
    for name, value in near.items():
        i, j = (int(part) for part in name.strip("_").split("_"))
        matrix[i, j] = value
    return matrix


def score_table(n_layers, protected, seed):
    """Return an `evaluate` that looks scores up in a random table, and the list of its calls."""
    rng = np.random.default_rng(seed)
    subsets = itertools.chain.from_iterable(
        itertools.combinations(range(n_layers), size) for size in range(n_layers + 1)
    )
    table = {keep: float(rng.integers(0, 30)) for keep in subsets}  # few values, so that there are ties
    calls = []

    def evaluate(keeps):
        calls.append(list(keeps))
        assert len(set(keeps)) == len(keeps)
        assert all(protected <= set(keep) for keep in keeps)
        return [table[keep] for keep in keeps]

    return evaluate, table, calls


# ------------------------------------------------------------------------------------- rules without evidence


def test_rules_are_those_of_the_methods_in_their_order():
    assert list(RULES) == [
        *["forward", "backward", "middle", "single", "alternate", "simple_deep", "random"],
        *["block_influence", "knn_block_influence", "angular_block", "linear_block", "cka_block", "convexity_peak"],
    ]
    assert SEARCHES == ("greedy", "beam", "exhaustive", "race")
    assert {need for rule in RULES.values() for need in rule.needs} == set(METRICS)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("forward", [[0, 2, 3, 4, 5], [0, 3, 4, 5], [0, 4, 5], [0, 5], [0]]),
        ("backward", [[0, 1, 2, 3, 4], [0, 1, 2, 3], [0, 1, 2], [0, 1], [0]]),
        ("middle", [[0, 1, 2, 4, 5], [0, 1, 4, 5], [0, 1, 5], [0, 5]]),
        ("single", [[0, 2, 3, 4, 5], [0, 1, 3, 4, 5], [0, 1, 2, 4, 5], [0, 1, 2, 3, 5], [0, 1, 2, 3, 4]]),
        ("alternate", [[0, 2, 3, 4, 5], [0, 2, 4, 5], [0, 2, 4]]),
        ("simple_deep", [[0, 1, 2, 3, 5], [0, 1, 2, 5], [0, 1, 5], [0, 5]]),
    ],
)
def test_six_blocks_by_hand(rule, expected):
    found = candidates(rule, 6)
    assert kept(found) == expected
    assert {candidate.rule for candidate in found} == {rule}


def test_the_sweeps_of_the_published_study_of_twelve_blocks():
    assert removed(candidates("forward", 12), 12) == [list(range(1, n + 1)) for n in range(1, 12)]
    # Blocks kept before fine-tuning, 11 down to 1.
    assert kept(candidates("backward", 12)) == [list(range(n)) for n in range(11, 0, -1)]
    assert removed(candidates("single", 12), 12) == [[block] for block in range(1, 12)]
    assert removed(candidates("middle", 12), 12) == [
        *[[6], [5, 6], [5, 6, 7], [4, 5, 6, 7], [4, 5, 6, 7, 8], [3, 4, 5, 6, 7, 8]],
        *[[3, 4, 5, 6, 7, 8, 9], list(range(2, 10)), list(range(2, 11)), list(range(1, 11))],
    ]
    assert kept(candidates("alternate", 12))[-1] == [0, 2, 4, 6, 8, 10]
    assert kept(candidates("simple_deep", 12))[3] == [0, 1, 2, 3, 4, 5, 6, 11]


def test_an_odd_number_of_blocks_has_one_at_the_centre():
    assert removed(candidates("middle", 5), 5) == [[2], [2, 3], [1, 2, 3]]


def test_without_protection_block_0_goes_too_and_one_block_stays():
    nobody = frozenset()
    assert kept(candidates("forward", 4, protected=nobody)) == [[1, 2, 3], [2, 3], [3]]
    assert kept(candidates("backward", 4, protected=nobody)) == [[0, 1, 2], [0, 1], [0]]
    assert removed(candidates("single", 4, protected=nobody), 4) == [[0], [1], [2], [3]]
    assert kept(candidates("simple_deep", 4, protected=nobody)) == [[0, 1, 3], [0, 3], [3]]
    assert kept(candidates("middle", 4, protected=nobody)) == [[0, 1, 3], [0, 3]]


def test_protected_blocks_are_passed_over():
    protected = frozenset({0, 3})
    assert removed(candidates("forward", 6, protected=protected), 6) == [[1], [1, 2], [1, 2, 4], [1, 2, 4, 5]]
    assert removed(candidates("middle", 6, protected=protected), 6) == [[2], [2, 4], [1, 2, 4]]
    assert removed(candidates("alternate", 6, protected=protected), 6) == [[1], [1, 5]]


@pytest.mark.parametrize("protected", PROTECTIONS)
@pytest.mark.parametrize("n_layers", [6, 9])
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_keeps_what_is_protected_and_repeats_nothing(rule, n_layers, protected):
    found = candidates(rule, n_layers, full_evidence(n_layers), protected)
    removed(found, n_layers)
    assert all(protected <= set(candidate.keep) for candidate in found)
    assert len({candidate.keep for candidate in found}) == len(found)
    assert rule == "convexity_peak" or all(candidate.keep and candidate.n_removed for candidate in found)


@pytest.mark.parametrize("n_layers", [0, 1])
@pytest.mark.parametrize("protected", [frozenset(), frozenset({0})])
def test_fewer_than_two_blocks_leave_nothing_to_choose(n_layers, protected):
    def never(keeps):
        raise AssertionError("nothing to evaluate")

    assert all(candidates(rule, n_layers, protected=protected) == [] for rule in RULES)
    assert all(iterative(rule, n_layers, never, protected) == [] for rule in ITERATIVE)
    assert all(search(n_layers, never, protected) == [] for search in (greedy, beam, exhaustive))


# ------------------------------------------------------------------------------------------------------ random


def test_random_takes_all_where_there_are_few_and_never_repeats():
    found = candidates("random", 6, n_random=7)
    by_depth = {n: {c.keep for c in found if c.n_removed == n} for n in range(1, 6)}
    assert {n: len(keeps) for n, keeps in by_depth.items()} == {1: 5, 2: 7, 3: 7, 4: 5, 5: 1}
    assert len(found) == 25
    assert by_depth[1] == {tuple(c.keep) for c in candidates("single", 6)}
    # One fewer than there are: all different, all but one.
    assert len({c.keep for c in candidates("random", 6, n_random=9) if c.n_removed == 2}) == 9


def test_random_is_seeded():
    assert candidates("random", 12, seed=3) == candidates("random", 12, seed=3)
    assert candidates("random", 12, seed=3) != candidates("random", 12, seed=4)
    assert Counter(c.n_removed for c in candidates("random", 12)) == {n: 5 for n in range(1, 11)} | {11: 1}


@pytest.mark.parametrize("n_random", [1, 3])
def test_random_is_uniform(n_random):
    n_seeds = 1500
    counts = Counter(
        c.keep
        for seed in range(n_seeds)
        for c in candidates("random", 6, seed=seed, n_random=n_random)
        if c.n_removed == 2
    )
    subsets = [keep for keep in all_subsets(6) if len(keep) == 4]
    assert set(counts) == set(subsets)
    # Draws without repetition vary less than a multinomial, by (N - n) / (N - 1) for n of N subsets.
    correction = (len(subsets) - 1) / (len(subsets) - n_random)
    statistic = stats.chisquare([counts[keep] for keep in subsets]).statistic * correction
    assert stats.chi2.sf(statistic, df=len(subsets) - 1) > 0.001


# --------------------------------------------------------------------------------------- rules with evidence


@pytest.mark.parametrize("rule", ITERATIVE)
def test_influence_removes_in_ascending_order(rule):
    influence = np.array([0.01, 0.5, 0.2, 0.05, 0.3, 0.9])
    evidence = Evidence(**{rule: influence})
    expected = [[3], [2, 3], [2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4, 5]]
    assert removed(candidates(rule, 6, evidence), 6) == expected
    assert removed(candidates(rule, 6, evidence, frozenset()), 6)[:2] == [[0], [0, 3]]


def test_of_equal_influences_the_later_block_goes_and_nan_never(caplog):
    evidence = Evidence(block_influence=np.array([0.1, 0.2, 0.2, NAN, 0.2]))
    with caplog.at_level(logging.WARNING):
        assert removed(candidates("block_influence", 5, evidence), 5) == [[4], [2, 4], [1, 2, 4]]
    assert "block_influence of blocks [3] is not finite" in caplog.text


def test_angular_block_takes_the_run_with_the_nearest_ends():
    # Of 6 blocks: alone block 4; a pair 2-3; three 3-5; of four 1-4 and 2-5 are alike; five 1-5.
    near = {"_4_5": 0.1, "_2_4": 0.2, "_3_6": 0.2, "_1_5": 0.3, "_2_6": 0.3, "_0_2": 0.01, "_0_6": 0.0}
    evidence = Evidence(angular_distance=triangle(6, far=0.5, **near))
    assert removed(candidates("angular_block", 6, evidence), 6) == [
        *[[4], [2, 3], [3, 4, 5], [1, 2, 3, 4], [1, 2, 3, 4, 5]]
    ]
    # With block 0 free the pair 0-1 is nearest; all six never go.
    free = removed(candidates("angular_block", 6, evidence, frozenset()), 6)
    assert free[1] == [0, 1]
    assert len(free) == 5


def test_cka_block_and_linear_block_are_the_same_rule_on_other_numbers():
    distance = full_evidence(6, seed=5).angular_distance
    by_angle = candidates("angular_block", 6, Evidence(angular_distance=distance))
    by_cka = candidates("cka_block", 6, Evidence(cka=1 - distance))
    assert kept(by_angle) == kept(by_cka)
    assert kept(by_angle) == kept(candidates("linear_block", 6, Evidence(linear_residual=distance)))


@pytest.mark.parametrize("rule", ["angular_block", "linear_block", "cka_block"])
def test_runs_agree_with_brute_force_and_skip_nan(rule):
    for seed in range(10):
        rng = np.random.default_rng(seed)
        matrix = np.where(rng.random((9, 9)) < 0.3, NAN, rng.random((9, 9)))
        evidence = Evidence(**{RULES[rule].needs[0]: matrix})
        found = {c.n_removed: c.keep for c in candidates(rule, 8, evidence, frozenset({0, 5}))}
        sign = -1 if rule == "cka_block" else 1
        for n in range(1, 9):
            options = {}
            for start in range(1, 8 - n + 1):
                if not start <= 5 < start + n and not math.isnan(matrix[start, start + n]):
                    options[sign * matrix[start, start + n]] = (*range(start), *range(start + n, 8))
            assert found.get(n) == (options[min(options)] if options else None)


@pytest.mark.parametrize(
    ("convexity", "keep"),
    [
        ([0.10, 0.20, 0.50, 0.49, 0.30, 0.20, 0.10], [0, 1]),  # the best itself comes first
        ([0.10, 0.20, 0.49, 0.50, 0.30, 0.20, 0.10], [0, 1]),  # within the tolerance of the best
        ([0.10, 0.20, 0.47, 0.50, 0.30, 0.20, 0.10], [0, 1, 2]),  # not within it
        ([0.10, 0.20, 0.30, 0.35, 0.40, 0.50, 0.60], [0, 1, 2, 3, 4, 5]),  # the last: nothing goes
        ([0.50, 0.40, 0.30, 0.30, 0.30, 0.20, 0.10], [0]),  # the input: all goes but what is protected
        ([NAN, 0.20, NAN, 0.50, 0.30, NAN, 0.10], [0, 1, 2]),
    ],
)
def test_convexity_peak_truncates(convexity, keep):
    (candidate,) = candidates("convexity_peak", 6, Evidence(convexity=np.array(convexity)))
    assert candidate == Candidate("convexity_peak", tuple(keep), 6 - len(keep))


def test_convexity_peak_with_its_tolerance_and_protection():
    evidence = Evidence(convexity=np.array([0.3, 0.45, 0.5, 0.2]))
    assert kept(candidates("convexity_peak", 3, evidence, convexity_tolerance=0.06)) == [[0]]
    assert kept(candidates("convexity_peak", 3, evidence, convexity_tolerance=0.0)) == [[0, 1]]
    assert kept(candidates("convexity_peak", 3, evidence, frozenset({2}), convexity_tolerance=0.06)) == [[0, 2]]
    assert kept(candidates("convexity_peak", 3, evidence, frozenset(), convexity_tolerance=1.0)) == [[]]


# ------------------------------------------------------------------------------------------------ iterative


@pytest.mark.parametrize("rule", ITERATIVE)
@pytest.mark.parametrize("protected", PROTECTIONS)
def test_iterative_of_fixed_numbers_is_one_shot(rule, protected):
    for seed in range(5):
        influence = np.random.default_rng(seed).integers(0, 5, 7) / 5
        influence[6] = NAN
        one_shot = candidates(rule, 7, Evidence(**{rule: influence}), protected)
        measured = iterative(rule, 7, lambda keep, influence=influence: influence[list(keep)], protected)
        assert kept(measured) == kept(one_shot)
        assert {c.rule for c in measured} <= {f"{rule}_iterative"}


def test_iterative_measures_the_pruned_model():
    # Block 2 is redundant only as long as block 1 is there.
    def measure(keep):
        asked.append(keep)
        return np.array([0.9 if block == 2 and 1 not in keep else 0.1 * block for block in keep])

    asked = []
    found = iterative("block_influence", 4, measure)
    assert removed(found, 4) == [[1], [1, 3], [1, 2, 3]]
    assert asked == [(0, 1, 2, 3), (0, 2, 3), (0, 2)]
    one_shot = candidates("block_influence", 4, Evidence(block_influence=np.array([0, 0.1, 0.2, 0.3])))
    assert removed(one_shot, 4) == [[1], [1, 2], [1, 2, 3]]


def test_iterative_stops_where_nothing_is_known():
    found = iterative("block_influence", 4, lambda keep: np.full(len(keep), NAN if len(keep) < 4 else 0.1))
    assert removed(found, 4) == [[3]]
    with pytest.raises(InputError, match="block_influence is not finite for any block"):
        iterative("block_influence", 4, lambda keep: np.full(len(keep), NAN))
    with pytest.raises(
        UsageError, match="unknown rule 'forward', expected one of block_influence, knn_block_influence"
    ):
        iterative("forward", 4, lambda keep: np.zeros(len(keep)))


# ------------------------------------------------------------------------------------------------- searches


def brute_force_best(table, n_layers, protected, size):
    subsets = [keep for keep in itertools.combinations(range(n_layers), size) if protected <= set(keep)]
    return max(sorted(subsets), key=lambda keep: table[keep])  # max takes the first of equal ones


def brute_force_greedy(table, n_layers, protected):
    keep, path = tuple(range(n_layers)), []
    while len(keep) > max(1, len(protected)):
        # From the last block to the first, so that of equal ones the later goes.
        options = [tuple(b for b in keep if b != gone) for gone in reversed(keep) if gone not in protected]
        keep = max(options, key=lambda option: table[option])
        path.append(keep)
    return path


@pytest.mark.parametrize("protected", [frozenset(), frozenset({0}), frozenset({0, 3})])
def test_searches_agree_with_brute_force_and_rank_as_they_should(protected):
    for seed in range(30):
        evaluate, table, calls = score_table(7, protected, seed)
        every = exhaustive(7, evaluate, protected)
        assert len(calls) == 1
        assert len(calls[0]) == n_subsets(7, protected) - 1  # the whole model is not searched for
        sizes = [7 - c.n_removed for c in every]
        assert sizes == list(range(6, max(1, len(protected)) - 1, -1))
        assert [c.keep for c in every] == [brute_force_best(table, 7, protected, size) for size in sizes]

        calls.clear()
        path = greedy(7, evaluate, protected)
        assert [c.keep for c in path] == brute_force_greedy(table, 7, protected)
        assert [len(keeps) for keeps in calls] == [len(c.keep) + 1 - len(protected) for c in path]
        assert all(len({len(keep) for keep in keeps}) == 1 for keeps in calls)

        assert [c.keep for c in beam(7, evaluate, protected, width=1)] == [c.keep for c in path]
        assert [c.keep for c in beam(7, evaluate, protected, width=100)] == [c.keep for c in every]
        for width in (2, 3, 8):
            found = beam(7, evaluate, protected, width)
            removed(found, 7)
            quality = [[table[c.keep] for c in search] for search in (every, found, path)]
            assert all(e >= b >= g for e, b, g in zip(*quality, strict=True))
        assert {c.rule for c in every} == {"exhaustive"}
        assert {c.rule for c in path} == {"greedy"}
        assert {c.rule for c in found} == {"beam"}


def test_a_beam_follows_what_greedy_drops():
    # The best pair to lack, 1 and 2, is behind a bad first step.
    scores = {(0, 1, 2): 5, (0, 1, 3): 4, (0, 2, 3): 3, (0, 1): 1, (0, 2): 2, (0, 3): 9, (0,): 0}

    def evaluate(keeps):
        return [scores[keep] for keep in keeps]

    assert kept(greedy(4, evaluate)) == [[0, 1, 2], [0, 2], [0]]
    assert kept(beam(4, evaluate, width=2)) == [[0, 1, 2], [0, 3], [0]]


def test_the_beam_keeps_the_list_of_greedy_among_its_own():
    # Removing 3 leads with greedy to (0, 4), the best pair; lists that cannot reach it score more on the way.
    def evaluate(keeps):
        return [scores.get(keep, 0.0) for keep in keeps]

    scores = {
        **{(0, 1, 2, 4): 9, (0, 1, 2, 3): 8, (0, 2, 3, 4): 7},
        **{(0, 1, 4): 5, (0, 1, 3): 6, (0, 2, 3): 6.5, (0, 3, 4): 6},
        **{(0, 4): 4, (0, 3): 3, (0, 2): 2, (0, 1): 1},
    }
    assert kept(greedy(5, evaluate))[1:3] == [[0, 1, 4], [0, 4]]
    assert kept(beam(5, evaluate, width=2))[1:3] == [[0, 2, 3], [0, 4]]


def test_of_equal_scores_the_later_block_goes_and_nan_is_the_worst():
    def level(keeps):
        return [0.5] * len(keeps)

    backward = kept(candidates("backward", 6))
    assert kept(greedy(6, level)) == kept(beam(6, level, width=3)) == kept(exhaustive(6, level)) == backward

    def only_without_one(keeps):
        return [NAN if 1 in keep else -1.0 for keep in keeps]

    for search in (greedy, beam, exhaustive):
        assert removed(search(5, only_without_one), 5)[0] == [1]


def test_exhaustive_of_asked_sizes():
    evaluate, table, calls = score_table(6, frozenset({0}), seed=1)
    found = exhaustive(6, evaluate, sizes=[2, 4, 4])
    assert [c.n_removed for c in found] == [2, 4]
    assert [c.keep for c in found] == [brute_force_best(table, 6, {0}, size) for size in (4, 2)]
    assert len(calls[0]) == math.comb(5, 3) + math.comb(5, 1)
    assert kept(exhaustive(6, evaluate, sizes=[6])) == [list(range(6))]
    assert kept(exhaustive(3, lambda keeps: [0.0] * len(keeps), frozenset(), sizes=[0])) == [[]]


def test_all_subsets_and_their_number():
    assert list(all_subsets(3)) == [(0, 1, 2), (0, 1), (0, 2), (0,)]
    assert list(all_subsets(3, frozenset())) == [(0, 1, 2), (0, 1), (0, 2), (1, 2), (0,), (1,), (2,)]
    assert list(all_subsets(4, frozenset({1}), [2])) == [(0, 1), (1, 2), (1, 3)]
    assert n_subsets(6) == 32
    assert n_subsets(12) == 2048
    assert n_subsets(48) == 2**47
    for protected in PROTECTIONS:
        for sizes in (None, [6], [6, 7, 8, 8]):
            subsets = list(all_subsets(8, protected, sizes))
            assert len(subsets) == len(set(subsets)) == n_subsets(8, protected, sizes)
            assert all(protected <= set(keep) for keep in subsets)


# --------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("rule", [name for name, rule in RULES.items() if rule.needs])
def test_missing_evidence_is_named_with_what_to_do(rule):
    (need,) = RULES[rule].needs
    matrix_or_vector = getattr(full_evidence(6), need)
    nothing = np.full_like(matrix_or_vector, NAN)
    if nothing.ndim == 2:
        np.fill_diagonal(nothing, 1.0)  # which no rule reads
    for evidence in (None, Evidence(), Evidence(**{need: nothing})):
        with pytest.raises(InputError) as error:
            candidates(rule, 6, evidence)
        assert str(error.value) == (
            f"rule {rule} needs {need}, but there is no finite number of it; "
            f"run 04_analysis.py with --metrics {METRICS[need]}"
        )
    assert missing_evidence(rule, Evidence()) == [need]
    assert missing_evidence(rule, full_evidence(6)) == []


@pytest.mark.parametrize("name", METRICS)
def test_evidence_of_another_model_is_refused(name):
    evidence = Evidence(**{name: getattr(full_evidence(7), name)})
    for refuse in (lambda: candidates("forward", 6, evidence), lambda: recommendation(6, evidence)):
        with pytest.raises(InputError, match=rf"^{name} has shape \([78],.*, expected \([67],.*run 04_analysis.py on"):
            refuse()


def test_usage_errors():
    with pytest.raises(UsageError, match="unknown rule 'upwards', expected one of forward, backward"):
        candidates("upwards", 6)
    with pytest.raises(UsageError, match=r"cannot protect blocks \[6\]: this model has 6 blocks, from 0 on"):
        candidates("forward", 6, protected=frozenset({0, 6}))
    with pytest.raises(UsageError, match="width of at least 1, got 0"):
        beam(6, lambda keeps: [0.0] * len(keeps), width=0)
    for size in (0, 7):
        with pytest.raises(
            UsageError, match=f"cannot keep {size} blocks, expected 1 to 6: this model has 6, of which 1"
        ):
            n_subsets(6, sizes=[3, size])


# ------------------------------------------------------------------------------------------- recommendation.json


def test_recommendation_holds_every_rule_whose_evidence_is_there():
    evidence = full_evidence(6)
    made = recommendation(6, evidence, seed=7)
    assert list(made["rules"]) == list(RULES)
    assert made["not_measured"] == {}
    assert made["rules"]["forward"] == {
        "needs": [],
        "keep": {"1": [0, 2, 3, 4, 5], "2": [0, 3, 4, 5], "3": [0, 4, 5], "4": [0, 5], "5": [0]},
    }
    for name, rule in RULES.items():
        listed = made["rules"][name]["keep"]
        flat = [keep for keeps in listed.values() for keep in (keeps if rule.several else [keeps])]
        assert flat == kept(candidates(name, 6, evidence, seed=7))
        assert made["rules"][name]["needs"] == list(rule.needs)


def test_recommendation_says_what_was_not_measured():
    made = recommendation(6, Evidence(knn_block_influence=np.arange(6.0), cka=np.full((7, 7), NAN)))
    assert "knn_block_influence" in made["rules"]
    assert made["not_measured"]["cka_block"] == {"needs": ["cka"], "metrics": [METRICS["cka"]]}
    assert set(made["rules"]) | set(made["not_measured"]) == set(RULES)
    assert set(made["evidence"]) == {"knn_block_influence", "cka"}


def test_recommendation_goes_through_json_and_back(tmp_path):
    evidence = full_evidence(12)
    evidence.angular_distance[np.tril_indices(13)] = NAN
    evidence.convexity[2] = math.inf
    path = tmp_path / "recommendation.json"
    write_json(path, recommendation(12, evidence, seed=1))  # refuses NaN
    text = path.read_text(encoding="utf-8")
    stored = json.loads(text)
    assert stored["n_layers"] == 12
    assert stored["protected"] == [0]
    assert stored["evidence"]["angular_distance"][3][1] is None
    assert stored["evidence"]["convexity"][2] is None
    back = evidence_from_recommendation(stored)
    for name in METRICS:
        expected = getattr(evidence, name)
        np.testing.assert_array_equal(getattr(back, name), np.where(np.isfinite(expected), expected, NAN))
    assert recommendation(12, back, seed=1) == stored
    empty = evidence_from_recommendation(json.loads(json.dumps(recommendation(12, Evidence()))))
    assert all(getattr(empty, name) is None for name in METRICS)


@pytest.mark.parametrize("n_layers", [0, 1])
def test_recommendation_of_hardly_any_blocks(n_layers):
    evidence = full_evidence(n_layers)
    made = recommendation(n_layers, evidence)
    assert all(rule["keep"] == {} for rule in made["rules"].values())
    back = evidence_from_recommendation(json.loads(json.dumps(made)))
    np.testing.assert_array_equal(back.convexity, evidence.convexity)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "holds a list .….; expected an object"),
        (None, "holds null; expected an object"),
        ({}, "n_layers is None"),
        ({"n_layers": True, "evidence": {}}, "n_layers is True"),
        ({"n_layers": -1, "evidence": {}}, "n_layers is -1"),
        ({"n_layers": 2}, "evidence holds null, expected an object"),
        ({"n_layers": 2, "evidence": {"probe": [1, 2]}}, "unknown evidence 'probe', expected block_influence"),
        (
            {"n_layers": 2, "evidence": {"block_influence": [1, "2"]}},
            r"block_influence is not an array .* shape \(2,\)",
        ),
        ({"n_layers": 2, "evidence": {"block_influence": [1, True]}}, "block_influence is not an array"),
        ({"n_layers": 2, "evidence": {"block_influence": [1, {}]}}, "block_influence is not an array"),
        ({"n_layers": 2, "evidence": {"block_influence": [1, 10**400]}}, "block_influence is not an array"),
        ({"n_layers": 2, "evidence": {"cka": [[1, 2, 3], [1, 2], [3]]}}, r"cka is not an array .* shape \(3, 3\)"),
        ({"n_layers": 2, "evidence": {"block_influence": None}}, r"shape \(\), expected \(2,\)"),
        ({"n_layers": 2, "evidence": {"convexity": [1, 2]}}, r"convexity has shape \(2,\), expected \(3,\)"),
    ],
)
def test_a_malformed_recommendation_is_refused(value, message):
    with pytest.raises(InputError, match=message) as error:
        evidence_from_recommendation(value)
    assert "04_analysis.py" in str(error.value)
