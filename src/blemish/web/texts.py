"""What people write, as it is kept."""

from __future__ import annotations

from blemish.types import readable


def plain(text: str) -> str:
    """Without what databases and pages cannot take, such as a NUL; line breaks stay."""
    return "".join(c if c.isprintable() or c == "\n" else " " for c in readable(text))
