"""Who is there, remembered by the server: a cookie with a random secret, of which the database has only the SHA-256.

The token against forged requests (CSRF) follows from the secret by HMAC: it is bound to the cookie, needs no place of
its own, and tells nothing about the secret.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from datetime import UTC, datetime, timedelta

from fastapi import Request
from sqlalchemy import delete
from sqlalchemy.orm import Session as Transaction

from blemish.web.database import Database
from blemish.web.tables import Session, User, now

SHIFT = timedelta(hours=12)  # after which one logs in again
YEAR = timedelta(days=365)  # that a browser on the same machine keeps its name


def secret() -> str:
    """256 random bits, as text for a cookie or a token."""
    return secrets.token_urlsafe(32)


def digest(text: str) -> str:
    """What the database keeps of a secret."""
    return hashlib.sha256(text.encode()).hexdigest()


def csrf_of(cookie: str) -> str:
    """The token that goes with a cookie; "" without one."""
    return hmac.new(cookie.encode(), b"csrf", hashlib.sha256).hexdigest() if cookie else ""


def cookie_name(request: Request) -> str:
    """Browsers give one machine's cookies to all its ports, and each port may have a server of its own."""
    port = request.url.port
    return f"blemish-{port}" if port else "blemish"


def begin(database: Database, *, user_id: int | None = None, name: str = "", lasts: timedelta = SHIFT) -> str:
    """A new session, of a user or with a name; returns its secret. Those that are over are removed."""
    cookie = secret()
    expires = (datetime.now(UTC) + lasts).isoformat(timespec="milliseconds")
    with database.writing() as session:
        session.execute(delete(Session).where(Session.expires < now()))
        session.add(Session(id=digest(cookie), user_id=user_id, name=name, expires=expires))
    return cookie


def found(database: Database, cookie: str) -> tuple[Session, User | None] | None:
    """The session of a cookie that is not over, and its user."""
    with database.reading() as session:
        row = session.get(Session, digest(cookie))
        if row is None or row.expires < now():
            return None
        return row, session.get(User, row.user_id) if row.user_id else None


def end(database: Database, cookie: str) -> None:
    """Logs out."""
    with database.writing() as session:
        session.execute(delete(Session).where(Session.id == digest(cookie)))


def end_all(session: Transaction, user_id: int) -> None:
    """Logs a user out everywhere."""
    session.execute(delete(Session).where(Session.user_id == user_id))
