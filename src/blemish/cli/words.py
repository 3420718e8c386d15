"""Text on its way to a terminal: one line stays one line, and no character of a name moves the cursor, colours the
screen or hides another. All that `blemish` prints goes through here or through `console`.

For programs there is --json, which is plain ASCII on every terminal: `json.dumps` escapes what is not. A file name that
is not UTF-8 stands there with lone surrogates (`\\udcff`), as Python has it; `os.fsencode` makes its bytes of it again.
"""

from __future__ import annotations

import codecs
import json
import math
import sys
import unicodedata
from collections.abc import Callable
from typing import IO, Any

# Controls, marks that change the direction of text or are invisible, halves of surrogate pairs, other ends of lines.
UNSAFE = {"Cc", "Cf", "Cs", "Zl", "Zp"}
SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
# What stands for our own signs where the terminal's encoding has none.
PLAIN = {"–": "-", "—": "-", "−": "-", "×": "x", "±": "+/-", "…": "...", "’": "'", "“": '"', "”": '"', "→": "->"}
MINUTE = 60
ERRORS = "blemish"  # the name of the error handler `_without`


def escaped(text: str) -> str:
    """`text` with every character that is not safe on a terminal as Python writes it, such as `\\n` or `\\x1b`; a byte
    of a file name that is not UTF-8 as `\\xff`."""
    if text.isprintable():
        return text
    return "".join(_shown(c) if unicodedata.category(c) in UNSAFE else c for c in text)


def _shown(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:
        return SHORT.get(character, f"\\x{code:02x}")
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def lasting(seconds: float) -> str:
    """A time in words that are exact enough.

    >>> lasting(41.2), lasting(441), lasting(30000), lasting(400000)
    ('42 s', '8 min', '8.3 h', '4.6 days')
    """
    if seconds < 2 * MINUTE:
        return f"{math.ceil(seconds)} s"
    if seconds < 2 * MINUTE**2:
        return f"{math.ceil(seconds / MINUTE)} min"
    hours = seconds / MINUTE**2
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"


def say(line: str, *, err: bool = False) -> None:
    """Prints one line on standard output, or on standard error."""
    _write(escaped(line), sys.stderr if err else sys.stdout)


def say_json(value: Any, indent: int | None = None, default: Callable[[Any], Any] | None = None) -> None:
    """Prints a value as JSON, in ASCII."""
    say_raw(json.dumps(value, indent=indent, default=default, allow_nan=False))


def say_raw(line: str) -> None:
    """Prints one line of JSON that is made already."""
    _write(line, sys.stdout)


def _write(text: str, stream: IO[str]) -> None:
    # Not typer.echo, which takes an ASCII stream for a mistake and writes UTF-8 into it.
    stream.write(f"{text}\n")
    stream.flush()


def _without(error: UnicodeError) -> tuple[str | bytes, int]:
    """An error handler for encoding: characters that the encoding lacks become plain ones, or are escaped."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in lacking), error.end


codecs.register_error(ERRORS, _without)
