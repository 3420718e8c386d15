"""Users: their passwords, roles and tokens, the last admin, and how often somebody may try."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from blemish.types import BlemishError
from blemish.web import users, watching
from blemish.web.database import Database
from blemish.web.standing import IMPORT


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'x.sqlite'}")
    database.upgrade()
    yield database
    database.close()


def test_a_password_is_kept_as_argon2id(database: Database) -> None:
    users.add(database, " ada ", "admin", "a password")
    (ada,) = users.listed(database)
    assert (ada.name, ada.role) == ("ada", "admin")
    assert str(ada.password).startswith("$argon2id$v=19$m=65536,t=3,p=4$")
    assert users.by_password(database, "ada", "a password") is not None
    for name, password in (("ada", "a passwort"), ("ada", ""), ("Ada", "a password"), ("bob", "a password")):
        assert users.by_password(database, name, password) is None
    users.set_password(database, "ada", "another one")
    assert users.by_password(database, "ada", "a password") is None
    assert users.by_password(database, "ada", "another one") is not None


def test_a_name_that_nobody_has_takes_as_long(database: Database) -> None:
    users.add(database, "ada", "admin", "a password")
    users.add(database, "line", "inspector", None)  # with a token only

    def seconds(name: str) -> float:
        times = []
        for _ in range(5):
            begun = time.perf_counter()
            users.by_password(database, name, "wrong")
            times.append(time.perf_counter() - begun)
        return min(times)

    seconds("warm")
    known, unknown, without = seconds("ada"), seconds("bob"), seconds("line")
    assert 0.5 < unknown / known < 2
    assert 0.5 < without / known < 2


def test_the_last_admin_stays(database: Database) -> None:
    users.add(database, "ada", "admin", "a password")
    users.add(database, "rolf", "reviewer", "a password")
    with pytest.raises(BlemishError, match="'ada' is the last admin"):
        users.remove(database, "ada")
    with pytest.raises(BlemishError, match="'ada' is the last admin"):
        users.set_role(database, "ada", "reviewer")
    users.set_role(database, "ada", "admin")
    users.set_role(database, "rolf", "admin")
    users.remove(database, "ada")
    assert [one.name for one in users.listed(database)] == ["rolf"]


@pytest.mark.parametrize(
    ("name", "role", "password", "words"),
    [
        ("", "admin", "a password", "1 to 64 characters"),
        ("x" * 65, "admin", "a password", "1 to 64 characters"),
        ("a\x1b[2Jb", "admin", "a password", "1 to 64 characters"),
        ("a\u202eb", "admin", "a password", "1 to 64 characters"),
        (watching.BY, "admin", "a password", "'watch' is a name that blemish itself has"),
        (f" {IMPORT.title()} ", "admin", "a password", "'Import' is a name that blemish itself has"),
        ("ada", "root", "a password", "no role 'root'"),
        ("ada", "admin", "short", "8 to 200 characters"),
        ("ada", "admin", "x" * 201, "8 to 200 characters"),
        ("here", "admin", "a password", "a user 'here' already"),
    ],
)
def test_what_will_not_do(database: Database, name: str, role: str, password: str, words: str) -> None:
    users.add(database, "here", "inspector", "a password")
    with pytest.raises(BlemishError, match=words):
        users.add(database, name, role, password)  # type: ignore[arg-type]


def test_somebody_who_is_not_there(database: Database) -> None:
    for act in (users.remove, users.new_token):
        with pytest.raises(users.MissingUserError, match="no user 'bob'"):
            act(database, "bob")


def test_tries_that_fail_are_counted_by_name_and_address() -> None:
    now = [0.0]
    throttle = users.Throttle(lambda: now[0])
    for _ in range(users.TRIES["pair"]):
        throttle.count("ada", "10.0.0.1")
    with pytest.raises(users.TooManyError, match="wait 301 seconds"):
        throttle.count("ada", "10.0.0.1")
    throttle.count("ada", "10.0.1.1")  # who is elsewhere is not locked out
    throttle.count("bob", "10.0.0.1")
    now[0] = users.WINDOW
    throttle.count("ada", "10.0.0.1")  # all tries before are too old
    for number in range(users.TRIES["address"]):
        throttle.count(f"name {number}", f"2001:db8::{number:x}")  # one network
    with pytest.raises(users.TooManyError):
        throttle.count("another", "2001:db8::ffff")
    throttle.count("another", "2001:db8:0:1::1")


def test_right_logins_are_not_counted_and_hide_no_others() -> None:
    throttle = users.Throttle(lambda: 0.0)
    for _ in range(3 * users.TRIES["address"]):
        throttle.count("ada", "10.0.0.1")
        throttle.forget("ada", "10.0.0.1")
    for number in range(users.TRIES["address"]):
        with nullcontext() if number + 1 < users.TRIES["address"] else pytest.raises(users.TooManyError):
            throttle.count(f"name {number}", "10.0.0.1")
            throttle.count("eve", "10.0.0.1")
            throttle.forget("eve", "10.0.0.1")  # her own password is right


def test_what_is_counted_takes_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(users, "KEPT", 100)
    throttle = users.Throttle()
    for number in range(500):
        throttle.count(
            "x" * 10_000 + str(number), f"10.0.{number // 250}.{number % 250}" if number < 9 else str(number)
        )
        throttle.forget("x" * 10_000, "1")
    assert len(throttle._tries) <= 100
    assert all(len(name) <= users.NAME for _, *names in throttle._tries for name in names)
