"""Times of the server's own clock, with the name of its zone."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from blemish.web.times import minute


@pytest.fixture(params=["UTC0", "CET-1CEST,M3.5.0,M10.5.0/3"])
def zone(request: pytest.FixtureRequest) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", request.param)
        time.tzset()
        yield request.param
    time.tzset()


def test_a_minute_says_whose_clock_it_is(zone: str) -> None:
    winter, summer = minute("2026-11-30T13:44:59.000+00:00"), minute("2026-07-01T23:30:00.000+00:00")
    if zone == "UTC0":
        assert (winter, summer) == ("2026-11-30 13:44 UTC", "2026-07-01 23:30 UTC")
    else:
        assert (winter, summer) == ("2026-11-30 14:44 CET", "2026-07-02 01:30 CEST")
