"""The pages say what the code does: commands parse, links lead somewhere, and flags, files and columns exist."""

import argparse
import contextlib
import functools
import importlib
import inspect
import io
import re
import shlex

import pytest

from tests.stages import ROOT, load_stage
from tests.test_house import WINGS

PAGES = [*(ROOT / name for name in ("README.md", "RESULTS.md", "CHANGELOG.md")), *sorted((ROOT / "docs").glob("*.md"))]
STAGES = {path.name[:2]: path.stem for path in sorted(ROOT.glob("0*.py"))}
PYTHON = sorted(p for pattern in ("*.py", "[a-z]*/*.py", "utils/*/*.py") for p in ROOT.glob(pattern))
SCRIPTS = [
    f"{path.parent.name}.{path.stem}"
    for path in PYTHON
    if path.parent.name in ("experiments", "benchmarks", "drills") and "\ndef main(" in path.read_text(encoding="utf-8")
]


class Found(BaseException):
    """A script has made its parser, and goes no further."""


@functools.cache
def parser_of(script: str) -> argparse.ArgumentParser:
    """Return the parser of a stage, such as ``01_data_processing``, or of a module, such as ``experiments.study``."""

    def found(self, *_, **__):
        raise Found(self)

    module = load_stage(script) if script in STAGES.values() else importlib.import_module(script)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", found)
        try:
            module.main(*[[]] * len(inspect.signature(module.main).parameters))
        except Found as stop:
            return stop.args[0]
    return argparse.ArgumentParser(script)  # it takes no arguments


def mistake(script: str, words: list[str]) -> str:
    """Return what a script says against a command line; nothing if it takes it."""
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            parser_of(script).parse_args(words)
        except SystemExit:
            return f"{script} {shlex.join(words)}: {said.getvalue().splitlines()[-1]}"
    return ""


def mistakes_of_a_part(script: str, words: list[str]) -> list[str]:
    """Return the flags and choices that a script does not have, in a command that is named in part."""
    flags, wrong, action = parser_of(script)._option_string_actions, [], None
    for word in words:
        if word.startswith("--"):
            action = flags.get(word.partition("=")[0])
            if action is None:
                wrong.append(f"{script} has no {word}")
        elif action and action.choices and word.strip("…") and not set(word.split("|")) <= set(action.choices):
            wrong.append(f"{script} {action.option_strings[0]} does not take {word}")
    return wrong


def words_of(command: str) -> list[str]:
    """Return the words of a command up to a pipe; a variable of the shell is 1, and `$fold` several words."""
    command = re.sub(r"\s[;|&>].*|[\[\]]|…", "", re.sub(r"(?<= )\$fold(?= |$)", "", command))
    return shlex.split(re.sub(r"\$\w+", "1", command))


def code_of(text: str) -> tuple[list[str], list[str]]:
    """Return the lines of the code blocks of a page, continued lines joined, and the code in its sentences."""
    text = re.sub(r"\\\n\s*", " ", text)
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
    text = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    blocks += re.findall(r"^    .*", text, re.M)
    pieces = re.findall(r"`([^`]+)`", re.sub(r"^    .*", "", text, flags=re.M))
    return "\n".join(blocks).splitlines(), [" ".join(piece.split()) for piece in pieces]


def commands_of(line: str, before: str = "(?:python|torchrun) .*") -> list[tuple[str, list[str]]]:
    """Return the script that a line of code runs, with its words; nothing if it runs none."""
    line = re.sub(r"\s#\s.*", "", line)
    stages, modules = "|".join(STAGES.values()), "|".join(map(re.escape, SCRIPTS))
    found = re.search(rf"{before}(?:(?<![\w./-])({stages})\.py|-m ({modules}))(?: (.*)|$)", line)
    return [(found[1] or found[2], words_of(found[3] or ""))] if found else []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_parse(page):
    blocks, pieces = code_of(page.read_text(encoding="utf-8"))
    wrong = [mistake(*command) for line in blocks for command in commands_of(line)]
    for piece in pieces:
        piece = re.sub(r"^(0\d) --", lambda found: f"{STAGES[found[1]]}.py --", piece)  # 05 --max_latency_ms 50
        wrong += [told for script, words in commands_of(piece, "") for told in mistakes_of_a_part(script, words)]
    assert not [told for told in wrong if told]


@pytest.mark.parametrize("script", [*STAGES.values(), *SCRIPTS])
def test_the_commands_of_a_help_text_parse(script):
    lines, _ = code_of(parser_of(script).description or "")
    wrong = [mistake(*command) for line in lines if " ... " not in line for command in commands_of(line)]
    assert not [told for told in wrong if told]


def test_every_link_leads_somewhere():
    anchors = {
        page: {
            re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
            for title in re.findall(r"^#+ (.*)", page.read_text(encoding="utf-8"), re.M)
        }
        for page in PAGES
    }
    wrong = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            file, _, anchor = target.partition("#")
            path = (page.parent / file).resolve() if file else page
            if target.startswith("http"):
                continue
            if not path.exists() or (anchor and anchor not in anchors[path]):
                wrong.append(f"{page.name}: {target}")
    assert not wrong


def test_flags_files_and_columns_of_the_pages_exist():
    code = "\n".join(
        path.read_text(encoding="utf-8")
        for path in [*PYTHON, *ROOT.glob("jobs/*.sh"), *ROOT.glob("utils/*/*.html"), ROOT / "Makefile"]
        if path.name != "test_docs.py"
    )
    wrong = []
    for page in PAGES:
        if page.name == "CHANGELOG.md":  # it names what is gone
            continue
        _, pieces = code_of(page.read_text(encoding="utf-8"))
        for piece in {*pieces} - {"jobs/site.sh", "tape_part2"}:  # a file of the user, the name of a recording
            names = re.findall(r"(?<![\w-])--[a-z]\w*", piece)
            names += [piece] if re.fullmatch(r"[a-z]\w*_\w+", piece) else []
            wrong += [f"{page.name}: {name}" for name in names if not re.search(rf"{name}\b", code)]
            path = f"utils/{piece}.py" if re.fullmatch(rf"({'|'.join(WINGS)})/\w+", piece) else piece
            if re.fullmatch(r"(utils|experiments|benchmarks|drills|jobs|tests|findings|docs)/[\w./-]+", path):
                wrong += [f"{page.name}: {piece}"] if not (ROOT / path).exists() else []
    assert not wrong
