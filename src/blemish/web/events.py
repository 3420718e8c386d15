"""What happens, told to every open page: one look at the log's head for all of them, and server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from sqlalchemy import func, select

from blemish.web.database import Database
from blemish.web.tables import Log

EVERY = 0.3  # seconds between two looks while anybody listens
MOST = 200  # entries told at once


class Hub:
    """Tells listeners of new entries of the log, whichever process wrote them."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._listeners = 0
        self._changed = asyncio.Condition()
        self._head = 0
        self._closed = False
        self._task: asyncio.Task[None] | None = None

    def head(self) -> int:
        with self._database.reading() as session:
            return session.scalar(select(func.max(Log.seq))) or 0

    def since(self, seq: int) -> list[tuple[int, str, int]]:
        """Number, kind and row of the entries after `seq`, at most `MOST`."""
        with self._database.reading() as session:
            rows = session.execute(
                select(Log.seq, Log.kind, Log.ref).where(Log.seq > seq).order_by(Log.seq).limit(MOST)
            )
            return [(row.seq, row.kind, row.ref) for row in rows]

    async def listen(self, after: int | None) -> AsyncIterator[tuple[int, str, int]]:
        """The entries after `after` (None = from now on), as they come. Ends after `close`."""
        seen = await asyncio.to_thread(self.head) if after is None else after
        self._listeners += 1
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._look())
        try:
            while not self._closed:
                for entry in await asyncio.to_thread(self.since, seen):
                    seen = entry[0]
                    yield entry
                async with self._changed:
                    while self._head <= seen and not self._closed:
                        await self._changed.wait()
        finally:
            self._listeners -= 1

    async def close(self) -> None:
        """Ends all listening, now and later: a server that ends would wait for it."""
        self._closed = True
        async with self._changed:
            self._changed.notify_all()

    async def _look(self) -> None:
        while self._listeners:
            try:
                head = await asyncio.to_thread(self.head)
            except Exception:  # the database is away: the next look may find it again
                head = self._head
            if head != self._head:
                async with self._changed:
                    self._head = head
                    self._changed.notify_all()
            await asyncio.sleep(EVERY)
