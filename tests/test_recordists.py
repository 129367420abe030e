"""One key a person, whatever the spelling; unknown people; names that are near; the user's word on who is who."""

import itertools
import random
import unicodedata

import pytest

from utils.core.errors import InputError
from utils.data.recordists import is_unknown, one_spelling, read_same_recordist, recordist_key, similar_names


@pytest.mark.parametrize(
    "spellings",
    [
        [
            "Lars Lachmann",
            "LARS LACHMANN",
            "lars  lachmann",
            " Lars\u00a0Lachmann ",
            "Lachmann, Lars",
            "Lars Lachmann.",
        ],
        ["Jérôme Fischer", "Jerome Fischer", unicodedata.normalize("NFD", "Jérôme Fischer"), "Fischer, Jérôme"],
        ["José Nuñez", "Jose Nunez", "Jos\u200bé Nuñez", "José\u00ad Nuñez", "\ufeffJosé Nuñez"],
        ["Jean-Paul Dupont", "Jean Paul Dupont", "Jean‐Paul Dupont", "Jean – Paul Dupont"],
        ["Seán O'Brien", "Sean O’Brien", "Sean OBrien", "Seán Oʼbrien"],
        ["J. P. Dupont", "J P Dupont", "J.P. Dupont"],
        ["Jørgen Løvenskiold", "Jorgen Lovenskiold"],
        ["Łukasz Wójcik", "Lukasz Wojcik"],
        ["Hans Groß", "Hans Gross", "HANS GROSS"],
        ["Ｌａｒｓ Lachmann", "Lars Lachmann"],  # letters of full width
        ["Андрей Ёлкин", "андреи елкин"],
        ["李 雷", "李\u3000雷"],
    ],
)
def test_spellings_of_one_person_share_a_key(spellings):
    assert len({recordist_key(name) for name in spellings}) == 1
    assert recordist_key(spellings[0])


def test_different_people_have_different_keys():
    people = [
        *("Lars Lachmann", "L. Lachmann", "Lars Lachman", "Lars Bachmann", "Hans Müller", "Hans Mueller"),
        *(
            "Fischer Jerome",
            "Jerome Fischer",
            "李雷",
            "王雷",
            "かすみ",
            "がすみ",
            "किरण",
            "करण",
            "محمد",
            "Smith, Jr.",
            "Jr. Smith",
        ),
        *("Ada Lovelace & Bo Ek", "Ada Lovelace", "Bo Ek", "david m", "David W", "Team 1", "Team 2"),
    ]
    assert len({recordist_key(name) for name in people}) == len(people)
    assert all(recordist_key(name) for name in people)


def test_keys_are_stable_under_their_own_spelling():
    rng = random.Random(1)
    letters = "abcÀéÑøłßıΣς'’-. ,\u200b\u0301李きड़क"
    for _ in range(2000):
        name = "".join(rng.choice(letters) for _ in range(rng.randint(0, 12)))
        key = recordist_key(name)
        assert recordist_key(key) == key
        assert recordist_key(f"  {name} ") == key
        assert recordist_key(unicodedata.normalize("NFD", name)) == key


@pytest.mark.parametrize(
    "name",
    [
        *("", " ", "-", "?", "...", "—", "n/a", "N.A.", "NaN", "none", "NULL", "\u200b", "N. N.", "not specified"),
        *(
            "Unknown",
            "unknown recordist",
            "(unknown)",
            "UNKNOWN USER",
            "Recordist unknown",
            "anon.",
            "Anon",
            "Anonymous",
        ),
        *("Various", "various recordists", "Various Authors", "Unbekannt", "anónimo", "inconnu"),
    ],
)
def test_nobody_is_unknown(name):
    assert is_unknown(name)


@pytest.mark.parametrize(
    "name", ["Ada", "Anon Smith", "Na Li", "Nan Goldin", "李雷", "★", "Norbert Null", "Various Birds Ltd"]
)
def test_people_are_not_unknown(name):
    assert not is_unknown(name)


def test_the_commonest_spelling_stands_for_a_person(caplog):
    names = ["ADA LOVELACE"] + ["Ada Lovelace"] * 2 + ["Lovelace, Ada"] + ["Bo Ek"]
    with caplog.at_level("INFO"):
        found = one_spelling(names)
    assert found == {
        "ADA LOVELACE": "Ada Lovelace",
        "Ada Lovelace": "Ada Lovelace",
        "Lovelace, Ada": "Ada Lovelace",
        "Bo Ek": "Bo Ek",
    }
    assert (
        "1 recordist is spelled in several ways and treated as one: Ada Lovelace (2) = ADA LOVELACE (1)" in caplog.text
    )


def test_the_spelling_does_not_depend_on_the_order():
    names = ["Ada L", "ada l", "ADA L", "Bo", "bo", "bo"]
    assert len({tuple(sorted(one_spelling(order).items())) for order in itertools.permutations(names)}) == 1


