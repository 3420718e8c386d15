"""Times as people read and write them: those of the server's own clock, which hangs where the parts are made."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from blemish.types import BlemishError

_STEPS = {10: timedelta(days=1), 13: timedelta(hours=1), 16: timedelta(minutes=1), 19: timedelta(seconds=1)}


def minute(time: str) -> str:
    """A time of the tables (UTC) to the minute, by the server's clock, with its zone: `2026-11-30 13:44 UTC`."""
    return datetime.fromisoformat(time).astimezone().strftime("%Y-%m-%d %H:%M %Z")


def utc(text: str, *, end: bool = False) -> str:
    """A date, or a date with hour, minute or second, as the tables keep times; `end` gives the moment after it, so that
    "to 2026-11-30" has that whole day. Without an offset it is the server's clock. Raises `BlemishError` for no time.

    >>> utc("2026-11-30T13:44+00:00"), utc("2026-11-30T13:44Z", end=True)
    ('2026-11-30T13:44:00.000+00:00', '2026-11-30T13:45:00.000+00:00')
    """
    try:
        time = datetime.fromisoformat(text.strip())
        without_offset = re.sub(r"(Z|[+-]\d\d:?\d\d)$", "", text.strip()[10:])
        step = _STEPS.get(10 + len(without_offset), timedelta(milliseconds=1))
        return (time + step * end).astimezone(UTC).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError):
        raise BlemishError(f"'{text[:100]}' is no time; write it as 2026-11-30 or 2026-11-30T13:44.") from None
