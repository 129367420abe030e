"""Names of recordings, labels and files as text: cut to a few, and safe for a terminal or a table."""

from collections.abc import Sequence


def some(names: Sequence[str], most: int = 10) -> str:
    """Return the first of many names for a message: ``a, b, c and 7 more``."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def printable(text: str) -> str:
    """Return a text on one line, without what would steer a terminal: such characters as escapes, ``\\x1b``."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
