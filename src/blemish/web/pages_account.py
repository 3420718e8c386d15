"""Logging in and out, one's own name or password, and who else may log in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from blemish.types import BlemishError
from blemish.web import sessions, users
from blemish.web.access import ROLES, Administering, Inspecting, Role, Visitor
from blemish.web.guard import local_path, set_cookie
from blemish.web.site import MissingError, ProductOf, Site, SiteOf, fragment, page

router = APIRouter(include_in_schema=False)
Text = Annotated[str, Form(max_length=1000)]
Done = Annotated[str, Query(max_length=20)]
WRONG = "Name or password is wrong."
# What was done, by the word in the address to which a form leads.
SAID = {
    "name": "Your name is saved; it stands in the log from now on.",
    "password": "Your password is changed, and you are logged out everywhere else.",
    "added": "The user is added.",
    "role": "The role is changed.",
    "reset": "The new password is set, and they are logged out everywhere. They can change it under their name.",
    "removed": "The user is removed.",
}


@router.get("/login")
def login_page(request: Request, site: SiteOf, after: Annotated[str, Query(alias="next")] = "/") -> Response:
    if site.config.local:
        return RedirectResponse("/", 303)
    return _login(request, after)


@router.post("/login")
def login(
    request: Request,
    site: SiteOf,
    name: Text = "",
    password: Text = "",
    after: Annotated[str, Form(alias="next", max_length=2000)] = "/",
) -> Response:
    address = request.client.host if request.client else ""
    throttle: users.Throttle = request.app.state.throttle
    try:
        throttle.count(name, address)
    except users.TooManyError as cause:
        response = _login(request, after, name, str(cause), 429)
        response.headers["Retry-After"] = str(cause.seconds)
        return response
    user = users.by_password(site.database, name, password)
    if user is None:
        return _login(request, after, name, WRONG, 401)
    throttle.forget(name, address)
    # The secret that the browser had is not taken over: somebody else may have set it.
    sessions.end(site.database, request.state.cookie)
    done = RedirectResponse(local_path(after), 303)
    set_cookie(done, request, sessions.begin(site.database, user_id=user.id))
    return done


def _login(request: Request, after: str, name: str = "", trouble: str = "", status: int = 200) -> HTMLResponse:
    words = {"csrf": request.state.csrf, "next": local_path(after), "name": name, "trouble": trouble}
    return HTMLResponse(fragment("login.html", **words), status)


@router.post("/logout")
def logout(request: Request, site: SiteOf, who: Inspecting) -> Response:  # noqa: ARG001
    sessions.end(site.database, request.state.cookie)
    done = RedirectResponse("/login", 303)
    done.delete_cookie(sessions.cookie_name(request), httponly=True, samesite="lax")
    return done


@router.get("/account")
def account(request: Request, site: SiteOf, who: Inspecting, product: ProductOf, done: Done = "") -> HTMLResponse:
    return _account(request, site, who, product, SAID.get(done, ""))


def _account(
    request: Request, site: Site, who: Visitor, product: str, said: str = "", trouble: str = "", status: int = 200
) -> HTMLResponse:
    words = {"said": said, "trouble": trouble, "shortest": users.SHORTEST, "local": site.config.local}
    return page(request, "account.html", product=product, status=status, here=who, **words)


@router.post("/account/name")
def rename(request: Request, site: SiteOf, who: Inspecting, product: ProductOf, name: Text = "") -> Response:
    """On loopback: the name that stands beside what one does."""
    if not site.config.local or who.user_id is not None:
        raise MissingError("A user's name is given by an admin; ask for a new user.")
    try:
        name = users.checked_name(name)
    except BlemishError as cause:
        return _account(request, site, who, product, trouble=str(cause), status=422)
    sessions.end(site.database, request.state.cookie)
    done = RedirectResponse("/account?done=name", 303)
    set_cookie(done, request, sessions.begin(site.database, name=name, lasts=sessions.YEAR))
    return done


@router.post("/account/password")
def change_password(
    request: Request,
    site: SiteOf,
    who: Inspecting,
    product: ProductOf,
    password: Text = "",
    new: Text = "",
    again: Text = "",
) -> Response:
    """Changes one's own password, which takes the one of today."""
    if who.user_id is None:
        raise MissingError("Nobody has a password here, as only this machine can reach it.")
    throttle: users.Throttle = request.app.state.throttle
    address = request.client.host if request.client else ""
    throttle.count(who.name, address)
    if users.by_password(site.database, who.name, password) is None:
        return _account(request, site, who, product, trouble="Your present password is another one.", status=422)
    throttle.forget(who.name, address)
    try:
        if new != again:
            raise BlemishError("The new password was not typed the same twice.")
        users.set_password(site.database, who.name, new)
    except BlemishError as cause:
        return _account(request, site, who, product, trouble=str(cause), status=422)
    done = RedirectResponse("/account?done=password", 303)
    set_cookie(done, request, sessions.begin(site.database, user_id=who.user_id))
    return done


@router.get("/users")
def users_page(request: Request, site: SiteOf, who: Administering, product: ProductOf, done: Done = "") -> HTMLResponse:
    return _users(request, site, who, product, said=SAID.get(done, ""))


def _users(
    request: Request,
    site: Site,
    who: Visitor,
    product: str,
    *,
    said: str = "",
    trouble: str = "",
    name: str = "",
    role: Role = "inspector",
) -> HTMLResponse:
    """`name` and `role` of the user who could not be added, to be mended."""
    words = {"said": said, "trouble": trouble, "name": name, "role": role, "roles": ROLES, "shortest": users.SHORTEST}
    listed, status = users.listed(site.database), 422 if trouble else 200
    return page(request, "users.html", product=product, status=status, here=who, listed=listed, **words)


def _changed(
    request: Request, site: Site, who: Visitor, product: str, done: str, change: Callable[[], None], **typed: Any
) -> Response:
    """Makes a change and leads back to the page, which says what was `done`, or why not, with what was `typed`."""
    try:
        change()
    except BlemishError as cause:
        return _users(request, site, who, product, trouble=str(cause), **typed)
    return RedirectResponse(f"/users?done={done}", 303)


@router.post("/users")
def add(
    request: Request,
    site: SiteOf,
    who: Administering,
    product: ProductOf,
    name: Text = "",
    role: Annotated[Role, Form()] = "inspector",
    password: Text = "",
) -> Response:
    def change() -> None:
        users.add(site.database, name, role, password)

    return _changed(request, site, who, product, "added", change, name=name, role=role)


@router.post("/users/role")
def change_role(
    request: Request,
    site: SiteOf,
    who: Administering,
    product: ProductOf,
    name: Text = "",
    role: Annotated[Role, Form()] = "inspector",
) -> Response:
    return _changed(request, site, who, product, "role", lambda: users.set_role(site.database, name, role))


@router.post("/users/password")
def reset_password(
    request: Request, site: SiteOf, who: Administering, product: ProductOf, name: Text = "", new: Text = ""
) -> Response:
    """For somebody who forgot theirs; one's own takes the one of today, see `change_password`."""

    def change() -> None:
        if name == who.name and who.user_id is not None:
            raise BlemishError("Change your own password under your name, at the top.")
        users.set_password(site.database, name, new)

    return _changed(request, site, who, product, "reset", change)


@router.post("/users/remove")
def remove(request: Request, site: SiteOf, who: Administering, product: ProductOf, name: Text = "") -> Response:
    return _changed(request, site, who, product, "removed", lambda: users.remove(site.database, name))
