"""Who may log in, as an admin changes it on the page."""

from __future__ import annotations

import re
from pathlib import Path

from blemish.web import users
from tests.web.support import client_of, csrf_in, log_in, made_site


def test_an_admin_gives_a_new_password_and_nothing_is_done_by_one_key(tmp_path: Path) -> None:
    site = made_site(tmp_path, proxy=True)
    for name, role in (("ada", "admin"), ("eve", "inspector")):
        users.add(site.database, name, role, "a password")  # type: ignore[arg-type]
    ada, eve = client_of(site), client_of(site)
    for client, name in ((ada, "ada"), (eve, "eve")):
        assert log_in(client, name, "a password").status_code == 303
    page = ada.get("/users").text
    assert "data-submits" not in page  # an arrow key on a role, or a slip of the mouse
    assert re.search(r"<details[^>]*><summary[^>]*>Remove</summary>\s*<form", page)
    csrf = csrf_in(page)
    form = {"csrf": csrf, "name": "eve", "new": "another one"}
    assert eve.post("/users/password", data=form | {"csrf": csrf_in(eve.get("/").text)}).status_code == 403
    short = ada.post("/users/password", data=form | {"new": "short"})
    assert (short.status_code, "A password has 8 to 200 characters" in short.text) == (422, True)
    assert ada.post("/users/password", data=form).headers["location"] == "/users?done=reset"
    assert eve.get("/account").status_code == 401  # logged out
    assert log_in(eve, "eve", "a password").status_code == 401
    assert log_in(eve, "eve", "another one").status_code == 303
    own = ada.post("/users/password", data=form | {"name": "ada"})
    assert (own.status_code, "Change your own password under your name" in own.text) == (422, True)
    assert ada.get("/account").status_code == 200
    site.database.close()


def test_a_user_who_cannot_be_added_is_still_in_the_form(tmp_path: Path) -> None:
    site = made_site(tmp_path)
    client = client_of(site)
    users.add(site.database, "ada", "admin", "a password")
    form = {"csrf": csrf_in(client.get("/users").text), "name": "b<ob", "role": "reviewer", "password": "short"}
    page = client.post("/users", data=form).text
    assert "A password has 8 to 200 characters" in page
    added = page[page.index("Add a user") :]
    assert 'name="name" value="b&lt;ob"' in added
    assert "<option selected>reviewer</option>" in added
    site.database.close()
