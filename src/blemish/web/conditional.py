"""Answers with an ETag that the browser has already are 304, without a body."""

from __future__ import annotations

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Conditional:
    """The middleware. FileResponse gives an ETag by size and time, but compares none."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        known = Headers(scope=scope).get("if-none-match", "") if scope["type"] == "http" else ""
        if not known or scope["method"] not in ("GET", "HEAD"):
            await self.app(scope, receive, send)
            return
        unchanged = False

        async def sending(message: Message) -> None:
            nonlocal unchanged
            if message["type"] == "http.response.start" and message["status"] == 200:
                headers = MutableHeaders(raw=message["headers"])
                unchanged = headers.get("etag", "") in [tag.strip() for tag in known.split(",")] != [""]
                if unchanged:
                    for name in ("content-length", "content-type"):
                        del headers[name]
                    message = {**message, "status": 304, "headers": headers.raw}
            elif unchanged and message["type"] == "http.response.body":
                message = {"type": "http.response.body", "body": b"", "more_body": message.get("more_body", False)}
            elif unchanged:  # such as a file's path, for a server that sends files by itself
                return
            await send(message)

        await self.app(scope, receive, sending)
