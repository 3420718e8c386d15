"""Those who may log in: their names, roles, passwords (argon2id) and tokens, and how often somebody may try."""

from __future__ import annotations

import ipaddress
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cache

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from sqlalchemy import func, select
from sqlalchemy.orm import Session as Transaction

from blemish.types import BlemishError
from blemish.web import sessions
from blemish.web.access import ROLES, Role
from blemish.web.database import Database
from blemish.web.tables import User, now

SHORTEST, LONGEST = 8, 200  # characters of a password
NAME = 64  # characters of a name at most
# Who did what nobody did: images that were brought in, the watched folder, the start of the server.
RESERVED = ("import", "watch", "blemish serve")
TOKEN = "blemish_"  # what a token begins with, so that one that was published is recognised
WINDOW = 300.0  # seconds in which tries are counted
TRIES = {"pair": 10, "address": 100}  # that failed in the window, of a name from an address, and of all names from it
KEPT = 10_000  # pairs and addresses that are counted at once

_hasher = PasswordHasher()  # argon2id with the parameters of RFC 9106 for 64 MiB
_turn = threading.BoundedSemaphore(2)  # each check takes those 64 MiB


class TooManyError(BlemishError):
    """Too many tries to log in; `seconds` until the next one."""

    def __init__(self, message: str, seconds: int) -> None:
        super().__init__(message)
        self.seconds = seconds


class MissingUserError(BlemishError):
    """Nobody has this name."""


def listed(database: Database) -> Sequence[User]:
    """All users, by name."""
    with database.reading() as session:
        return session.scalars(select(User).order_by(User.name)).all()


def add(database: Database, name: str, role: Role, password: str | None) -> User:
    """A new user; without a password, only a token will let a program in. Raises `BlemishError` where the name is
    taken, or name, role or password will not do."""
    name = checked_name(name)
    hashed = _hashed(password) if password is not None else None
    with database.writing() as session:
        if session.scalar(select(User).where(User.name == name)):
            raise BlemishError(f"There is a user '{name}' already; choose another name.")
        user = User(name=name, role=_checked_role(role), password=hashed, token=None, created=now())
        session.add(user)
    return user


def remove(database: Database, name: str) -> None:
    """Removes a user, with all sessions. What they did keeps their name. Raises `BlemishError` for the last admin."""
    with database.writing() as session:
        user = _found(session, name)
        _keep_an_admin(session, user)
        sessions.end_all(session, user.id)
        session.delete(user)


def set_role(database: Database, name: str, role: Role) -> None:
    """Raises `BlemishError` where there would be no admin left."""
    with database.writing() as session:
        user = _found(session, name)
        if _checked_role(role) != "admin":
            _keep_an_admin(session, user)
        user.role = role


def set_password(database: Database, name: str, password: str) -> None:
    """Changes a password, and ends all sessions of the user."""
    hashed = _hashed(password)
    with database.writing() as session:
        user = _found(session, name)
        user.password = hashed
        sessions.end_all(session, user.id)


def new_token(database: Database, name: str) -> str:
    """A new token, which only its user ever sees; the one before does not count any more."""
    token = TOKEN + sessions.secret()
    with database.writing() as session:
        _found(session, name).token = sessions.digest(token)
    return token


def drop_token(database: Database, name: str) -> None:
    """Their token does not count any more. Raises `MissingUserError`."""
    with database.writing() as session:
        _found(session, name).token = None


def by_token(database: Database, token: str) -> User | None:
    with database.reading() as session:
        return session.scalar(select(User).where(User.token == sessions.digest(token)))


def by_password(database: Database, name: str, password: str) -> User | None:
    """The user of that name, if it is their password. Takes the same time for a name that nobody has."""
    user = None
    if name.isprintable() and len(name) <= NAME:  # as all names are; PostgreSQL takes no NUL
        with database.reading() as session:
            user = session.scalar(select(User).where(User.name == name))
    known = user.password if user and user.password else None
    with _turn:
        try:
            _hasher.verify(known or _nobody(), password[: LONGEST + 1])
        except (VerificationError, InvalidHashError):
            return None
    return user if known else None


def checked_name(name: str) -> str:
    """Raises `BlemishError` for a name that cannot be shown as it is, or that the server writes for itself."""
    name = name.strip()
    if not name or len(name) > NAME or not name.isprintable():
        raise BlemishError(f"A name has 1 to {NAME} characters that can be printed; choose another one.")
    if name.casefold() in RESERVED:
        raise BlemishError(f"'{name}' is a name that blemish itself has in the log; choose another one.")
    return name


class Throttle:
    """Counts the tries to log in that failed, in memory: of each name from each address, so that nobody can lock out
    somebody elsewhere, and of each address. A network of IPv6 (/64) is one address."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._tries: OrderedDict[tuple[str, str, str], list[float]] = OrderedDict()
        self._lock = threading.Lock()

    def count(self, name: str, address: str) -> None:
        """To be called before each try, which counts as failed until `forget`, so that many at once are counted too.
        Raises `TooManyError`, and counts nothing, where there were too many."""
        now = self._clock()
        with self._lock:
            recent = {key: [t for t in self._tries.get(key, ()) if now - t < WINDOW] for key in _keys(name, address)}
            for (kind, *_), times in recent.items():
                if len(times) >= TRIES[kind]:
                    seconds = int(times[0] + WINDOW - now) + 1
                    raise TooManyError(f"Too many tries to log in; wait {seconds} seconds, then try again.", seconds)
            for key, times in recent.items():
                self._tries[key] = [*times, now]
                self._tries.move_to_end(key)
            while len(self._tries) > KEPT:
                self._tries.popitem(last=False)

    def forget(self, name: str, address: str) -> None:
        """To be called when somebody has logged in: their tries from there were none that failed; of the address only
        this one is forgotten, so that a user of one's own does not hide tries of others' names."""
        pair, whole = _keys(name, address)
        with self._lock:
            self._tries.pop(pair, None)
            if times := self._tries.get(whole):
                times.pop()


def _keys(name: str, address: str) -> tuple[tuple[str, str, str], tuple[str, str, str]]:
    network = _network(address)
    return ("pair", network, name[:NAME]), ("address", network, "")


def _network(address: str) -> str:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address[:NAME]
    return str(ipaddress.ip_network((parsed, 64), strict=False)) if parsed.version == 6 else address


def _hashed(password: str) -> str:
    if not SHORTEST <= len(password) <= LONGEST:
        raise BlemishError(f"A password has {SHORTEST} to {LONGEST} characters; choose another one.")
    with _turn:
        return _hasher.hash(password)


@cache
def _nobody() -> str:
    """The hash of a password that nobody knows."""
    return _hasher.hash(sessions.secret())


def _found(session: Transaction, name: str) -> User:
    user = session.scalar(select(User).where(User.name == name))
    if user is None:
        raise MissingUserError(f"There is no user '{name}'; `blemish user` lists them.")
    return user


def _checked_role(role: str) -> str:
    if role not in ROLES:
        raise BlemishError(f"There is no role '{role}'; choose {', '.join(ROLES[:-1])} or {ROLES[-1]}.")
    return role


def _keep_an_admin(session: Transaction, user: User) -> None:
    """Raises `BlemishError` where `user` is the only admin who can log in."""
    others = select(func.count()).select_from(User).where(User.role == "admin", User.id != user.id)
    if user.role == "admin" and not session.scalar(others):
        raise BlemishError(f"'{user.name}' is the last admin; make somebody else an admin first.")
