"""Shared by all command lines: common flags, the layer-list syntax, and the exit code of each error."""

import argparse
import difflib
import logging
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NoReturn

from utils.core import runs, streams
from utils.core.errors import AlreadyComplete, InputError, Interrupted, StageError, UsageError, advice_on

log = logging.getLogger(__name__)

SEED = 42


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keep the description's lines; add each default that the help text does not name."""

    def _get_help_string(self, action: argparse.Action) -> str:
        if action.required or action.nargs == 0 or action.default is None or "(default:" in action.help:
            return action.help
        default = action.default
        if isinstance(default, list):
            default = " ".join(map(str, default)) or "none"
        return f"{action.help} (default: {default})"


class StageParser(argparse.ArgumentParser):
    """A parser that prints one line for a usage error: the error and the nearest valid word."""

    def error(self, message: str) -> NoReturn:
        """Print the error, and exit with 2."""
        self.exit(UsageError.exit_code, f"{self.prog}: {message}{self._meant(message)}; see {self.prog} --help\n")

    def _meant(self, message: str) -> str:
        flags = [flag for action in self._actions for flag in action.option_strings]
        if unknown := re.match(r"unrecognized arguments: (--[^\s=]+)", message):
            return _did_you_mean(unknown[1], flags)
        if refused := re.match(r"argument (\S+): invalid choice: '(.*?)'", message):
            offered = (a.choices for a in self._actions if refused[1].split("/")[0] in a.option_strings)
            return _did_you_mean(refused[2], [str(choice) for choice in next(offered, None) or ()])
        return ""


