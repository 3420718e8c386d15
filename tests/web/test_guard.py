"""Who may come in: real requests to the real application, as a browser, a program or a stranger's page sends them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter
from fastapi.routing import iter_route_contexts
from fastapi.testclient import TestClient
from starlette.routing import Mount

from blemish.web import guard, sessions, tables, users
from blemish.web.guard import OPEN, local_path
from blemish.web.site import Site
from tests.web.support import HERE, client_of, csrf_in, grey, log_in, made_site

PASSWORDS = {"ines": "inspector's", "rolf": "reviewer's", "ada": "admin's own"}
ROLES = dict(zip(PASSWORDS, ("inspector", "reviewer", "admin"), strict=True))
COOKIE = "blemish-8477"
AWAY = "http://line.example:8477"
HTML = {"Accept": "text/html"}


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = made_site(tmp_path_factory.mktemp("local"))
    yield site
    site.database.close()


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Where people log in: ines, rolf and ada."""
    site = made_site(tmp_path_factory.mktemp("remote"), host="0.0.0.0")
    for name, password in PASSWORDS.items():
        users.add(site.database, name, ROLES[name], password)  # type: ignore[arg-type]
    yield site
    site.database.close()


def logged_in(site: Site, name: str) -> TestClient:
    client = client_of(site, AWAY)
    assert log_in(client, name, PASSWORDS[name]).status_code == 303
    return client


# On loopback


def test_a_program_on_this_machine_may_send_an_image_at_once(local: Site) -> None:
    answer = client_of(local).post("/api/v1/inspect?product=tiny", content=grey(50))
    assert answer.status_code == 200
    assert answer.json()[0]["decision"] == "good"


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:3000"},  # another server of the same machine
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": HERE},  # ours, but without cookie and token
        {"Sec-Fetch-Site": "same-origin"},
    ],
)
def test_a_page_of_a_stranger_cannot_write(local: Site, headers: dict[str, str]) -> None:
    answer = client_of(local).post("/api/v1/inspect?product=tiny", content=grey(50), headers=headers)
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "forbidden"


@pytest.mark.parametrize("host", ["localhost", "localhost:8477", "127.0.0.1:1", "[::1]:8477", "LOCALHOST"])
def test_this_machine_has_three_names(local: Site, host: str) -> None:
    assert client_of(local).get("/", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80", "::1", "", "a@localhost"]
)
@pytest.mark.parametrize("path", ["/", "/api/v1/verdicts/1", "/static/app.js", "/login", "/healthz"])
def test_a_name_that_was_bent_to_this_machine_gets_nothing(local: Site, host: str, path: str) -> None:
    answer = client_of(local).get(path, headers={"Host": host})
    assert answer.status_code == 403
    assert "another name" in answer.text


def test_a_browser_writes_with_the_token_of_its_page(local: Site) -> None:
    client = client_of(local)
    csrf = csrf_in(client.get("/", headers=HTML).text)
    browser = {"Origin": HERE, "Sec-Fetch-Site": "same-origin"}
    form: dict[str, Any] = {"files": {"images": ("a.png", grey(50))}, "headers": browser}
    assert client.post("/inspect?product=tiny", data={"csrf": csrf}, **form).status_code == 303
    assert client.post("/inspect?product=tiny", data={"csrf": csrf[:-1] + "x"}, **form).status_code == 403
    assert client.post("/inspect?product=tiny", **form).status_code == 403
    script = {"X-CSRF-Token": csrf, **browser}
    assert client.post("/api/v1/inspect?product=tiny", content=grey(50), headers=script).status_code == 200
    # With a cookie it is a browser, whatever it leaves out.
    assert client.post("/api/v1/inspect?product=tiny", content=grey(50)).status_code == 403
    other = csrf_in(client_of(local).get("/").text)
    assert client.post("/inspect?product=tiny", data={"csrf": other}, **form).status_code == 403


def test_the_token_must_be_the_first_field_of_a_form_with_files(local: Site) -> None:
    client = client_of(local)
    csrf = csrf_in(client.get("/").text)
    head = {"Content-Type": "multipart/form-data; boundary=b"}

    def field(name: str, value: str) -> str:
        return f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'

    late = field("images", "x" * 200_000) + field("csrf", csrf) + "--b--\r\n"
    assert client.post("/inspect", content=late, headers=head).status_code == 403
    assert client.post("/inspect", content=b"--c", headers=head).status_code == 403
    assert client.post("/inspect", content=b"", headers={"Content-Type": "multipart/form-data"}).status_code == 403
    early = field("csrf", csrf) + field("images", "no file") + "--b--\r\n"
    assert client.post("/inspect", content=early, headers=head).status_code == 422  # it came to the route