def test_a_name_of_symbols_alone_is_itself():
    assert one_spelling(["★", "☆"]) == {"★": "★", "☆": "☆"}


def test_the_user_says_who_is_one_person(caplog):
    names = ["L. Lachmann", "LARS LACHMANN", "Lars Lachmann", "Lasse L", "Bo Ek"]
    found = one_spelling(names, [["Lars Lachmann", "L Lachmann"], ["l. lachmann", "Lasse L"], ["Bo Ek", "Bo E"]])
    assert set(found[name] for name in names[:4]) == {"Lars Lachmann"}
    assert found["Bo Ek"] == "Bo Ek"
    assert "--same_recordist names 1 recordist that no recording has: Bo E" in caplog.text


@pytest.mark.parametrize(
    ("one", "other", "reason"),
    [
        ("Lars Lachmann", "Lachmann Lars", "another order"),
        ("Lars Lachmann", "L. Lachmann", "within"),
        ("Lars Lachmann", "Lachmann", "within"),
        ("Lars Lachmann", "Lars Lachmann (NABU)", "within"),
        ("Peter Boesman", "Peter F. D. Boesman", "within"),
        ("Hans Müller", "Hans Mueller", "one letter"),
        ("Jerome Fischer", "Jerome Fisher", "one letter"),
        ("Jerome Fischer", "Jerome Ficsher", "one letter"),
        ("J.P. Dupont", "JP Dupont", "within"),
    ],
)
def test_near_names_are_listed_with_the_reason(one, other, reason):
    (found,) = similar_names([one, other])
    assert set(found[:2]) == {one, other} and reason in found[2]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Lars Lachmann", "Marc Anderson"),
        ("Lars Lachmann", "Lars Anderson"),
        ("Lars Lachmann", "Marc Lachmann"),
        ("L. Lachmann", "M. Lachmann"),
        ("Jan Ek", "Jan Es"),  # too short to be near by more than chance
        ("David", "David Miller"),
        ("Ada Lovelace", "Ada Lovelace 2"),
        ("Recording team 1", "Recording team 2"),
    ],
)
def test_other_names_are_not(one, other):
    assert similar_names([one, other]) == []


def test_names_an_edit_apart_are_found_as_by_brute_force():
    def distance(a, b):
        """Optimal string alignment, by its recurrence."""
        rows = {(i, 0): i for i in range(len(a) + 1)} | {(0, j): j for j in range(len(b) + 1)}
        for i in range(1, len(a) + 1):
            for j in range(1, len(b) + 1):
                swap = i > 1 and j > 1 and a[i - 1] == b[j - 2] and a[i - 2] == b[j - 1]
                rows[i, j] = min(
                    rows[i - 1, j] + 1,
                    rows[i, j - 1] + 1,
                    rows[i - 1, j - 1] + (a[i - 1] != b[j - 1]),
                    rows[i - 2, j - 2] + 1 if swap else 99,
                )
        return rows[len(a), len(b)]

    rng = random.Random(2)
    names = sorted({"".join(rng.choice("ab") for _ in range(rng.randint(8, 10))) for _ in range(60)})
    expected = {pair for pair in itertools.combinations(names, 2) if distance(*pair) == 1}
    assert {(one, other) for one, other, _ in similar_names(names)} == expected


def test_five_thousand_names_take_seconds():
    rng = random.Random(3)
    first, last = (["".join(rng.choice("abcdefghij") for _ in range(7)) for _ in range(n)] for n in (200, 3000))
    names = [f"{rng.choice(first)} {rng.choice(last)}" for _ in range(5000)]
    assert all(recordist_key(one) != recordist_key(other) for one, other, _ in similar_names(names))


def test_the_list_of_same_names(tmp_path):
    path = tmp_path / "same.csv"
    path.write_text(
        'recordist,same_as\nLars Lachmann,L. Lachmann,"Lachmann, L."\n\n Bo  Ek ,Bosse Ek,\n', encoding="utf-8-sig"
    )
    assert read_same_recordist(path) == [["Lars Lachmann", "L. Lachmann", "Lachmann, L."], ["Bo Ek", "Bosse Ek"]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"Lars Lachmann\n", "has only one name"),
        (b"Lars Lachmann,unknown\n", "'unknown' means an unknown person"),
        (b"J\xf6rg,Jorg\n", "cannot be read"),
        (b"", "has no names; expected a CSV .*, or leave --same_recordist out"),
        (b"recordist,same_as\n\n , \n", "has no names"),
        (None, "cannot be read"),
    ],
)
def test_a_list_that_cannot_be_used(tmp_path, content, message):
    if content is not None:
        (tmp_path / "same.csv").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_same_recordist(tmp_path / "same.csv")
