"""The token against forged requests as a form brings it: read from the beginning of the body, before anybody is let in,
so with bounded work, whatever stands there."""

from __future__ import annotations

import re
from urllib.parse import parse_qs

from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.types import Message, Receive

FIRST = 4096  # bytes of a multipart form within which its first field ends
HEAD = 1024  # bytes of that field's headers, at most
LARGEST, FIELDS = 1_000_000, 5000  # bytes and fields of a plain form, as `headers.py` limits it for most addresses
PLAIN, PARTS = "application/x-www-form-urlencoded", "multipart/form-data"
_OURS = re.compile(rb'content-disposition:\s*form-data;\s*name="csrf"\s*', re.IGNORECASE)


async def form_token(request: Request, receive: Receive) -> tuple[str, Receive]:
    """The field `csrf` of a form, "" without one, and a `receive` that gives the body from its beginning."""
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    form = kind.decode("latin-1")
    messages: list[Message] = []
    body = bytearray()
    most = {PLAIN: LARGEST, PARTS: FIRST}.get(form, -1)
    while len(body) <= most:
        message = await receive()
        messages.append(message)
        body += message.get("body", b"")
        if message["type"] != "http.request" or not message.get("more_body"):
            break

    async def again() -> Message:
        return messages.pop(0) if messages else await receive()

    token = _of_plain(bytes(body)) if form == PLAIN else first_field(bytes(body[:FIRST]), options.get(b"boundary", b""))
    return token, again


def _of_plain(body: bytes) -> str:
    try:
        return parse_qs(body.decode("utf-8", "replace"), max_num_fields=FIELDS).get("csrf", [""])[0]
    except ValueError:  # more fields than any form of ours has
        return ""


def first_field(body: bytes, boundary: bytes) -> str:
    """The value of the first field of a multipart body, where it is `csrf` and ends within `body`; else ""."""
    line = b"--" + boundary
    begin = 2 if body.startswith(b"\r\n") else 0
    if not boundary or not body.startswith(line + b"\r\n", begin):
        return ""
    begin += len(line) + 2
    end = body.find(b"\r\n\r\n", begin, begin + HEAD)
    if end < 0 or not any(_OURS.fullmatch(header) for header in body[begin:end].split(b"\r\n")):
        return ""
    after = body.find(b"\r\n" + line, end + 4)
    return body[end + 4 : after].decode("utf-8", "replace") if after >= 0 else ""
