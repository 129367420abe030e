"""The words for the channel of a recording that is used, on a command line and in the config of a model."""

import re

WORDS = ("mean", "left", "right", "best")
EXPECTED = f"{', '.join(WORDS)} or a number; the first is 1"


def is_channel(text: str) -> bool:
    """Return whether a text is one of `WORDS`, or a number such as ``3``."""
    return text in WORDS or re.fullmatch(r"[1-9]\d{0,2}", text, flags=re.ASCII) is not None