def test_a_large_form_arrives_whole_after_the_check(local: Site) -> None:
    """The first blocks were read to find the token; the route gets them again, and the rest."""
    client = client_of(local)
    csrf = csrf_in(client.get("/").text)
    rng = grey(60) + b"\0" * 3_000_000  # what stands after the end of a PNG is not decoded
    files = [("images", (f"{i}.png", rng)) for i in range(3)]
    before = client.get("/api/v1/verdicts/1").status_code
    assert client.post("/inspect?product=tiny", data={"csrf": csrf}, files=files).status_code == 303
    assert before == 200
    from blemish.web.store import sha256

    assert local.store.image(sha256(rng), ".png").read_bytes() == rng


def test_a_name_is_kept_in_a_session_of_its_own(local: Site) -> None:
    client = client_of(local)
    page = client.get("/account").text
    csrf = csrf_in(page)
    before = client.cookies[COOKIE]
    assert client.post("/account/name", data={"csrf": csrf, "name": " Ines P. "}).status_code == 303
    assert client.cookies[COOKIE] != before
    page = client.get("/account").text
    assert "<h1>Ines P.</h1>" in page
    sent = client.post("/api/v1/inspect", content=grey(70), headers={"X-CSRF-Token": csrf_in(page)})
    assert sent.json()[0]["by"] == "Ines P."
    for bad in ("", "  ", "a\nb", "x" * 65):
        assert client.post("/account/name", data={"csrf": csrf_in(page), "name": bad}).status_code == 422
    assert client_of(local).get("/account").text.count("Ines P.") == 0
    assert client.post("/account/password", data={"csrf": csrf_in(page)}).status_code == 404


# Where people log in


def test_pages_lead_to_the_login_and_programs_are_told(remote: Site) -> None:
    client = client_of(remote, AWAY)
    answer = client.get("/history?decision=anomaly&before=5", headers=HTML)
    assert answer.status_code == 303
    assert answer.headers["location"] == "/login?next=/history%3Fdecision%3Danomaly%26before%3D5"
    answer = client.get("/api/v1/verdicts/1", headers=HTML)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"] == {
        "code": "unauthorized",
        "message": "Log in first; a program sends its token as `Authorization: Bearer TOKEN`.",
    }


def test_somebody_logs_in_and_out(remote: Site) -> None:
    client = client_of(remote, AWAY)
    form = client.get("/login?next=/account")
    planted = client.cookies[COOKIE]
    assert "httponly" in form.headers["set-cookie"].lower()
    assert "samesite=lax" in form.headers["set-cookie"].lower()
    assert "secure" not in form.headers["set-cookie"].lower()  # it came by http
    done = log_in(client, "ines", PASSWORDS["ines"], "/account")
    assert (done.status_code, done.headers["location"]) == (303, "/account")
    cookie = client.cookies[COOKIE]
    assert cookie != planted  # one that somebody planted is not logged in
    assert sessions.found(remote.database, planted) is None
    with remote.database.reading() as session:
        assert cookie not in str(session.execute(tables.Session.__table__.select()).all())
    page = client.get("/account").text
    assert "Your role is inspector." in page
    assert client.post("/logout", data={"csrf": csrf_in(page)}).status_code == 303
    client.cookies.set(COOKIE, cookie)
    assert client.get("/account").status_code == 401


@pytest.mark.parametrize(
    ("name", "password"), [("ines", "reviewer's"), ("nobody", "inspector's"), ("", ""), ("ines", "")]
)
def test_a_wrong_login_does_not_say_what_was_wrong(tmp_path: Path, remote: Site, name: str, password: str) -> None:
    client = client_of(remote, AWAY)
    answer = log_in(client, name, password)
    assert answer.status_code == 401
    assert "Name or password is wrong." in answer.text
    assert client.get("/account").status_code == 401


def test_the_login_itself_needs_the_token(remote: Site) -> None:
    """Else a stranger's page could log somebody in as the stranger."""
    client = client_of(remote, AWAY)
    fields = {"name": "ines", "password": PASSWORDS["ines"]}
    assert client.post("/login", data=fields).status_code == 403
    client.get("/login")
    assert client.post("/login", data=fields).status_code == 403