def _did_you_mean(word: str, words: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, words, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def build_stage_parser(doc: str) -> StageParser:
    """Return a parser whose help opens with the script's docstring and shows every default."""
    return StageParser(description=doc, formatter_class=HelpFormatter, allow_abbrev=False)


def add_common_arguments(parser: argparse.ArgumentParser, output_dir: str | None, other_seed: str = "") -> None:
    """Add ``--output_dir --seed --device --overwrite --log_level``.

    Parameters
    ----------
    parser : argparse.ArgumentParser
        Parser to extend.
    output_dir : str or None
        Default of ``--output_dir``; None makes the flag required.
    other_seed : str
        When the seed is not `SEED` by default, in words; the stage then replaces None.
    """
    parser.add_argument(
        "--output_dir",
        type=Path,
        default=argparse.SUPPRESS if output_dir is None else Path(output_dir),
        required=output_dir is None,
        help="folder to write, exactly this one",
    )
    parser.add_argument(
        "--seed",
        type=non_negative_int,
        default=None if other_seed else SEED,
        help=f"seed of everything random{f' (default: {SEED}; {other_seed})' if other_seed else ''}",
    )
    parser.add_argument(
        "--device",
        choices=["auto", "cpu", "cuda"],
        default="auto",
        help="auto uses a GPU if there is one and the stage can use it",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace a result made with other arguments; the old one is kept aside until the new one is complete",
    )
    parser.add_argument(
        "--log_level",
        choices=["debug", "info", "warning", "error"],
        default="info",
        help="lowest level to print",
    )


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--data_dir --fold --max_clips_per_class``, which stages 02 to 06 share."""
    parser.add_argument(
        "--data_dir", type=Path, default=Path("processed_data"), help="output folder of 01_data_processing.py"
    )
    parser.add_argument(
        "--fold",
        type=positive_int,
        default=None,
        help="fold to test, from 1, of clips that 01 has divided by --folds: the next fold is val, the others are "
        "train (default: none)",
    )
    parser.add_argument(
        "--max_clips_per_class",
        type=positive_int,
        default=None,
        help="use at most this many clips of each class and split, drawn by --seed (default: all)",
    )


def changed(parser: argparse.ArgumentParser, args: argparse.Namespace, names: Iterable[str]) -> list[str]:
    """Return those of some arguments that differ from their default."""
    return [name for name in names if getattr(args, name) != parser.get_default(name)]


def command_line(parser: argparse.ArgumentParser, script: str, args: argparse.Namespace, **changes: object) -> str:
    """Return the command line of parsed arguments, some of them changed; arguments with their default are left out."""
    words = ["python", script]
    for name, value in {**vars(args), **changes}.items():
        if value == parser.get_default(name):
            continue
        values = value if isinstance(value, list) else [value]
        words += [f"--{name}"] if value is True else [f"--{name}", *map(str, values)]
    return shlex.join(words)


def positive_int(text: str) -> int:
    """Parse an integer of at least 1."""
    return _number(text, int, lambda value: value >= 1, "an integer of at least 1")


def non_negative_int(text: str) -> int:
    """Parse an integer of at least 0 and below 2**32, the seeds that NumPy takes."""
    return _number(text, int, lambda value: 0 <= value < 2**32, "an integer from 0 to 4294967295")


def positive_float(text: str) -> float:
    """Parse a finite number above 0."""
    return _number(text, float, lambda value: 0 < value < float("inf"), "a number above 0")


def non_negative_float(text: str) -> float:
    """Parse a finite number of at least 0."""
    return _number(text, float, lambda value: 0 <= value < float("inf"), "a number of at least 0")


def fraction(text: str) -> float:
    """Parse a number of at least 0 and below 1."""
    return _number(text, float, lambda value: 0 <= value < 1, "a number of at least 0 and below 1")


def share(text: str) -> float:
    """Parse a number above 0 and of at most 1."""
    return _number(text, float, lambda value: 0 < value <= 1, "a number above 0 and of at most 1")


def number_or_share(text: str) -> int | float:
    """Parse an integer of at least 1, such as ``1536``, or a share, such as ``0.5``; ``1`` is an integer."""
    kind = int if text.isdigit() else float
    expected = "an integer of at least 1, or a share above 0 and of at most 1"
    return _number(text, kind, lambda value: 0 < value <= 1 or (kind is int and value >= 1), expected)


def _number(text, kind, accept, expected):
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not accept(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not {expected}")
    return value


def parse_layer_list(text: str, n_layers: int) -> list[int]:
    """Parse a layer list: ``0-3,7`` (inclusive ranges, counted from 0) or ``none``.

    Parameters
    ----------
    text : str
        The list as typed.
    n_layers : int
        Number of layers of the model.

    Returns
    -------
    list of int
        Layer numbers, ascending.

    Raises
    ------
    UsageError
        If the list is empty, malformed, repeats a layer, or names one that the model does not have.
    """
    layers_of_model = f"this model has layers 0-{n_layers - 1}" if n_layers else "this model has no layers"
    if text.strip() == "none":
        return []
    layers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,6})(?:-(\d{1,6}))?\s*", part, flags=re.ASCII)
        if not match:
            raise UsageError(f"layer list {text!r}: {part!r} is not a layer or range like 0-3; {layers_of_model}")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise UsageError(
                f"layer list {text!r}: the range {part.strip()!r} is in descending order; {layers_of_model}"
            )
        if last >= n_layers:
            raise UsageError(f"layer list {text!r}: there is no layer {last}; {layers_of_model}")
        layers.extend(range(first, last + 1))
    repeated = sorted({layer for layer in layers if layers.count(layer) > 1})
    if repeated:
        raise UsageError(f"layer list {text!r}: layer {repeated[0]} is named twice; {layers_of_model}")
    return sorted(layers)


def format_layer_list(layers: Sequence[int]) -> str:
    """Return the shortest layer list that `parse_layer_list` reads as `layers`, in ascending order: ``0-3,7``."""
    ranges: list[list[int]] = []
    for layer in layers:
        if ranges and layer == ranges[-1][1] + 1:
            ranges[-1][1] = layer
        else:
            ranges.append([layer, layer])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges) or "none"


def run_stage(
    parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], None], argv: Sequence[str] | None
) -> int:
    """Parse `argv`, run the stage and return its exit code.

    Mistakes of the user (`StageError`, and operating-system errors such as a full disk) become one
    line of text and a code. Every other exception is a bug and keeps its traceback.

    Parameters
    ----------
    parser : argparse.ArgumentParser
        The stage's parser.
    run : callable
        The stage; takes the parsed arguments.
    argv : sequence of str or None
        Command line without the program's name; None reads ``sys.argv``.

    Returns
    -------
    int
        0, 1, 2, 3, 4 or 75; the README explains each code.
    """
    if argv is None:
        _in_utf8_mode()
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # before this, `utils` ended at once on SIGINT
            signal.signal(signal.SIGINT, signal.default_int_handler)
    with streams.lasting_streams():
        return _run_stage(parser, run, argv)


def _run_stage(parser, run, argv) -> int:
    try:
        args = parser.parse_args(argv)
    except SystemExit as stop:  # argparse has printed the usage error (2) or the help (0)
        return stop.code
    runs.start_logging(args.log_level)
    try:
        run(args)
        return 0
    except AlreadyComplete as done:
        log.info("%s", done)
        return done.exit_code
    except Interrupted as stop:
        log.warning("%s", stop)
        return stop.exit_code
    except KeyboardInterrupt:  # before the output folder is opened, or after it is closed
        log.warning("stopped by SIGINT: run the same command again to continue")
        return Interrupted.exit_code
    except StageError as error:
        log.error("%s", error)
        return error.exit_code
    except Exception as error:
        advice = advice_on(error)
        if advice is None:
            log.exception("this is a bug: please report it with the lines below")
            return 1
        paths = (getattr(error, name, None) for name in ("filename2", "filename"))  # the target of a renaming, if any
        what = next(filter(None, paths), None) or str(error) or type(error).__name__
        log.error("%s: %s", str(what).splitlines()[0], advice)
        return InputError.exit_code
    finally:
        runs.leave_process_group()
        runs.stop_logging()


def _in_utf8_mode() -> None:
    """Start this program again in UTF-8 mode if Python reads file names in another encoding.

    A locale such as C or ISO 8859-1 would change letters in file names, arguments and labels. A file name is a sequence
    of bytes; a UTF-8 name has the same bytes in every locale.
    """
    if sys.getfilesystemencoding().lower() != "utf-8" and "utf8" not in sys._xoptions:
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
