"""What every answer says to the browser, and how large a request may be."""

from __future__ import annotations

import asyncio
import math
import time
from http import HTTPStatus

from fastapi import Request
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from blemish.web import answers
from blemish.web.site import Site

LARGEST = 1_000_000  # bytes of a request that brings no images
PATIENCE = 60.0  # seconds without a byte of a body that was announced, and that all of it may take in any case
PACE = 20_000  # bytes that buy a body another second
UPLOADS = ("/inspect", "/api/v1/inspect")  # which have limits of their own, see `uploads.py`

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "media-src 'self' blob:",
        "connect-src 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
}


class Headers:
    """The middleware around all others. A route may set any of the headers itself."""

    def __init__(self, app: ASGIApp, site: Site) -> None:
        self.app, self.site = app, site

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        # What was seen by somebody who has logged out is not shown to the next one.
        private = not self.site.config.local and not scope["path"].startswith("/static/")
        defaults = HEADERS | {"Cache-Control": "no-store" if private else "no-cache"}

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                if message["status"] >= 400:
                    self.site.line.metrics.failed(message["status"])
                headers = MutableHeaders(scope=message)
                for name, value in defaults.items():
                    headers.setdefault(name, value)
            await send(message)

        await _limited(self.app, scope, receive, sending, math.inf if scope["path"] in UPLOADS else LARGEST)


async def _limited(app: ASGIApp, scope: Scope, receive: Receive, send: Send, most: float) -> None:
    """Calls the application with a body of at most `most` bytes, which comes within `PATIENCE` and a second for each
    `PACE` of it, without a longer pause than that; of another one it sees the end of the request, and its answer is
    replaced."""
    request = Request(scope)
    refusals = {
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE: f"The request is larger than the {LARGEST / 1e6:g} MB that it may have; "
        "send less at once.",
        HTTPStatus.REQUEST_TIMEOUT: "The request came too slowly, or stopped before its end; send it again.",
    }
    refused, size, waited, begun, ended = None, 0, 0.0, False, False

    async def receiving() -> Message:
        nonlocal refused, size, waited, ended
        if refused:
            return {"type": "http.disconnect"}
        if ended:  # what waits for the visitor to go away may wait for hours
            return await receive()
        since = time.monotonic()
        try:
            async with asyncio.timeout(min(PATIENCE, PATIENCE + size / PACE - waited)):
                message = await receive()
        except TimeoutError:
            refused = HTTPStatus.REQUEST_TIMEOUT
            return {"type": "http.disconnect"}
        waited += time.monotonic() - since
        size += len(message.get("body", b""))
        ended = not message.get("more_body", False)
        if size > most:
            refused = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
        return {"type": "http.disconnect"} if refused else message

    async def sending(message: Message) -> None:
        nonlocal begun
        if not refused:
            begun = True
            await send(message)

    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > most:
        refused = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    else:
        try:
            await app(scope, receiving, sending)
        except Exception:
            if not refused:
                raise
    if refused and not begun:
        await answers.answer(request, refused, refusals[refused], {"Connection": "close"})(scope, receive, send)
