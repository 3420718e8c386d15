"""Who may come in: every request is checked here before any route is called, so that a new route is closed by itself.

On loopback nobody logs in, and everybody is an admin. So that no page of a stranger in the same browser can act for
them, the Host header must name this machine (against DNS rebinding), and what writes must come from a page of ours.
Elsewhere people log in, and programs have tokens.

What writes (all but GET, HEAD and OPTIONS) needs the token of the visitor's cookie, in the header X-CSRF-Token or as
the field `csrf` of a form: the first one of a multipart form, since no more of its body is read here. A program needs
none that sends a bearer token or, on loopback, neither a cookie nor what a browser adds to every request that writes.
"""

from __future__ import annotations

import getpass
import hmac
import re
from functools import cache
from http import HTTPStatus
from urllib.parse import quote, urlsplit

from fastapi import Request
from fastapi.responses import RedirectResponse, Response
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from blemish.types import BlemishError
from blemish.web import answers, sessions, users
from blemish.web.access import ForbiddenError, LoginError, Visitor
from blemish.web.config import LOOPBACK
from blemish.web.form_token import form_token
from blemish.web.site import Site

OPEN = ("/static", "/login", "/healthz", "/readyz")
SAFE = ("GET", "HEAD", "OPTIONS")
LOGIN = "/login"
STALE = "The page is out of date, or was not made by this server; load it again, and try once more."


class Guard:
    """The middleware; `site` is that of the application inside."""

    def __init__(self, app: ASGIApp, site: Site) -> None:
        self.app, self.site = app, site

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if self.site.config.proxy:
            _believe(scope)
        request = Request(scope, receive)
        name = sessions.cookie_name(request)
        cookie = request.cookies.get(name, "")
        given = cookie or sessions.secret()
        request.state.csrf, request.state.cookie = sessions.csrf_of(given), cookie
        try:
            receive = await self._admitted(request, receive, cookie)
        except BlemishError as cause:
            refusal = await run_in_threadpool(_refusal, request, cause)
            await refusal(scope, receive, send)
            return
        except (DBAPIError, PoolTimeoutError, OverflowError) as cause:
            handlers = request.app.exception_handlers
            handle = next(handlers[kind] for kind in type(cause).__mro__ if kind in handlers)
            answer = await run_in_threadpool(handle, request, cause)
            await answer(scope, receive, send)
            return

        async def sending(message: Message) -> None:
            # A page gets the cookie that its forms go with.
            if message["type"] == "http.response.start" and not cookie:
                headers = MutableHeaders(scope=message)
                if headers.get("content-type", "").startswith("text/html"):
                    response = Response()
                    set_cookie(response, request, given)
                    headers.append("set-cookie", response.headers["set-cookie"])
            await send(message)

        await self.app(scope, receive, sending)

    async def _admitted(self, request: Request, receive: Receive, cookie: str) -> Receive:
        """The rest of the request's body, once the visitor is known and may write. Raises `BlemishError` else."""
        local, path = self.site.config.local, request.url.path
        if local:
            _check_host(request)
        is_open = path in OPEN or path.startswith(f"{OPEN[0]}/")
        bearer = bearer_of(request)
        if not is_open:
            request.state.visitor = await run_in_threadpool(known, self.site, request, cookie, bearer)
        if request.method in SAFE or (bearer is not None and not is_open):
            return receive
        browser = _from_browser(request, local)
        if local and not cookie and not browser:
            return receive
        if not cookie:
            raise ForbiddenError(STALE)
        token = request.headers.get("x-csrf-token")
        if token is None:
            token, receive = await form_token(request, receive)
        if not hmac.compare_digest(token.encode(), request.state.csrf.encode()):
            raise ForbiddenError(STALE)
        return receive


def set_cookie(response: Response, request: Request, cookie: str) -> None:
    """Gives a browser its secret; on loopback it keeps it, elsewhere until it is closed or the session is over."""
    local = request.app.state.site.config.local
    response.set_cookie(
        sessions.cookie_name(request),
        cookie,
        max_age=int((sessions.YEAR if local else sessions.SHIFT).total_seconds()),
        httponly=True,
        samesite="lax",
        secure=request.url.scheme == "https",
    )


