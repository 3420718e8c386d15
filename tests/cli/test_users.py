"""`blemish user`: who may log in, from the command line."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from blemish.web import users
from blemish.web.config import ServeConfig
from blemish.web.database import Database
from blemish.web.opening import opened
from tests.support import blemish, refused


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command reads a line from a pipe."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("a password\nanother one\n"))


def test_a_user_from_first_to_last(tmp_path: Path, typed: None) -> None:
    data = tmp_path / "page"
    added = blemish("user", "ada", "--role", "admin", "--data", data)
    assert added.stdout == "ada: added as admin.\n"
    assert added.stderr == f"{data}: was made for a new page; start it with: blemish serve --data {data}\n"
    database = Database(ServeConfig(data).url)
    assert users.by_password(database, "ada", "a password")
    assert blemish("user", "ada", "--password", "--data", data).stdout.startswith("ada: has a new password")
    assert users.by_password(database, "ada", "another one")
    token = blemish("user", "line 3", "--token", "--data", data)
    assert (token.stdout.count("\n"), token.stderr) == (1, "line 3: added as inspector.\n")
    found = users.by_token(database, token.stdout.strip())
    assert found is not None
    assert (found.name, found.password) == ("line 3", None)
    blemish("user", "line 3", "--role", "reviewer", "--data", data)
    today = found.created[:10]
    assert blemish("user", "--data", data).stdout.splitlines() == [
        f"ada: admin, since {today}, logs in with password",
        f"line 3: reviewer, since {today}, logs in with token",
    ]
    assert blemish("user", "line 3", "--no-token", "--data", data).stdout == "line 3: has no token any more.\n"
    assert users.by_token(database, token.stdout.strip()) is None
    assert "line 3: reviewer" in blemish("user", "--data", data).stdout
    assert blemish("user", "line 3", "--remove", "--data", data).stdout == "line 3: removed.\n"
    database.close()


def test_a_folder_is_made_for_a_first_user_alone(tmp_path: Path, typed: None) -> None:
    data = tmp_path / "pgae"
    sentence = f"{data}: is no folder of `blemish serve`; give the one of its --data."
    assert refused("user", "--data", data) == sentence
    assert refused("user", "ada", "--remove", "--data", data) == sentence
    assert refused("user", "a" * 65, "--data", data).startswith("A name has 1 to 64 characters")
    assert not data.exists()
    data.mkdir()
    assert refused("user", "--data", data) == sentence
    assert list(data.iterdir()) == []


def test_nobody_may_log_in_to_a_page_of_one_machine(tmp_path: Path) -> None:
    data = tmp_path / "page"
    with opened(ServeConfig(data)):  # as `blemish serve` makes it
        pass
    assert "Nobody may log in yet." in blemish("user", "--data", data).stdout


def test_what_is_refused(tmp_path: Path, typed: None) -> None:
    data = tmp_path / "page"
    blemish("user", "ada", "--role", "admin", "--data", data)
    assert refused("user", "ada", "--data", data).startswith("'ada' is a user already;")
    assert refused("user", "ada", "--remove", "--data", data).startswith("'ada' is the last admin;")
    assert refused("user", "bob", "--remove", "--data", data).startswith("There is no user 'bob';")
    assert refused("user", "bob", "--no-token", "--data", data).startswith("There is no user 'bob';")
    assert refused("user", "ada", "--no-token", "--token", "--data", data).endswith("give one of them.")
    assert refused("user", "--token", "--data", data) == "Whose? Give a name."
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").write_text("x")
    assert "was not written by this version of blemish" in refused("user", "ada", "--data", tmp_path / "other")


def test_a_password_is_typed_twice_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["a password", "a passwort", "a password", "a password"])
    monkeypatch.setattr("blemish.cli.users.getpass", lambda _: next(answers))
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    assert "not typed the same twice" in refused("user", "ada", "--data", tmp_path / "page")
    assert blemish("user", "ada", "--data", tmp_path / "page").stdout == "ada: added as inspector.\n"


def test_serving_others_needs_somebody_who_can_log_in(tmp_path: Path) -> None:
    sentence = refused("serve", "--data", tmp_path / "page", "--host", "0.0.0.0", "--port", "0")
    assert sentence.endswith(f"make the first user with: blemish user NAME --role admin --data {tmp_path / 'page'}.")