def test_too_many_tries_are_told_to_wait(tmp_path: Path) -> None:
    site = made_site(tmp_path, host="0.0.0.0")
    client = client_of(site, AWAY)
    users.add(site.database, "ada", "admin", "a password")
    for _ in range(2 * users.TRIES["pair"]):  # those that are right are not counted
        client.cookies.clear()
        assert log_in(client, "ada", "a password").status_code == 303
    client.cookies.clear()
    answers = [log_in(client, "ada", "wrong") for _ in range(users.TRIES["pair"] + 1)]
    assert [answer.status_code for answer in answers] == [401] * users.TRIES["pair"] + [429]
    assert log_in(client, "a\0da", "wrong").status_code == 401
    assert 0 < int(answers[-1].headers["retry-after"]) <= users.WINDOW + 1
    assert re.search(r"wait \d+ seconds", answers[-1].text)
    site.database.close()


@pytest.mark.parametrize(
    ("given", "gone"),
    [
        ("/history?before=5", "/history?before=5"),
        ("//evil.example", "/"),
        ("/\\evil.example", "/"),
        ("\\\\evil.example", "/"),
        ("/\t/evil.example", "/"),
        ("/\n/evil.example", "/"),
        (" //evil.example", "/"),
        ("https://evil.example/", "/"),
        ("javascript:alert(1)", "/"),
        ("evil.example", "/"),
        ("", "/"),
    ],
)
def test_the_login_leads_nowhere_else(remote: Site, given: str, gone: str) -> None:
    assert local_path(given) == gone
    if given in ("//evil.example", "/history?before=5"):
        assert log_in(client_of(remote, AWAY), "rolf", PASSWORDS["rolf"], given).headers["location"] == gone


def test_a_token_lets_a_program_in_without_cookie_or_csrf(remote: Site) -> None:
    token = users.new_token(remote.database, "ines")
    head = {"Authorization": f"Bearer {token}"}
    answer = client_of(remote, AWAY).post("/api/v1/inspect?product=tiny", content=grey(50), headers=head)
    assert (answer.status_code, answer.json()[0]["by"]) == (200, "ines")
    with remote.database.reading() as session:
        assert token not in str(session.execute(tables.User.__table__.select()).all())
    wrong = {"Authorization": f"Bearer {token}x"}
    assert client_of(remote, AWAY).get("/api/v1/verdicts/1", headers=wrong).status_code == 401
    users.new_token(remote.database, "ines")
    assert client_of(remote, AWAY).get("/api/v1/verdicts/1", headers=head).status_code == 401
    # It does not open the login's form, which is for browsers.
    assert client_of(remote, AWAY).post("/login", headers=head, data={"name": "ines"}).status_code == 403


def test_a_session_ends_with_its_user_its_password_and_its_time(remote: Site) -> None:
    users.add(remote.database, "tom", "admin", "a password")
    client = client_of(remote, AWAY)
    assert log_in(client, "tom", "a password").status_code == 303
    users.set_role(remote.database, "tom", "inspector")
    assert client.get("/users").status_code == 403
    users.set_password(remote.database, "tom", "another one")
    assert client.get("/account").status_code == 401
    assert log_in(client, "tom", "another one").status_code == 303
    with remote.database.writing() as session:
        row = session.get_one(tables.Session, sessions.digest(client.cookies[COOKIE]))
        row.expires = "2026-01-01T00:00:00.000+00:00"
    assert client.get("/account").status_code == 401
    assert log_in(client, "tom", "another one").status_code == 303
    users.remove(remote.database, "tom")
    assert client.get("/account").status_code == 401


def test_behind_a_proxy_its_headers_are_believed(tmp_path: Path) -> None:
    site = made_site(tmp_path, proxy=True)  # on loopback, but others come through it
    client = client_of(site, "http://127.0.0.1:8477")
    said = {"X-Forwarded-Proto": "http, https", "X-Forwarded-For": "1.1.1.1, 2.2.2.2", **HTML}
    assert client.get("/", headers=said).status_code == 303
    assert "secure" in client.get("/login", headers=said).headers["set-cookie"].lower()
    assert "secure" not in client.get("/login", headers=HTML).headers["set-cookie"].lower()
    site.database.close()


def test_a_port_that_a_proxy_adds_is_nobody_else() -> None:
    for said, who in (("1.1.1.1, 2.2.2.2:51", "2.2.2.2"), ("[::1]:51", "::1"), ("f::1", "f::1"), ("2.2.2.2",) * 2):
        scope: dict[str, Any] = {"headers": [(b"x-forwarded-for", said.encode())]}
        guard._believe(scope)
        assert scope["client"] == (who, 0)