def local_path(address: str) -> str:
    """The address where it is a path of this server, else "/": nobody is sent elsewhere after the login."""
    plain = address.isprintable() and not any(c in address for c in "\\ ")  # browsers leave out tabs and ends of lines
    if not plain or not address.startswith("/") or address.startswith("//") or urlsplit(address).netloc:
        return "/"
    return address


def known(site: Site, request: Request, cookie: str, bearer: str | None) -> Visitor:
    """Who has this cookie or token. Raises `LoginError`."""
    csrf, database = request.state.csrf, site.database
    if bearer is not None:
        user = users.by_token(database, bearer)
        if user is None:
            raise LoginError("This token is not known; make a new one with: blemish user NAME --token.")
        return Visitor(user.name, user.role, csrf, user.id)  # type: ignore[arg-type]
    session, user = (cookie and sessions.found(database, cookie)) or (None, None)
    if user:
        return Visitor(user.name, user.role, csrf, user.id)  # type: ignore[arg-type]
    if not site.config.local:
        raise LoginError("Log in first; a program sends its token as `Authorization: Bearer TOKEN`.")
    return Visitor((session and session.name) or here(), "admin", csrf)


@cache
def here() -> str:
    """The name of the user whose process this is."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container without such a user
        return "somebody"


def _refusal(request: Request, cause: BlemishError) -> Response:
    """Pages lead to the login, programs get the reason."""
    if not isinstance(cause, LoginError):
        return answers.answer(request, HTTPStatus.FORBIDDEN, str(cause))
    if not answers.wants_page(request):
        return answers.answer(request, HTTPStatus.UNAUTHORIZED, str(cause), {"WWW-Authenticate": "Bearer"})
    after = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    wanted = after if request.method == "GET" else "/"
    return RedirectResponse(LOGIN if wanted == "/" else f"{LOGIN}?next={quote(wanted, safe='/')}", 303)


def _check_host(request: Request) -> None:
    """Raises `ForbiddenError` where a name that is not this machine's led here."""
    host = request.headers.get("host", "")
    found = re.fullmatch(r"(?:\[(::1)\]|([^\[\]:]+))(?::\d+)?", host)
    if not found or (found[1] or found[2]).lower() not in LOOPBACK:
        raise ForbiddenError(
            f"This server answers on this machine only, as http://localhost; '{host[:100]}' is another name. "
            "To serve others, start it with --host, or with --proxy behind a reverse proxy."
        )


def _from_browser(request: Request, local: bool) -> bool:
    """Whether a browser sent it. Raises `ForbiddenError` where a page of a stranger did."""
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site")
    if site not in (None, "same-origin", "none"):
        raise ForbiddenError("Another site's page sent this; nothing was done.")
    # Behind a proxy the Host may be another one than the browser's.
    if local and origin is not None and urlsplit(origin).netloc != request.headers.get("host", ""):
        raise ForbiddenError("Another site's page sent this; nothing was done.")
    return origin is not None or site is not None


def bearer_of(request: Request) -> str | None:
    """The token that a program sends."""
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else None


def _believe(scope: Scope) -> None:
    """Takes from the proxy who asks and how: the last entries of its headers, since those before may be invented."""
    said = {name: value.decode("latin-1").rpartition(",")[2].strip() for name, value in scope["headers"]}
    if said.get(b"x-forwarded-proto") in ("http", "https"):
        scope["scheme"] = said[b"x-forwarded-proto"]
    if who := said.get(b"x-forwarded-for"):
        # Some proxies add the port, another one for each connection: no login would have to wait.
        with_port = re.fullmatch(r"\[(.+)\](?::\d+)?|([^:]+):\d+", who)
        scope["client"] = ((with_port[1] or with_port[2]) if with_port else who, 0)
