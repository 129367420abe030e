"""Layer lists and numbers on the command line."""

import argparse
import os
import subprocess
import sys

import pytest

from tests.stages import ROOT
from utils.core import cli
from utils.core.errors import UsageError
from utils.models import training_arguments


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("0", [0]),
        ("0-3,7", [0, 1, 2, 3, 7]),
        ("7,0-3", [0, 1, 2, 3, 7]),
        (" 1 , 3-4 ", [1, 3, 4]),
        ("0-11", list(range(12))),
        ("5-5", [5]),
        ("none", []),
    ],
)
def test_layer_lists(text, layers):
    assert cli.parse_layer_list(text, 12) == layers


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not a layer or range"),
        (",", "not a layer or range"),
        ("0,,1", "not a layer or range"),
        ("a", "not a layer or range"),
        ("-1", "not a layer or range"),
        ("1-", "not a layer or range"),
        ("1.5", "not a layer or range"),
        ("٣", "not a layer or range"),
        ("0-3-5", "not a layer or range"),
        ("3-1", "is in descending order"),
        ("12", "no layer 12"),
        ("0-12", "no layer 12"),
        ("0-99999999999", "not a layer or range"),
        ("1,1", "layer 1 is named twice"),
        ("0-3,2", "layer 2 is named twice"),
    ],
)
def test_malformed_layer_lists_name_the_models_layers(text, words):
    with pytest.raises(UsageError, match=words) as error:
        cli.parse_layer_list(text, 12)
    assert "this model has layers 0-11" in str(error.value)


def test_layer_list_of_a_model_without_layers():
    assert cli.parse_layer_list("none", 0) == []
    with pytest.raises(UsageError, match="no layers"):
        cli.parse_layer_list("0", 0)


@pytest.mark.parametrize("layers", [[], [0], [0, 1, 2], [0, 2], [0, 1, 4, 5, 6, 9]])
def test_formatting_is_the_inverse_of_parsing(layers):
    assert cli.parse_layer_list(cli.format_layer_list(layers), 12) == layers


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (cli.positive_int, {"1": 1, "20": 20}, ["0", "-1", "1.5", "x", ""]),
        (cli.non_negative_int, {"0": 0, "4294967295": 4294967295}, ["-1", "4294967296", "1e3"]),
        (cli.positive_float, {"1e-4": 1e-4}, ["0", "-1", "nan", "inf", "x"]),
        (cli.non_negative_float, {"0": 0.0}, ["-0.1", "nan", "inf"]),
        (cli.fraction, {"0": 0.0, "0.99": 0.99}, ["1", "-0.1", "nan"]),
    ],
)
def test_numbers(kind, good, bad):
    assert {text: kind(text) for text in good} == good
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError, match="is not"):
            kind(text)


def test_augmentations():
    assert training_arguments.augmentations(["none"], 8) == ()
    assert training_arguments.augmentations(["mixup", "roll"], 8) == ("roll", "mixup")
    with pytest.raises(UsageError, match="none cannot be combined with others"):
        training_arguments.augmentations(["none", "roll"], 8)


def test_augmentations_of_two_clips_need_two_clips_in_a_batch():
    """With one clip a batch, noise and mixup would do nothing, and run.json would name them."""
    assert training_arguments.augmentations(None, 1) == ("roll", "gain", "specaugment")
    assert training_arguments.augmentations(None, 2) == training_arguments.AUGMENTATIONS
    with pytest.raises(UsageError, match="--augment mixup takes a second clip from the batch"):
        training_arguments.augmentations(["roll", "mixup"], 1)


@pytest.mark.parametrize("script", sorted(path.name for path in ROOT.glob("0*.py")))
def test_help_says_every_default_and_importing_prints_nothing(script):
    environment = {**os.environ, "COLUMNS": "120"}
    shown = subprocess.run(
        [sys.executable, script, "--help"], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert f"python {script}" in shown.stdout, "the docstring is the command"
    for flag in ("--output_dir", "--seed", "--device", "--overwrite", "--log_level"):
        assert flag in shown.stdout
    assert "(default: 42" in shown.stdout
    assert "(default: None)" not in shown.stdout and "(default: False)" not in shown.stdout
