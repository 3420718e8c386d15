"""Delivers the journal to receivers: every line, in order, at least once, over restarts on either side.

An outbox keeps, in a file beside the journal, how many bytes of it have been delivered. A message is delivered when the
receiver has confirmed it; only then does that position move. While a receiver does not answer, the outbox tries again
at growing intervals, and the inspection continues. After a kill the last message may come twice, with the same `id`.
"""

from __future__ import annotations

import http.client
import os
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from blemish.files import write_text
from blemish.station.journal import Journal
from blemish.types import BlemishError

if TYPE_CHECKING:
    from paho.mqtt.client import Client

TIMEOUT = 10.0  # seconds that a receiver may take to answer
FIRST, LONGEST = 0.5, 60.0  # seconds until the second try, and at most between two tries
USER, PASSWORD, TOKEN = "BLEMISH_MQTT_USER", "BLEMISH_MQTT_PASSWORD", "BLEMISH_WEBHOOK_TOKEN"


class Target(Protocol):
    """A receiver. `send` returns when it has confirmed the message, and raises OSError, HTTPException, ValueError or
    RuntimeError when it has not; `close` ends the connection, and the next `send` opens a new one."""

    kind: str
    shown: str

    def send(self, message: bytes) -> None: ...

    def close(self) -> None: ...


class Outbox:
    """Delivers the journal's lines to one target, on a thread of its own."""

    def __init__(
        self, journal: Journal, target: Target, say: Callable[[str], None], *, longest: float = LONGEST
    ) -> None:
        self.position_file = journal.file.with_name(f".delivered-{target.kind}")
        self._journal, self._target, self._say, self._longest = journal, target, say, longest
        self._woken, self._closing = threading.Event(), threading.Event()
        self._failing = False
        self.delivered = self._read_position()
        self._thread = threading.Thread(target=self._run, name=f"to {target.kind}", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """To be called when the journal has a new line."""
        self._woken.set()

    def close(self, grace: float = 5.0) -> None:
        """Delivers what is left, unless the target does not answer or `grace` seconds have passed."""
        self._closing.set()
        self._woken.set()
        self._thread.join(grace)
        with self._journal.file.open("rb") as lines:
            lines.seek(self.delivered)
            left = sum(1 for _ in lines)
        if left:
            self._say(f"{self._target.shown}: {left} verdicts are not delivered; the next run delivers them.")

    def _run(self) -> None:
        wait = FIRST
        with self._journal.file.open("rb") as lines:
            while True:
                self._woken.clear()
                if self._deliver(lines):
                    wait = FIRST
                    if self._closing.is_set():
                        break
                    self._woken.wait()
                else:
                    if self._closing.wait(min(wait, self._longest)):
                        break
                    wait *= 2
        self._target.close()

    def _deliver(self, lines: IO[bytes]) -> bool:
        """Sends every line that is on the disk and not delivered. False where the target did not take one."""
        while self.delivered < self._journal.end:
            lines.seek(self.delivered)
            line = lines.readline()
            try:
                self._target.send(line.rstrip(b"\n"))
            except (OSError, http.client.HTTPException, ValueError, RuntimeError) as cause:
                self._target.close()
                if not self._failing:
                    self._say(
                        f"{self._target.shown}: does not take verdicts ({_cause(cause)}). They are kept, and sent "
                        "when it does."
                    )
                self._failing = True
                return False
            if self._failing:
                self._say(f"{self._target.shown}: takes verdicts again.")
            self._failing = False
            self.delivered += len(line)
            with suppress(OSError):  # a full disk ends the inspection itself; until then the position is in memory
                write_text(self.position_file, f"{self.delivered}\n")
        return True

    def _read_position(self) -> int:
        """Where the last run stopped; 0 where nothing has been delivered, or the file holds no end of a line."""
        try:
            position = int(self.position_file.read_text(encoding="ascii"))
        except FileNotFoundError:
            return 0
        except (OSError, ValueError):
            position = -1
        with self._journal.file.open("rb") as lines:
            lines.seek(max(0, position - 1))
            if 0 < position <= self._journal.end and lines.read(1) == b"\n":
                return position
        if position:
            self._say(
                f"{self.position_file}: is no position in {self._journal.file.name}; all of it is delivered again."
            )
        return 0


class Webhook:
    """POSTs a message as application/json. An answer of 200 to 299 confirms it; no redirection is followed."""

    kind = "webhook"

    def __init__(self, url: str, *, timeout: float = TIMEOUT) -> None:
        """Raises `BlemishError` unless `url` is an address of http or https."""
        try:
            parts = urlsplit(url)
            valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.username is None
            _ = parts.port
        except ValueError:
            valid = False
        if not valid:
            raise BlemishError(
                f"--webhook takes an address like https://host:port/path, not '{url}'; a secret goes into {TOKEN}."
            )
        self.shown = f"webhook {parts.scheme}://{parts.netloc}{parts.path}"  # without the query: it may hold a secret
        self._url, self._timeout = url, timeout
        self._headers = {"Content-Type": "application/json"}
        if os.environ.get(TOKEN):
            self._headers["Authorization"] = f"Bearer {os.environ[TOKEN]}"
        self._opener = urllib.request.build_opener(_NoRedirection)

    def send(self, message: bytes) -> None:
        request = urllib.request.Request(self._url, message, self._headers, method="POST")
        try:
            with self._opener.open(request, timeout=self._timeout) as answer:
                answer.read(1)
        except urllib.error.HTTPError as refusal:
            refusal.close()
            raise

    def close(self) -> None:
        pass


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    """Refuses redirections: urllib would turn the POST into a GET without its body, and report success."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Mqtt:
    """Publishes with quality of service 1: a message is confirmed when the broker has acknowledged it."""

    kind = "mqtt"

    def __init__(self, address: str, topic: str, *, tls: bool = False, timeout: float = TIMEOUT) -> None:
        """`address` is HOST or HOST:PORT. Raises `BlemishError` for anything else, and where paho-mqtt is missing."""
        try:
            import paho.mqtt.client  # noqa: F401
        except ModuleNotFoundError:
            raise BlemishError(
                "--mqtt needs paho-mqtt, which the base install leaves out; run: pip install 'blemish[mqtt]'"
            ) from None
        try:
            parts = urlsplit(f"//{address}")
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, None
        if not host or parts.username is not None or parts.path:
            raise BlemishError(
                f"--mqtt takes HOST or HOST:PORT, not '{address}'; user and password go into {USER} and {PASSWORD}."
            )
        if not topic or any(sign in topic for sign in "+#\0"):
            raise BlemishError(f"--topic takes a topic to publish on, without + and #, not '{topic}'.")
        self._host, self._port = host, port or (8883 if tls else 1883)
        self._topic, self._tls, self._timeout = topic, tls, timeout
        self._client: Client | None = None
        self.shown = f"mqtt {self._host}:{self._port}"

    def send(self, message: bytes) -> None:
        if self._client is None:
            self._client = self._connected()
        sent = self._client.publish(self._topic, message, qos=1)
        sent.wait_for_publish(self._timeout)
        if not sent.is_published():
            raise TimeoutError(f"not acknowledged within {self._timeout:g} s")

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

        client = Client(CallbackAPIVersion.VERSION2)
        client.on_connect = on_connect
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
            raise ConnectionError(refused[0] if refused else f"no answer within {self._timeout:g} s")
        return client


def _cause(error: BaseException) -> str:
    inner = getattr(error, "reason", None)
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code}"
    if isinstance(inner, OSError):
        error = inner
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
