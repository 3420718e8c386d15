"""Every page hears of what any process wrote, in order, and nothing twice."""

from __future__ import annotations

import asyncio
from pathlib import Path

from blemish.web.events import Hub
from tests.web.support import PRODUCT, grey, made_site


def test_listeners_hear_what_comes(tmp_path: Path) -> None:
    site = made_site(tmp_path)

    async def heard(hub: Hub, after: int | None, count: int) -> list[tuple[int, str, int]]:
        found = []
        async for entry in hub.listen(after):
            found.append(entry)
            if len(found) == count:
                break
        return found

    async def both() -> list[list[tuple[int, str, int]]]:
        hub = Hub(site.database)
        listening = [asyncio.create_task(heard(hub, after, count)) for after, count in ((None, 2), (0, 4))]
        await asyncio.sleep(0.1)
        for value in (60, 95):
            await asyncio.to_thread(site.line.inspect, grey(value), "a.png", PRODUCT, by="ann", source="page")
        return await asyncio.wait_for(asyncio.gather(*listening), 20)

    new, all_of_it = asyncio.run(both())
    assert new == [(3, "verdict", 1), (4, "verdict", 2)]
    assert all_of_it == [(1, "detector", 1), (2, "promotion", 1), *new]


def test_the_head_is_looked_at_only_while_somebody_listens(tmp_path: Path) -> None:
    site = made_site(tmp_path)

    async def looked() -> bool:
        hub = Hub(site.database)
        listening = hub.listen(0)
        await anext(listening)
        await listening.aclose()  # type: ignore[attr-defined]
        await asyncio.sleep(1)
        return hub._task is not None and hub._task.done()

    assert asyncio.run(looked())
