"""Standard output and error that outlive their reader: a closed pipe, a closed terminal, or none from the start."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TextIO


class LastingStream:
    """A stream that drops what cannot be shown any more, and writes letters that it does not have as their codes."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> object:
        """Return what the stream itself has."""
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text, if anybody is there to read it."""
        try:
            return self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding
            return self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except (OSError, ValueError):  # ValueError: closed by Python
            self._drop()
            return len(text)

    def flush(self) -> None:
        """Pass on what is buffered, if anybody is there to read it."""
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._drop()

    def _drop(self) -> None:
        """Lead the file to nowhere: what libraries and the end of Python still write there does no harm either."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, self._stream.fileno())
        except (OSError, ValueError):
            self._stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123
        os.close(nowhere)


@contextlib.contextmanager
def lasting_streams() -> Iterator[None]:
    """Make ``sys.stdout`` and ``sys.stderr`` such streams, and let no other file get their numbers."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed, as by cron or 2>&-: the next file that is opened would get what libraries print
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (
        LastingStream(open(os.devnull, "w", encoding="utf-8") if stream is None else stream)  # noqa: SIM115, PTH123
        for stream in before
    )
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before
