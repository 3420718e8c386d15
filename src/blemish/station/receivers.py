"""Who verdicts are delivered to: a web server or an MQTT broker.

No message, refusal or exception text of these holds a secret: of an address only the host and the port are shown, and
of what a receiver answers only its number.
"""

from __future__ import annotations

import http.client
import ipaddress
import os
import re
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from blemish.inference.time_limit import time_limit
from blemish.types import BlemishError

if TYPE_CHECKING:
    from paho.mqtt.client import Client

TIMEOUT = 10.0  # seconds that a receiver may take for a message, from the first byte of the connection to the answer
USER, PASSWORD, TOKEN = "BLEMISH_MQTT_USER", "BLEMISH_MQTT_PASSWORD", "BLEMISH_WEBHOOK_TOKEN"
_HOST = re.compile(r"[\w.:-]+", re.ASCII)  # no %, in which a user and a password may hide
# Answers 400 to 499 that are about the address, the credentials or the moment; the others are about the message.
_LATER = {401, 402, 403, 404, 405, 407, 408, 410, 421, 423, 425, 426, 429, 451}


class RefusedError(Exception):
    """A receiver that answers does not take this message; its text says why, in words."""


class Target(Protocol):
    """A receiver. `send` returns when it has confirmed the message, and raises `RefusedError` where it does not take
    this one, or anything else where it takes none; `close` ends the connection, and the next `send` opens a new one."""

    kind: str
    shown: str
    warning: str  # a sentence for whoever set it up, or ""

    def send(self, message: bytes) -> None: ...

    def close(self) -> None: ...


class Webhook:
    """POSTs a message as application/json. An answer of 200 to 299 confirms it; no redirection is followed."""

    kind = "webhook"

    def __init__(self, url: str, *, timeout: float = TIMEOUT) -> None:
        """Raises `BlemishError` unless `url` is an address of http or https, and the token one that HTTP can carry."""
        scheme, host, port = _address(url)
        if scheme not in ("http", "https") or not host:
            raise BlemishError(
                "--webhook takes an address like https://host:port/path, without a user, a password or an @ (this one "
                f"is not shown, as it may hold a secret); a secret goes into {TOKEN}."
            )
        token = os.environ.get(TOKEN, "")
        if any(not c.isprintable() or ord(c) > 255 for c in token):
            raise BlemishError(
                f"{TOKEN} holds a line break or another character that HTTP cannot carry; set it without."
            )
        shown_host = f"[{host}]" if ":" in host else host
        self.shown = f"webhook {scheme}://{shown_host}{'' if port is None else f':{port}'}"
        self.warning = ""
        self._url, self._timeout = url, timeout
        self._headers = {"Content-Type": "application/json"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
            if scheme == "http" and not _is_local(host):
                self.warning = f"{self.shown}: {TOKEN} is sent unencrypted, for everybody on the way; use https."
        self._late = threading.Event()
        self._socket: socket.socket | None = None
        opened = partial(_noting, self._opened)
        self._opener = urllib.request.build_opener(_NoRedirection, _Http(opened), _Https(opened))

    def send(self, message: bytes) -> None:
        request = urllib.request.Request(self._url, message, self._headers, method="POST")
        self._late.clear()
        try:
            # Each wait for some bytes has the time limit, and all together have it: a receiver may send byte by byte.
            with time_limit(self._timeout, self._hang_up):
                self._opener.open(request, timeout=self._timeout).close()  # its status is the answer; no body is read
        except urllib.error.HTTPError as answer:
            answer.close()
            if 400 <= answer.code < 500 and answer.code not in _LATER:
                raise RefusedError(f"HTTP {answer.code}") from None
            raise
        except Exception:
            if self._late.is_set():
                raise TimeoutError from None
            raise
        finally:
            self._socket = None

    def close(self) -> None:
        pass

    def _opened(self, connected: socket.socket) -> None:
        self._socket = connected
        if self._late.is_set():
            self._hang_up()

    def _hang_up(self) -> None:
        self._late.set()
        connected = self._socket
        if connected is not None:
            with suppress(OSError):  # an SSLSocket's own shutdown would take from the reading thread what it reads with
                socket.socket.shutdown(connected, socket.SHUT_RDWR)


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    """Refuses redirections: urllib would turn the POST into a GET without its body, and report success."""

    def redirect_request(self, *_: Any) -> None:
        return None


class _Http(urllib.request.HTTPHandler):
    def __init__(self, noting: Callable[..., Any]) -> None:
        super().__init__()
        self._noting = noting

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(partial(self._noting, http.client.HTTPConnection), request)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, noting: Callable[..., Any]) -> None:
        super().__init__()
        self._noting, self._certificates = noting, ssl.create_default_context()

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        connection = partial(self._noting, http.client.HTTPSConnection)
        return self.do_open(connection, request, context=self._certificates)


def _noting(
    opened: Callable[[socket.socket], None], make: Callable[..., http.client.HTTPConnection], *args: Any, **more: Any
) -> http.client.HTTPConnection:
    """The connection that `make` makes; it gives `opened` its socket as soon as there is one."""
    connection = make(*args, **more)
    connect = connection.connect

    def connect_and_note() -> None:
        connect()
        opened(connection.sock)

    connection.connect = connect_and_note  # type: ignore[method-assign]
    return connection