def test_without_a_proxy_its_headers_are_not_believed(remote: Site) -> None:
    answer = client_of(remote, AWAY).get("/login", headers={"X-Forwarded-Proto": "https"})
    assert "secure" not in answer.headers["set-cookie"].lower()


# All routes


def routes_of(client: TestClient) -> list[Any]:
    """All routes of the application, with those of its routers."""
    found = []
    for route in iter_route_contexts(client.app.routes):  # type: ignore[attr-defined]
        if isinstance(route.original_route, Mount):
            assert route.original_route.path in OPEN, "a mounted folder is not checked by role"
        elif route.path and route.path not in OPEN and not route.path.startswith("/static/"):
            found.append(route)
    assert len(found) > 15
    return found


def filled(route: Any) -> str:
    """An address of the route."""
    return re.sub(r"\{[^}]*\}", "1", route.path)


def role_of(route: Any) -> str:
    """The role that one of its dependencies asks for, "" for none."""
    if route.path == "/api/v1/openapi.json":  # FastAPI's own; any role may read it
        return "inspector"
    waiting = list(route.dependant.dependencies)
    while waiting:
        one = waiting.pop()
        if getattr(one.call, "__qualname__", "").startswith("_least."):
            return str(one.call.__closure__[0].cell_contents)
        waiting += one.dependencies
    return ""


def test_every_route_is_closed_to_those_who_are_not_logged_in(remote: Site) -> None:
    client = client_of(remote, AWAY)
    for route in routes_of(client):
        assert role_of(route), f"{route.path}: take Inspecting, Reviewing or Administering as a parameter"
        for method in route.methods:
            assert client.request(method, filled(route)).status_code == 401, f"{method} {route.path}"
            page = client.request(method, filled(route), headers=HTML)
            assert page.status_code in (401, 303), f"{method} {route.path}"
            assert page.status_code == 401 or page.headers["location"].startswith("/login")


def test_every_route_that_writes_needs_the_token(remote: Site) -> None:
    client = logged_in(remote, "ada")
    for route in routes_of(client):
        for method in route.methods - {"GET", "HEAD", "OPTIONS"}:
            for token in (None, b"0" * 64, b"", b"\xe9"):
                headers: list[tuple[bytes, bytes]] = [] if token is None else [(b"X-CSRF-Token", token)]
                answer = client.request(method, filled(route), headers=headers)
                assert answer.status_code == 403, f"{method} {route.path}"


def test_every_route_is_closed_to_lesser_roles(remote: Site) -> None:
    order = list(ROLES.values())
    for name, role in (("ines", "inspector"), ("rolf", "reviewer")):
        client = logged_in(remote, name)
        token = {"X-CSRF-Token": csrf_in(client.get("/account").text)}
        higher = [route for route in routes_of(client) if order.index(role_of(route)) > order.index(role)]
        assert higher
        for route in higher:
            for method in route.methods:
                answer = client.request(method, filled(route), headers=token)
                assert answer.status_code == 403, f"{role}: {method} {route.path}"
                assert "This takes the role" in answer.text


def test_no_route_that_reads_is_also_one_that_writes(remote: Site) -> None:
    for route in routes_of(client_of(remote, AWAY)):
        assert len(route.methods - {"HEAD", "OPTIONS"}) == 1, route.path


def test_roles_go_as_far_as_they_say(remote: Site) -> None:
    """An inspector's path, a reviewer's, and an admin's, each as all three."""
    router = APIRouter()
    from blemish.web.access import Administering, Inspecting, Reviewing

    for path, kind in (("inspector", Inspecting), ("reviewer", Reviewing), ("admin", Administering)):

        def answer(who: kind) -> str:  # type: ignore[valid-type]
            return str(who.name)  # type: ignore[attr-defined]

        answer.__annotations__["who"] = kind
        router.get(f"/for/{path}")(answer)
    order = list(ROLES.values())
    for name, role in ROLES.items():
        client = logged_in(remote, name)
        client.app.include_router(router)  # type: ignore[attr-defined]
        for wanted in order:
            allowed = order.index(role) >= order.index(wanted)
            assert client.get(f"/for/{wanted}").status_code == (200 if allowed else 403), (role, wanted)
    assert logged_in(remote, "rolf").get("/users").status_code == 403
    assert logged_in(remote, "ada").get("/users").status_code == 200
