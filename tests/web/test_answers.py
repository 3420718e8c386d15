"""What the database cannot take, or has no connection for, is an answer in words, on SQLite and PostgreSQL."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.exc import OperationalError

from blemish.web import users
from blemish.web.inspection import UnavailableError
from blemish.web.site import SiteOf
from blemish.web.tables import Image, User
from tests.web.support import client_of, grey, log_in, made_site

AWAY = "http://line.example:8477"


def number(site: SiteOf) -> str:
    with site.database.reading() as session:
        return str(session.scalar(select(Image).where(Image.id == 2**70)))


def text(site: SiteOf) -> str:
    with site.database.reading() as session:
        return str(session.scalar(select(User).where(User.name == "a\0b")))


@pytest.mark.parametrize("accept", ["application/json", "text/html"])
def test_without_a_free_connection_one_is_told_to_come_back(tmp_path: Path, accept: str) -> None:
    """It was an error 500, with a stack trace in the log."""
    site = made_site(tmp_path)
    site.database.engine.pool._timeout = 0.2  # type: ignore[attr-defined]
    client = client_of(site)
    held = [site.database.engine.connect() for _ in range(20)]
    for answer in (client.get("/history", headers={"Accept": accept}), client.get("/review/1/tile")):
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
        assert "All connections to the database are in use." in answer.text
    ready = client.get("/readyz")
    assert (ready.status_code, ready.json()["reasons"]) == (503, ["All connections to the database are in use."])
    for connection in held:
        connection.close()
    assert client.post("/api/v1/inspect", content=grey(60), headers={"Cookie": ""}).status_code == 200
    site.database.close()


def test_so_it_is_before_anybody_is_let_in(tmp_path: Path) -> None:
    site = made_site(tmp_path, host="0.0.0.0")
    users.add(site.database, "ada", "admin", "a password")
    client = client_of(site, AWAY)
    assert log_in(client, "ada", "a password").status_code == 303
    site.database.engine.pool._timeout = 0.2  # type: ignore[attr-defined]
    held = [site.database.engine.connect() for _ in range(20)]
    answer = client.get("/account", headers={"Accept": "text/html"})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
    for connection in held:
        connection.close()
    site.database.close()


@pytest.mark.parametrize("key", ["", "k"])
@pytest.mark.parametrize(
    "trouble",
    [
        OperationalError("insert", {}, sqlite3.OperationalError("database is locked")),
        OSError(errno.ENOSPC, "No space left on device"),
        UnavailableError("2.png: cannot be judged now (out of memory); try again."),
    ],
)
def test_an_error_says_what_is_recorded_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: Exception, key: str
) -> None:
    """ "Nothing was recorded" was said of a form whose first images had verdicts: who sent it again had them twice."""
    site = made_site(tmp_path)
    client, judge, away = client_of(site), site.line.inspect, [0, 2]

    def inspect(*given: Any, **more: Any) -> Any:
        away[0] += 1
        if away[0] > away[1]:
            raise trouble
        return judge(*given, **more)

    monkeypatch.setattr(site.line, "inspect", inspect)
    files = [("images", (f"{value}.png", grey(value))) for value in (60, 61, 62)]
    headers = {"Idempotency-Key": key} if key else {}
    said = client.post("/api/v1/inspect", files=files, headers=headers).json()["error"]["message"]
    assert "Nothing was recorded" not in said
    again = (
        "sent again with the same Idempotency-Key, it records none of them twice"
        if key
        else "send only the others again"
    )
    assert said.endswith(f"The first 2 images of the request are recorded; {again}.")
    none = client.post("/inspect", files=files).json()["error"]["message"]
    assert "of the request" not in none
    away[1] = 99
    sent = client.post("/api/v1/inspect", files=files if key else files[2:], headers=headers)
    assert [one["name"] for one in sent.json()][-1] == "62.png"
    assert len(client.get("/api/v1/verdicts").json()["verdicts"]) == 3
    site.database.close()


def test_what_sqlite_cannot_take_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    site = made_site(tmp_path)
    client = client_of(site)
    client.app.add_api_route("/number", number)  # type: ignore[attr-defined]
    answer = client.get("/number")
    assert answer.status_code == 422
    assert "A number is too large" in answer.json()["error"]["message"]
    assert "GET /number" in caplog.text
    site.database.close()


def test_what_postgresql_cannot_take_is_told(tmp_path: Path, postgres: Callable[[], str]) -> None:
    site = made_site(tmp_path, database=postgres(), host="0.0.0.0")
    users.add(site.database, "ada", "admin", "a password")
    client = client_of(site, AWAY)
    assert log_in(client, "a\0da", "a password").status_code == 401
    assert log_in(client, "ada", "a password").status_code == 303
    client.app.add_api_route("/number", number)  # type: ignore[attr-defined]
    client.app.add_api_route("/text", text)  # type: ignore[attr-defined]
    for path in ("/number", "/text"):
        assert client.get(path).status_code == 422
    site.database.close()
