"""The server is killed at random moments under load: no verdict is lost, none is doubled, and the log verifies."""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

from sqlalchemy import select

from blemish.station.chain import problems
from blemish.web import ledger
from blemish.web.config import Folder
from blemish.web.database import Database
from blemish.web.store import sha256
from blemish.web.tables import Image, Verdict
from tests import tiny
from tests.web.kill import Server
from tests.web.support import grey

IMAGES, KILLS = 120, 4


def test_no_verdict_is_lost_or_doubled(tmp_path: Path) -> None:
    bundle = tiny.made(tmp_path / "bundle")
    contents = [grey(50 + i % 100, spot=i) for i in range(IMAGES)]
    answered: dict[int, dict[str, object]] = {}
    waiting = list(range(IMAGES))
    lock = threading.Lock()
    with Server(tmp_path / "data", bundle) as server:

        def send() -> None:
            while True:
                with lock:
                    if not waiting:
                        return
                    number = waiting.pop()
                request = urllib.request.Request(
                    f"{server.url}/api/v1/inspect?name={number}.png",
                    contents[number],
                    {"Idempotency-Key": f"image {number}", "Content-Type": "application/octet-stream"},
                )
                try:
                    with urllib.request.urlopen(request, timeout=30) as answer:
                        answered[number] = json.load(answer)[0]
                except (urllib.error.URLError, http.client.HTTPException, OSError, json.JSONDecodeError):
                    with lock:
                        waiting.insert(0, number)  # as the page does: the same request again
                    time.sleep(0.05)

        senders = [threading.Thread(target=send) for _ in range(4)]
        for sender in senders:
            sender.start()
        moments = random.Random(7)
        for _ in range(KILLS):
            time.sleep(moments.uniform(0.05, 0.5))
            server.kill()
            server.start()
        for sender in senders:
            sender.join(60)
        server.stop()

    assert len(answered) == IMAGES
    folder = Folder(tmp_path / "data")
    database = Database(f"sqlite:///{folder.database}")
    with database.reading() as session:
        rows = session.scalars(select(Verdict)).all()
        assert sorted(row.name for row in rows) == sorted(f"{number}.png" for number in range(IMAGES))
        by_id = {row.id: row for row in rows}
        for number, said in answered.items():
            row = by_id[said["id"]]  # type: ignore[index]
            assert (row.name, row.decision, row.score) == (f"{number}.png", said["decision"], said["score"])
        assert not list(problems(ledger.entries(session)))
        assert not list(ledger.differences(session))
        for image in session.scalars(select(Image)):
            file = folder.images / image.sha256[:2] / f"{image.sha256}.png"
            assert sha256(file.read_bytes()) == image.sha256
    database.close()
