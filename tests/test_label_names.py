"""Labels that are not species, and those that other programs read as missing."""

import io

import numpy as np
import pandas as pd
import pytest
from pandas._libs.parsers import STR_NA_VALUES

from utils.data.label_names import MISSING, warn_of_odd_labels
from utils.scores import evaluation


@pytest.mark.parametrize(
    "label",
    [
        *("Mystery mystery", "Mystery_mystery", "Sonus naturalis", "Corvus sp.", "Corvus_sp", "Corvus spp.", "Unknown"),
        *("Unidentified warbler", "noise", "nocall", "no bird", "Background", "Parus/Poecile"),
        "Anas platyrhynchos x acuta",
    ],
)
def test_labels_that_name_no_species_get_a_line(label, caplog):
    warn_of_odd_labels({label: 3, "Turdus merula": 9})
    assert f"1 label names no species: {label} (3 recordings)" in caplog.text


@pytest.mark.parametrize(
    "label",
    [
        *("Turdus merula", "Turdus_merula", "Corvus", "amerob", "Great Tit", "Xenus cinereus", "Spizella"),
        *("Noisy Miner", "Unicolored Jay", "Otherworldly Bird", "Bird Cherry", "Sparrow"),
    ],
)
def test_species_get_none(label, caplog):
    warn_of_odd_labels({label: 3})
    assert not [record for record in caplog.records if record.levelname != "INFO"]


def test_the_names_that_pandas_reads_as_missing_are_known(caplog):
    assert STR_NA_VALUES - {""} == MISSING
    warn_of_odd_labels({"NA": 1, "Rook": 1, "None": 2})
    assert "the labels NA, None are read as missing by pandas and R" in caplog.text


def test_our_reports_of_such_labels_come_back_with_keep_default_na_false():
    labels = ["NA", "None", "nan"]
    report = evaluation.per_class_report(np.array([0, 1, 2]), np.array([0, 1, 1]), labels)
    read = pd.read_csv(io.StringIO(report.to_csv(index=False)), keep_default_na=False)
    assert list(read["label"]) == labels
