"""What the database cannot take, or has no connection for, is an answer in words, on SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import select

from blemish.web import users
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
