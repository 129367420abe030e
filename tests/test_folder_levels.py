"""Which level of folders is the label: layouts that users have, each with the reading that is right."""

from pathlib import Path

import pytest

from utils.core.errors import InputError
from utils.data.folder_levels import find_label_level

RAW = Path("raw")
SPECIES = ("Turdus_merula", "Parus_major", "Corvus_corax")
COMMON = ("Great Tit", "Blackbird", "Rook")
PEOPLE = ("Lars Lachmann", "Marc Anderson", "Ada Lovelace")


def tree(*levels, n_files=2):
    """Return the folders of `n_files` files in every combination of the names of the levels."""
    folders = [()]
    for names in levels:
        folders = [(*above, name) for above in folders for name in names]
    return folders * n_files


def refusal(folders):
    with pytest.raises(InputError) as error:
        find_label_level(folders, RAW)
    return str(error.value)


@pytest.mark.parametrize(
    ("uppers", "lowers", "words"),
    [
        (("train", "validation", "test"), COMMON, "named after splits"),
        (("Train", "Val"), COMMON, "named after splits"),
        (("train_audio", "test_soundscapes", "train_soundscapes"), COMMON, "named after splits"),
        (("training set", "testing set"), COMMON, "named after splits"),
        (("fold1", "fold2", "fold3"), COMMON, "named after parts"),
        (("SiteA", "SiteB"), COMMON, "named after parts"),
        (("2021", "2022"), COMMON, "named after parts"),
        (("2021-05-01", "2021-05-02"), COMMON, "named after parts"),
        (PEOPLE, SPECIES, "named like species"),
        (("Corvidae", "Turdidae"), SPECIES, "named like species"),
        (("Müllers Wald", "Am See"), SPECIES, "named like species"),
        (PEOPLE, COMMON, "folders of the same name"),
        (COMMON, PEOPLE, "folders of the same name"),
    ],
)
def test_what_may_be_another_level_is_refused_with_the_flag_that_decides(uppers, lowers, words):
    message = refusal(tree(uppers, lowers))
    assert words in message
    assert "--label_level 2" in message
    assert lowers[0] in message and uppers[0] in message


@pytest.mark.parametrize(
    ("uppers", "lowers"),
    [
        (SPECIES, ("song", "call")),
        (COMMON, ("song", "call", "alarm call")),
        (COMMON, ("Flight call", "Begging call")),
        (COMMON, ("male", "female")),
        (COMMON, ("2021", "2022")),
        (COMMON, ("A", "B", "C")),
        (COMMON, ("wav", "mp3")),
        (COMMON, ("xeno-canto",)),
        (SPECIES, PEOPLE),
        (SPECIES, ("SiteA", "SiteB")),
        (("Turdus merula_sound", "Parus major_sound"), PEOPLE),
    ],
)
def test_folders_below_the_species_are_no_labels(uppers, lowers):
    assert find_label_level(tree(uppers, lowers), RAW) == 1


def test_recordists_below_species_are_mentioned(caplog):
    find_label_level(tree(SPECIES, PEOPLE), RAW)
    assert "--recordist_level 2" in caplog.text


def test_a_recording_a_folder_is_no_second_level():
    folders = [(species, f"{species}-{number}") for species in COMMON for number in range(9)]
    assert find_label_level(folders, RAW) == 1


def test_two_sites_that_share_some_species():
    partly = [*tree(["North", "South"], COMMON[:1]), ("North", COMMON[1]), ("South", COMMON[2])]
    assert "folders of the same name (Great Tit)" in refusal(partly)
    # With names of species no species need be at both.
    assert "named like species" in refusal([("North", SPECIES[0]), ("South", SPECIES[1]), ("South", SPECIES[2])])


def test_a_few_equal_names_below_are_no_evidence():
    folders = [(name,) for name in COMMON for _ in range(20)]
    assert find_label_level([*folders, (COMMON[0], "new"), (COMMON[1], "new")], RAW) == 1


def test_splits_without_species_below_need_a_table():
    message = refusal(tree(["train", "test"]))
    assert "--metadata" in message and "--label_level 1" in message


def test_a_single_split_is_a_wrapper():
    assert find_label_level(tree(["train"], COMMON), RAW) == 2
    assert (
        find_label_level(
            tree(
                [
                    "birds",
                ],
                ["train"],
                SPECIES,
            ),
            RAW,
        )
        == 3
    )


def test_splits_below_a_wrapper_count_their_level_from_the_top():
    message = refusal(tree(["dataset"], ["train", "test"], COMMON))
    assert "--label_level 3" in message and str(RAW / "dataset") in message


def test_a_species_nested_one_deeper_is_named(caplog):
    folders = [*tree(SPECIES), ("thrushes", "Turdus_philomelos"), ("thrushes", "Turdus_iliacus")]
    assert find_label_level(folders, RAW) == 1
    assert "the folder thrushes is treated as a species" in caplog.text


def test_sites_as_labels_are_taken_with_a_word(caplog):
    assert find_label_level(tree(["SiteA", "SiteB"]), RAW) == 1
    assert "named after parts of a collection, not after species" in caplog.text


@pytest.mark.parametrize("names", [("1", "2", "3"), ("amerob", "aldfly"), ("song", "call"), ("bird", "nobird")])
def test_labels_of_other_kinds_are_taken(names, caplog):
    assert find_label_level(tree(names), RAW) == 1
    assert not [record for record in caplog.records if record.levelname != "INFO"]
