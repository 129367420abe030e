"""Standard output and error that still work when nobody reads them: a closed pipe, a closed terminal, or no stream."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TextIO


class LastingStream:
    """A stream that drops text that nobody can read, and writes letters outside its encoding as escapes."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> object:
        """Return an attribute of the wrapped stream."""
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text, if the stream is still open."""
        try:
            return self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding
            return self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except (OSError, ValueError):  # ValueError: closed by Python
            self._drop()
            return len(text)

    def flush(self) -> None:
        """Flush the buffer, if the stream is still open."""
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._drop()

    def _drop(self) -> None:
        """Redirect the file to the null device, so that later writes of libraries and of Python itself do no harm."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, self._stream.fileno())
        except (OSError, ValueError):
            self._stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123
        os.close(nowhere)


@contextlib.contextmanager
def lasting_streams() -> Iterator[None]:
    """Wrap ``sys.stdout`` and ``sys.stderr`` in a `LastingStream`, and reserve the file numbers 0 to 2."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed, for example by cron or 2>&-: the next opened file would get libraries' prints
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
