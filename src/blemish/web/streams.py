"""Answers that do not end by themselves: how many there are at once, and whether who began one is still there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from time import monotonic
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from blemish.web.access import LoginError, visitor
from blemish.web.guard import bearer_of, known
from blemish.web.inspection import UnavailableError

MOST = 200  # at once
LOOK = 2.0  # seconds between two looks at who is there


def still_there(request: Request) -> bool:
    """Whether who began this answer may still have it: not logged out, not removed, of the same role. The database is
    asked at most every `LOOK` seconds; yes where it cannot say it now."""
    who, time = visitor(request), monotonic()
    if time < getattr(request.state, "looked", -LOOK) + LOOK:
        return True
    request.state.looked = time
    try:
        return known(request.app.state.site, request, request.state.cookie, bearer_of(request)) == who
    except LoginError:
        return False
    except (DBAPIError, PoolTimeoutError):
        return True


async def _counted(request: Request) -> AsyncIterator[None]:
    state = request.app.state
    if getattr(state, "streams", 0) >= MOST:
        raise UnavailableError(f"{MOST} pages are told of events already; close some, then load this one again.")
    state.streams = getattr(state, "streams", 0) + 1
    try:
        yield
    finally:
        state.streams -= 1


OneStream = Annotated[None, Depends(_counted)]  # a parameter of such a route; 503 where there are `MOST` already
