"""The images of a request: one raw body, or the files of a form, each within the limits before it is in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException

from blemish.types import BlemishError
from blemish.web.config import Limits
from blemish.web.inspection import TooLargeError

NOTHING = "The request has no image; send it as the body, or as `images` of a multipart form."


async def uploads(request: Request, limits: Limits, name: str = "image") -> AsyncIterator[tuple[int, str, bytes]]:
    """Number, name and bytes of each image; `name` is a raw body's. Raises `BlemishError` for a request without one,
    and `TooLargeError` as soon as a body, or a form's announced length, is over the limits."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        content = await _body(request, name, limits)
        if not content:
            raise BlemishError(NOTHING)
        yield 0, name, content
        return
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limits.files * limits.megabytes * 1e6:
        raise TooLargeError("The form is larger than the limits allow; send fewer images at once.")
    try:
        # Parts over a megabyte are spooled to the disk by the parser.
        async with request.form(max_files=limits.files, max_fields=10) as form:
            parts = [part for part in form.getlist("images") if isinstance(part, UploadFile) and part.filename]
            if not parts:
                raise BlemishError(NOTHING)
            for number, part in enumerate(parts):
                shown = part.filename or "image"
                if (part.size or 0) > limits.megabytes * 1e6:
                    raise _too_large(shown, limits)
                yield number, shown, await part.read()
    except MultiPartException as cause:
        raise BlemishError(f"The form cannot be read ({cause.message}); send at most {limits.files} images.") from None


async def _body(request: Request, name: str, limits: Limits) -> bytes:
    content = bytearray()
    async for block in request.stream():
        content += block
        if len(content) > limits.megabytes * 1e6:
            raise _too_large(name, limits)
    return bytes(content)


def _too_large(name: str, limits: Limits) -> TooLargeError:
    return TooLargeError(f"{name}: is larger than {limits.megabytes:g} MB; make it smaller.")
