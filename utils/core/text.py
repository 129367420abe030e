"""Numbers and names of recordings, labels and files as text: counts, shortened lists, names that are safe to print."""

import unicodedata
from collections.abc import Iterable, Sequence

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def counted(n: int, one: str, many: str | None = None) -> str:
    """Return a number with its noun: ``1 file``, ``3 files``; with a verb, ``1 label has`` and ``3 labels have``.

    Parameters
    ----------
    n : int
    one : str
        The words after 1.
    many : str, optional
        The words after other numbers; by default `one` with an s.
    """
    return f"{n} {one if n == 1 else many or f'{one}s'}"


def some(names: Sequence[str], most: int = 10) -> str:
    """Return the first names of a long list, for a message: ``a, b, c and 7 more``."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def short(value: object, most: int = 80) -> str:
    """Return a value of a JSON file as text for a message."""
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def visible(text: str) -> str:
    """Return `text` without characters that nobody sees: formats, such as a zero-width space, and control codes."""
    return "".join(c for c in text if c.isspace() or unicodedata.category(c) not in ("Cf", "Cc"))


def printable(text: str, keep: str = "") -> str:
    r"""Return `text` with each unprintable character written as an escape, such as ``\x1b`` or ``\u202e``.

    File names may contain codes that colour, clear or reverse the text on a terminal, or that end a line.

    Parameters
    ----------
    text : str
    keep : str
        Characters to leave as they are.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def formulas(texts: Iterable[str]) -> list[str]:
    """Return, sorted, the texts that a spreadsheet would run as a formula."""
    return sorted({text for text in texts if text.startswith(FORMULA_STARTS) and not _is_number(text)})


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