class Mqtt:
    """Publishes with quality of service 1: a message is confirmed when the broker has acknowledged it."""

    kind = "mqtt"

    def __init__(self, address: str, topic: str, *, tls: bool = False, timeout: float = TIMEOUT) -> None:
        """`address` is HOST or HOST:PORT. Raises `BlemishError` for anything else, for a user or a password that MQTT
        cannot carry, and where paho-mqtt is missing."""
        try:
            import paho.mqtt.client  # noqa: F401
        except ModuleNotFoundError:
            raise BlemishError(
                "--mqtt needs paho-mqtt, which the base install leaves out; run: pip install 'blemish[mqtt]'"
            ) from None
        _, host, port = _address(f"mqtt://{address}")
        if not host or set(address) & set("/?#"):
            raise BlemishError(
                "--mqtt takes HOST or HOST:PORT, without a user or a password (this one is not shown, as it may hold a "
                f"secret); they go into {USER} and {PASSWORD}."
            )
        if not topic or any(sign in topic for sign in "+#\0") or not _fits(topic):
            raise BlemishError(f"--topic takes a topic to publish on, without + and #, not {topic!r}.")
        for variable in (USER, PASSWORD):
            if not _fits(os.environ.get(variable, "")):
                raise BlemishError(f"{variable} is too long or not text in UTF-8; set it anew.")
        self._host, self._port = host, port or (8883 if tls else 1883)
        self._topic, self._tls, self._timeout = topic, tls, timeout
        self._client: Client | None = None
        self._ended = threading.Event()  # the broker ended the connection
        self.shown = f"mqtt {f'[{host}]' if ':' in host else host}:{self._port}"
        self.warning = ""
        if os.environ.get(USER) and os.environ.get(PASSWORD) and not tls and not _is_local(host):
            self.warning = f"{self.shown}: {PASSWORD} is sent unencrypted, for everybody on the way; use --mqtt-tls."

    def send(self, message: bytes) -> None:
        if self._client is not None and self._ended.is_set():  # while there was nothing to send
            self.close()
        if self._client is None:
            self._client = self._connected()
        try:
            sent = self._client.publish(self._topic, message, qos=1)
        except ValueError:
            raise RefusedError("larger than MQTT allows") from None
        # A broker has no other way to refuse a message than to end the connection.
        deadline = time.monotonic() + self._timeout
        try:
            while not sent.is_published() and not self._ended.is_set() and time.monotonic() < deadline:
                sent.wait_for_publish(0.1)
            if sent.is_published():
                return
        except RuntimeError:  # paho has noticed the end itself
            self._ended.set()
        raise RefusedError("it ends the connection") if self._ended.is_set() else TimeoutError

    def close(self) -> None:
        if self._client is not None:
            self._client.disconnect()
            self._client.loop_stop()
        self._client = None

    def _connected(self) -> Client:
        """A client that the broker has accepted; it keeps the connection alive on a thread of its own."""
        from paho.mqtt.client import Client
        from paho.mqtt.enums import CallbackAPIVersion

        answered, refused = threading.Event(), list[str]()

        def on_connect(_client: Client, _data: object, _flags: object, reason: Any, _properties: object) -> None:
            if reason.is_failure:
                refused.append(str(reason))
            answered.set()

        client = Client(CallbackAPIVersion.VERSION2, reconnect_on_failure=False)
        self._ended.clear()
        client.on_connect = on_connect
        client.on_disconnect = lambda *_: self._ended.set()
        client.connect_timeout = self._timeout
        if os.environ.get(USER):
            client.username_pw_set(os.environ[USER], os.environ.get(PASSWORD))
        if self._tls:
            client.tls_set_context(ssl.create_default_context())
        client.connect(self._host, self._port, keepalive=30)
        client.loop_start()
        if not answered.wait(self._timeout) or refused:
            client.disconnect()
            client.loop_stop()
            raise ConnectionError(None, refused[0]) if refused else TimeoutError
        return client


def cause_of(error: BaseException) -> str:
    """Why a message was not delivered, in words without a secret: texts of exceptions may quote an address, a header,
    or what a server answered, which may quote them."""
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code}"
    inner = getattr(error, "reason", None)
    error = inner if isinstance(inner, OSError) else error
    if isinstance(error, TimeoutError):
        return "timed out"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, http.client.HTTPException):
        return "its answer is not HTTP"
    return type(error).__name__


def _address(url: str) -> tuple[str, str, int | None]:
    """Scheme, host and port; no host where it is no plain address: with a user, with spaces, or with an @ anywhere, as
    in a password that holds a slash."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return "", "", None
    plain = url.isascii() and url.isprintable() and not set(url) & set(' @\\"<>')
    return parts.scheme, host if plain and _HOST.fullmatch(host) else "", port


def _is_local(host: str) -> bool:
    """Whether this is the machine itself."""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost" or host.endswith(".localhost")


def _fits(text: str) -> bool:
    """Whether MQTT can carry a text: at most 65,535 bytes of UTF-8."""
    try:
        return len(text.encode()) < 1 << 16
    except UnicodeEncodeError:
        return False
