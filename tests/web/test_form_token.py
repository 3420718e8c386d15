"""The token of a form is found, and what stands in its place costs nothing: measured, and through the application."""

from __future__ import annotations

import time
from pathlib import Path
from urllib.parse import urlencode

import pytest

from blemish.web.form_token import FIRST, HEAD, first_field
from tests.web.support import client_of, csrf_in, grey, made_site

FIELD = b'--b\r\nContent-Disposition: form-data; name="csrf"\r\n\r\n1234\r\n--b'
AWAY = "http://line.example:8477"


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (FIELD, "1234"),
        (b"\r\n" + FIELD, "1234"),
        (FIELD.replace(b"Content-D", b"X: y\r\ncontent-d"), "1234"),
        (FIELD.replace(b"1234", b""), ""),
        (FIELD.replace(b"csrf", b"images"), ""),
        (FIELD.replace(b'csrf"', b'csrf"; filename="x"'), ""),
        (FIELD[:-1], ""),  # the value goes on, as far as one can see
        (b"x" + FIELD, ""),
        (FIELD.replace(b"Content-D", b"X: " + b"y" * HEAD + b"\r\nContent-D"), ""),
        (b"", ""),
    ],
)
def test_the_first_field_of_a_form(body: bytes, found: str) -> None:
    assert first_field(body, b"b") == found
    assert first_field(body, b"") == ""


@pytest.mark.parametrize("middle", [b"\r\n\r\n" * 16_000, b"\r\n--" * 16_000, b"\r\n\r\n\r\n--" * 8_000])
def test_what_stands_in_the_place_of_a_form_is_read_once(tmp_path: Path, middle: bytes) -> None:
    """64 KB of empty lines kept a server busy for 14 seconds, before anybody had logged in."""
    site = made_site(tmp_path, host="0.0.0.0")
    client = client_of(site, AWAY)
    client.get("/login")
    head = {"Content-Type": "multipart/form-data; boundary=b"}
    begun = time.perf_counter()
    blocks = [b"--b\r\n" + middle[:FIRST], *(middle[i : i + 1000] for i in range(FIRST, len(middle), 1000))]
    for content in (b"--b\r\n" + middle, iter(blocks)):
        assert client.post("/login", content=content, headers=head).status_code == 403
    assert time.perf_counter() - begun < 1
    site.database.close()


def test_a_plain_form_is_small_wherever_it_goes_and_has_few_fields(tmp_path: Path) -> None:
    site = made_site(tmp_path)
    client = client_of(site)
    csrf = csrf_in(client.get("/").text)
    head = {"Content-Type": "application/x-www-form-urlencoded"}
    long = [b"csrf=" + csrf.encode() + b"&a=" + b"x" * 500_000, *[b"x" * 500_000] * 5]
    assert client.post("/inspect", content=iter(long), headers=head).status_code == 303  # judged: it is no image
    assert client.post("/users", content=iter(long), headers=head).status_code == 413
    # What curl sends with --data-binary is called a form, but is an image.
    image = grey(60) + bytes(2_000_000)
    assert client_of(site).post("/api/v1/inspect?product=tiny", content=image, headers=head).status_code == 200
    form = urlencode({"csrf": csrf, "name": "ada"})
    assert client.post("/account/name", content=form + "&a=1" * 6000, headers=head).status_code == 403
    assert client.post("/account/name", content=form, headers=head).status_code == 303
    site.database.close()
