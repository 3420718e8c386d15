"""Errors become answers: one shape of JSON for programs, a page for people, and never a stack trace."""

from __future__ import annotations

import errno
import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from sqlalchemy.exc import DataError, DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from blemish.types import BlemishError
from blemish.web import site
from blemish.web.access import ForbiddenError, LoginError
from blemish.web.corrections import DecidedError
from blemish.web.database import is_full, is_unavailable, why
from blemish.web.detectors import NoDetectorError
from blemish.web.inspection import TooLargeError, UnavailableError
from blemish.web.users import MissingUserError, TooManyError

API = "/api/"
AWAY = HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.SERVICE_UNAVAILABLE  # the rest of the request is not read
FULL = (errno.ENOSPC, errno.EDQUOT)
_STATUS: tuple[tuple[type[BlemishError], HTTPStatus], ...] = (
    (TooLargeError, HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
    (UnavailableError, HTTPStatus.SERVICE_UNAVAILABLE),
    (ForbiddenError, HTTPStatus.FORBIDDEN),
    (LoginError, HTTPStatus.UNAUTHORIZED),
    (TooManyError, HTTPStatus.TOO_MANY_REQUESTS),
    (MissingUserError, HTTPStatus.NOT_FOUND),
    (NoDetectorError, HTTPStatus.NOT_FOUND),
    (DecidedError, HTTPStatus.CONFLICT),
)


class Problem(BaseModel):
    """What went wrong: a word for programs, and a sentence for people."""

    code: str
    message: str


class ErrorAnswer(BaseModel):
    """The body of every answer that is an error."""

    error: Problem


def wants_page(request: Request) -> bool:
    """Whether a browser shows the answer, and no program or script takes it."""
    return "text/html" in request.headers.get("accept", "") and not request.url.path.startswith(API)


def answer(
    request: Request, status: int, message: str, headers: dict[str, str] | None = None, *, framed: bool = True
) -> Response:
    """An error as JSON under /api/ and where JSON was asked for, else as a page; its frame needs the database."""
    if recorded := _recorded(request):
        message = f"{message} {recorded}"
    phrase = HTTPStatus(status).phrase
    if not wants_page(request):
        code = phrase.lower().replace(" ", "_")
        return JSONResponse({"error": {"code": code, "message": message}}, status, headers)
    try:
        if not framed:
            raise RuntimeError
        response = site.page(request, "error.html", status=status, title=phrase, message=message)
    except Exception:  # without a database
        text = site.fragment("trouble.html", title=phrase, message=message)
        return Response(text, status, headers, "text/html")
    response.headers.update(headers or {})
    return response


def _recorded(request: Request) -> str:
    """How many images of a request that ended in an error are recorded all the same; "" where none is."""
    recorded: int = getattr(request.state, "recorded", 0)
    if not recorded:
        return ""
    said = "The first image of the request is" if recorded == 1 else f"The first {recorded} images of the request are"
    if request.headers.get("idempotency-key"):
        return f"{said} recorded; sent again with the same Idempotency-Key, it records none of them twice."
    return f"{said} recorded; send only the others again."


def _nothing(request: Request) -> str:
    """Said of a request that may be sent again as it is."""
    return "" if _recorded(request) else " Nothing was recorded; try again in a moment."


def install(app: FastAPI) -> None:
    """Registers the answers to all errors."""

    def no_room(request: Request) -> Response:
        return answer(request, 507, f"The disk of the server is full; make room there.{_nothing(request)}")

    @app.exception_handler(BlemishError)
    def blemish_error(request: Request, cause: BlemishError) -> Response:
        status = next((s for kind, s in _STATUS if isinstance(cause, kind)), HTTPStatus.UNPROCESSABLE_ENTITY)
        seconds = cause.seconds if isinstance(cause, TooManyError) else 1
        later = status in (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS)
        headers = {"Retry-After": str(seconds)} if later else None
        if status in AWAY:
            headers = (headers or {}) | {"Connection": "close"}
        unsaid = status == HTTPStatus.SERVICE_UNAVAILABLE and request.method == "POST"
        return answer(request, status, f"{cause}{_nothing(request) if unsaid else ''}", headers)

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, cause: RequestValidationError) -> Response:
        first: dict[str, Any] = dict(cause.errors()[0])
        where = ".".join(str(part) for part in first["loc"])
        return answer(request, 422, f"{where}: {first['msg']}.")

    @app.exception_handler(HTTPException)
    def http(request: Request, cause: HTTPException) -> Response:
        words = {404: "There is nothing at this address.", 405: "This address does not take that method."}
        message = words.get(cause.status_code, str(cause.detail))
        return answer(request, cause.status_code, message, dict(cause.headers or {}))

    @app.exception_handler(DBAPIError)
    def database(request: Request, cause: DBAPIError) -> Response:
        if is_full(cause):
            return no_room(request)
        if isinstance(cause, DataError):
            return too_large(request, cause)
        if not is_unavailable(cause):
            return fault(request, cause)
        words = f"The database cannot be used now ({why(cause)}).{_nothing(request)}"
        return answer(request, 503, words, {"Retry-After": "2"})

    @app.exception_handler(PoolTimeoutError)
    def busy(request: Request, cause: PoolTimeoutError) -> Response:  # noqa: ARG001
        words = f"All connections to the database are in use.{_nothing(request)}"
        return answer(request, 503, words, {"Retry-After": "2"}, framed=False)

    @app.exception_handler(OverflowError)
    def too_large(request: Request, cause: Exception) -> Response:
        """What no field has checked, and no database can hold: logged, so that a fault of ours is not hidden."""
        said = why(cause) if isinstance(cause, DBAPIError) else str(cause)
        logging.getLogger("blemish").warning("%s %s: %s", request.method, request.url.path, said)
        return answer(request, 422, "A number is too large, or a text holds what cannot be kept; change it.")

    @app.exception_handler(ClientDisconnect)
    def gone(request: Request, cause: ClientDisconnect) -> Response:  # noqa: ARG001
        return Response(status_code=HTTPStatus.BAD_REQUEST)  # which nobody reads

    @app.exception_handler(OSError)
    def system(request: Request, cause: OSError) -> Response:
        if cause.errno in FULL:
            return no_room(request)
        return fault(request, cause)

    @app.exception_handler(Exception)
    def fault(request: Request, cause: Exception) -> Response:
        logging.getLogger("blemish").error("%s %s", request.method, request.url.path, exc_info=cause)
        return answer(request, 500, "This is a fault of blemish, not of yours. It is in the server's log; report it.")
