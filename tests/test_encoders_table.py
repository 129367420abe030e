"""The table of encoders in docs/encoders.md, against the code that counts."""

from experiments import encoders_table
from tests.stages import ROOT


def test_the_document_has_what_the_code_counts(capsys):
    lines = (ROOT / "docs" / "encoders.md").read_text(encoding="utf-8").splitlines()
    documented = {line.split(" | ")[0]: line.split(" | ")[2:6] for line in lines if line.startswith("| ")}
    assert encoders_table.main([]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == len(encoders_table.PUBLISHED)
    for line in printed:
        name, *numbers = line.removesuffix(" |").split(" | ")
        assert documented[name] == numbers, name
