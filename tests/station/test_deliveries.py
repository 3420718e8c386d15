"""Real receivers: a web server that fails for a while, a mosquitto that is killed and comes back."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from blemish.station.deliveries import TRIES, Outbox
from blemish.station.journal import Journal
from blemish.station.receivers import PASSWORD, TOKEN, USER, Mqtt, Webhook
from tests.station.test_journal import row
from tests.support import eventually

MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
needs_mosquitto = pytest.mark.skipif(not MOSQUITTO, reason="the program mosquitto is not installed")


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Receivers on this machine are contacted directly, also where the environment names a proxy."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")


class Receiver:
    """A web server that gives the `answers`, one after the other, and 200 from then on."""

    def __init__(self, port: int = 0) -> None:
        self.answers: list[int] = []
        self.taken: list[str] = []  # names in the messages that were answered with 200
        self.headers: list[dict[str, str]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                receiver.headers.append(dict(self.headers))
                answer = receiver.answers.pop(0) if receiver.answers else 200
                if answer == 200:
                    receiver.taken.append(message["name"])
                self.send_response(answer)
                if answer == 302:
                    self.send_header("Location", "/elsewhere")
                self.end_headers()

            def do_GET(self) -> None:
                receiver.taken.append("by GET")
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = self.server.server_port
        self.url = f"http://127.0.0.1:{self.port}/verdicts"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "out") as journal:
        yield journal


def add(journal: Journal, outbox: Outbox | None, *numbers: int) -> None:
    for number in numbers:
        journal.add(row(str(number)))
        if outbox:
            outbox.wake()


def numbers(many: int) -> list[str]:
    return [str(i) for i in range(many)]


def test_every_line_is_posted_in_order_and_never_again(journal: Journal, receiver: Receiver) -> None:
    add(journal, None, 0, 1)  # before there is an outbox
    outbox = Outbox(journal, Webhook(receiver.url), pytest.fail)
    add(journal, outbox, 2, 3, 4)
    outbox.close()
    assert receiver.taken == numbers(5)
    assert {headers["Content-Type"] for headers in receiver.headers} == {"application/json"}
    assert "Authorization" not in receiver.headers[0]
    assert outbox.position_file.read_text() == f"{journal.end}\n"
    again = Outbox(journal, Webhook(receiver.url), pytest.fail)
    add(journal, again, 5)
    again.close()
    assert receiver.taken == numbers(6)


def test_a_receiver_that_fails_for_a_while_gets_everything_and_the_user_is_told_once(
    journal: Journal, receiver: Receiver
) -> None:
    receiver.answers = [200, 503, 500, 404, 302]
    notes: list[str] = []
    outbox = Outbox(journal, Webhook(receiver.url), notes.append, longest=0.02)
    add(journal, outbox, *range(10))
    eventually(lambda: len(receiver.taken) == 10)
    outbox.close()
    assert receiver.taken == numbers(10)  # a redirection is not followed: that would be a GET without the verdict
    assert len(notes) == 2
    assert "HTTP 503" in notes[0]
    assert "takes verdicts again" in notes[1]


def test_a_receiver_that_is_down_stops_nothing_and_misses_nothing(journal: Journal, receiver: Receiver) -> None:
    receiver.close()
    notes: list[str] = []
    outbox = Outbox(journal, Webhook(receiver.url), notes.append, longest=0.02)
    add(journal, outbox, *range(5))
    eventually(lambda: notes)
    assert "Connection refused" in notes[0]
    outbox.close(grace=5)  # the watcher ends while nobody answers
    assert "5 verdicts are not delivered" in notes[1]
    back = Receiver(receiver.port)
    try:
        outbox = Outbox(journal, Webhook(back.url), pytest.fail)
        add(journal, outbox, 5)
        outbox.close()
    finally:
        back.close()
    assert back.taken == numbers(6)


def test_an_invalid_position_means_from_the_beginning(journal: Journal, receiver: Receiver) -> None:
    add(journal, None, 0, 1)
    for text in ("none\n", "", f"{journal.end + 1}\n", f"{journal.end - 1}\n", "-1\n"):
        notes: list[str] = []
        journal.file.with_name(".delivered-webhook").write_text(text)
        receiver.taken.clear()
        Outbox(journal, Webhook(receiver.url), notes.append).close()
        assert receiver.taken == numbers(2), text
        assert "is no position in verdicts.jsonl" in notes[0]


def test_a_position_that_cannot_be_written_stops_nothing(journal: Journal, receiver: Receiver) -> None:
    (journal.file.parent / ".delivered-webhook/x").mkdir(parents=True)
    said: list[str] = []
    outbox = Outbox(journal, Webhook(receiver.url), said.append)
    add(journal, outbox, 0, 1, 2)
    outbox.close()
    assert receiver.taken == numbers(3)
    assert [text.partition(": ")[2] for text in said] == [
        "is no position in verdicts.jsonl; all of it is delivered again."
    ]


def test_a_token_from_the_environment_goes_into_the_header(
    journal: Journal, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKEN, "geheim")
    outbox = Outbox(journal, Webhook(receiver.url), pytest.fail)
    add(journal, outbox, 0)
    outbox.close()
    assert receiver.headers[0]["Authorization"] == "Bearer geheim"


def test_a_receiver_that_does_not_answer_times_out(journal: Journal) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        notes: list[str] = []
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/?secret=geheim"
        outbox = Outbox(journal, Webhook(url, timeout=0.05), notes.append)
        add(journal, outbox, 0)
        eventually(lambda: notes)
        outbox.close()
        assert "timed out" in notes[0]
        assert "geheim" not in "".join(notes)


def test_a_message_that_is_refused_for_ever_is_put_aside_and_the_next_are_delivered(
    journal: Journal, receiver: Receiver
) -> None:
    receiver.answers = [200, *[413] * TRIES, *[400] * (TRIES - 1), 503, *[422] * TRIES]
    notes: list[str] = []
    outbox = Outbox(journal, Webhook(receiver.url), notes.append, longest=0.02)
    add(journal, outbox, *range(5))
    eventually(lambda: len(receiver.taken) == 3)
    outbox.close()
    assert receiver.taken == ["0", "3", "4"]
    lines = journal.file.read_bytes().splitlines(keepends=True)
    assert outbox.refused_file.read_bytes() == b"".join(lines[1:3])  # never lost
    assert outbox.delivered == journal.end
    refusals = [note for note in notes if "refused a verdict 5 times" in note]
    assert ["HTTP 413" in refusals[0], "HTTP 422" in refusals[1]] == [True, True]
    assert all(".refused-webhook.jsonl" in note for note in refusals)


def test_a_refused_message_does_not_block_runs_that_end_at_once(journal: Journal, receiver: Receiver) -> None:
    receiver.answers = [400] * TRIES
    notes = list[str]()
    outbox = Outbox(journal, Webhook(receiver.url), notes.append)
    add(journal, outbox, 0, 1)
    outbox.close()  # as `watch --once` does: it does not wait for the longer pauses
    assert receiver.taken == ["1"]
    assert outbox.refused_file.read_bytes() == journal.file.read_bytes().splitlines(keepends=True)[0]
    assert len(notes) == 1


@pytest.mark.parametrize("answer", [401, 403, 404, 408, 429, 500, 302])
def test_what_is_not_about_the_message_is_tried_for_ever(answer: int, journal: Journal, receiver: Receiver) -> None:
    receiver.answers = [answer] * (2 * TRIES)
    outbox = Outbox(journal, Webhook(receiver.url), lambda _: None, longest=0.01)
    add(journal, outbox, 0, 1)
    eventually(lambda: len(receiver.taken) == 2)
    outbox.close()
    assert receiver.taken == numbers(2)
    assert not outbox.refused_file.exists()


def test_what_is_refused_and_cannot_be_put_aside_is_kept_where_it_is(journal: Journal, receiver: Receiver) -> None:
    receiver.answers = [400] * (TRIES + 3)
    outbox = Outbox(journal, Webhook(receiver.url), lambda _: None, longest=0.01)
    outbox.refused_file.mkdir()
    add(journal, outbox, 0)
    eventually(lambda: receiver.taken)
    outbox.close()
    assert receiver.taken == ["0"]


def test_a_journal_that_somebody_deletes_is_delivered_as_far_as_it_was_written(
    journal: Journal, receiver: Receiver
) -> None:
    receiver.answers = [503] * 3
    outbox = Outbox(journal, Webhook(receiver.url), lambda _: None, longest=0.05)
    add(journal, outbox, *range(3))
    journal.file.unlink()
    eventually(lambda: len(receiver.taken) == 3)
    outbox.close()
    assert receiver.taken == numbers(3)


class Unkind:
    """A server that answers every connection with `answer(its socket)`."""

    def __init__(self, answer: Callable[[socket.socket], None]) -> None:
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listening.getsockname()[1]}/"
        self.connections = 0

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = self.listening.accept()
                    self.connections += 1
                    with connection, suppress(OSError):
                        connection.recv(1 << 16)
                        answer(connection)

        threading.Thread(target=serve, daemon=True).start()

    def close(self) -> None:
        self.listening.shutdown(socket.SHUT_RDWR)
        self.listening.close()


def drip(connection: socket.socket) -> None:
    for byte in b"HTTP/1.1 200 OK\r\n" + b"X: " + b"x" * 10_000:
        connection.sendall(bytes([byte]))
        time.sleep(0.02)


def endless_body(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n")
    with suppress(OSError):
        connection.recv(1)


def test_headers_that_drip_have_one_time_limit_together(journal: Journal) -> None:
    server, notes = Unkind(drip), list[str]()
    outbox = Outbox(journal, Webhook(server.url, timeout=0.2), notes.append, longest=0.01)
    add(journal, outbox, 0)
    eventually(lambda: server.connections >= 2, 10)
    outbox.close()
    server.close()
    assert "timed out" in notes[0]


def test_a_body_without_an_end_holds_nothing(journal: Journal) -> None:
    server = Unkind(endless_body)
    outbox = Outbox(journal, Webhook(server.url), pytest.fail)
    add(journal, outbox, 0, 1)
    eventually(lambda: outbox.delivered == journal.end, 5)
    outbox.close()
    server.close()


def test_an_answer_that_quotes_the_token_is_not_shown(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN, "geheim")
    server = Unkind(lambda connection: connection.sendall(b"Bearer geheim is wrong\r\n\r\n"))
    notes: list[str] = []
    outbox = Outbox(journal, Webhook(f"{server.url}geheim?geheim#geheim"), notes.append, longest=0.01)
    add(journal, outbox, 0)
    eventually(lambda: notes)
    outbox.close()
    server.close()
    assert "its answer is not HTTP" in notes[0]
    assert "geheim" not in "".join(notes)


class Broker:
    """A mosquitto on a free port, which can be killed and started again."""

    def __init__(self, home: Path, *lines: str) -> None:
        assert MOSQUITTO
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self.config = home / "mosquitto.conf"
        user = ["user root"] if os.geteuid() == 0 else []  # or it could not read the files of the test
        ours = [f"listener {self.port} 127.0.0.1", "persistence false", *user, *lines]
        self.config.write_text("\n".join(ours) + "\n")
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [str(MOSQUITTO), "-c", str(self.config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        eventually(self.answers)

    def answers(self) -> bool:
        assert self.process.poll() is None, "mosquitto did not start"
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def subscribed(broker: Broker, topic: str, user: str = "", password: str = "") -> Iterator[list[str]]:
    """The names in all messages that another client receives."""
    from paho.mqtt.client import Client
    from paho.mqtt.enums import CallbackAPIVersion

    received, ready = list[str](), threading.Event()
    client = Client(CallbackAPIVersion.VERSION2)

    def on_connect(*_: Any) -> None:
        client.subscribe(topic, qos=1)

    client.on_connect = on_connect
    client.on_subscribe = lambda *_: ready.set()
    client.on_message = lambda _client, _data, message: received.append(json.loads(message.payload)["name"])
    if user:
        client.username_pw_set(user, password)
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    assert ready.wait(10)
    yield received
    client.disconnect()
    client.loop_stop()


@needs_mosquitto
def test_a_broker_that_is_killed_and_comes_back_misses_nothing(journal: Journal, tmp_path: Path) -> None:
    broker = Broker(tmp_path, "allow_anonymous true")
    notes: list[str] = []
    outbox = Outbox(journal, Mqtt(broker.address, "line/1", timeout=1), notes.append, longest=0.05)
    try:
        with subscribed(broker, "line/#") as before:
            add(journal, outbox, *range(20))
            eventually(lambda: before == numbers(20))
        broker.kill()
        add(journal, outbox, *range(20, 40))
        eventually(lambda: notes)
        assert len(notes) == 1
        assert outbox.delivered < journal.end
        # The subscriber must be there first: without one a message is confirmed, and lost.
        outbox.close()
        broker.start()
        with subscribed(broker, "line/#") as after:
            outbox = Outbox(journal, Mqtt(broker.address, "line/1"), notes.append)
            add(journal, outbox, *range(40, 50))
            eventually(lambda: len(set(after)) == 30)
        outbox.close()
    finally:
        outbox.close()
        broker.kill()
    assert list(dict.fromkeys(after)) == [str(i) for i in range(20, 50)]
    assert notes[1].endswith("20 verdicts are not delivered; the next run delivers them.")
    assert outbox.delivered == journal.end


@needs_mosquitto
def test_the_same_outbox_resumes_when_the_broker_is_back(journal: Journal, tmp_path: Path) -> None:
    broker = Broker(tmp_path, "allow_anonymous true")
    notes: list[str] = []
    outbox = Outbox(journal, Mqtt(broker.address, "line", timeout=1), notes.append, longest=0.05)
    try:
        add(journal, outbox, *range(5))
        eventually(lambda: outbox.delivered == journal.end)
        broker.kill()
        add(journal, outbox, *range(5, 10))
        eventually(lambda: len(notes) == 1)
        broker.start()
        eventually(lambda: outbox.delivered == journal.end)
        outbox.close()
    finally:
        broker.kill()
    assert len(notes) == 2
    assert "takes verdicts again" in notes[1]


@needs_mosquitto
def test_a_message_that_is_too_large_for_the_broker_is_put_aside(journal: Journal, tmp_path: Path) -> None:
    broker, notes = Broker(tmp_path, "allow_anonymous true", "max_packet_size 600"), list[str]()
    try:
        with subscribed(broker, "line") as received:
            outbox = Outbox(journal, Mqtt(broker.address, "line"), notes.append, longest=0.02)
            add(journal, outbox, 0)
            journal.add({**row("1"), "regions": "x" * 1000})
            add(journal, outbox, 2)
            eventually(lambda: received == ["0", "2"])
            outbox.close()
    finally:
        broker.kill()
    assert json.loads(outbox.refused_file.read_text())["name"] == "1"
    assert len(notes) == 1
    assert "it ends the connection" in notes[0]


@needs_mosquitto
def test_a_broker_that_wants_a_password_gets_it(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passwords = tmp_path / "passwords"
    tool = shutil.which("mosquitto_passwd")
    if not tool:
        pytest.skip("the program mosquitto_passwd is not installed")
    subprocess.run([tool, "-c", "-b", passwords, "line", "geheim"], check=True, capture_output=True)
    broker = Broker(tmp_path, "allow_anonymous false", f"password_file {passwords}")
    try:
        notes: list[str] = []
        outbox = Outbox(journal, Mqtt(broker.address, "line"), notes.append, longest=0.02)
        add(journal, outbox, 0)
        eventually(lambda: notes)
        outbox.close()
        assert "Not authorized" in notes[0]
        monkeypatch.setenv(USER, "line")
        monkeypatch.setenv(PASSWORD, "geheim")
        with subscribed(broker, "line", "line", "geheim") as received:
            outbox = Outbox(journal, Mqtt(broker.address, "line"), pytest.fail)
            eventually(lambda: received == ["0"])
            outbox.close()
    finally:
        broker.kill()


@needs_mosquitto
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # paho leaves a refused socket open
def test_tls_works_and_an_unknown_certificate_is_refused(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    openssl = shutil.which("openssl")
    if not openssl:
        pytest.skip("the program openssl is not installed")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    make: list[str | Path] = [
        openssl,
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        key,
        "-out",
        certificate,
        "-days",
        "2",
    ]
    made = [*make, "-subj", "/CN=line", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(made, check=True, capture_output=True)
    broker = Broker(tmp_path, f"keyfile {key}", f"certfile {certificate}", "allow_anonymous true")
    try:
        notes: list[str] = []
        outbox = Outbox(journal, Mqtt(broker.address, "line", tls=True), notes.append, longest=0.02)
        add(journal, outbox, 0)
        eventually(lambda: notes)
        outbox.close()
        assert "certificate verify failed" in notes[0]
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        outbox = Outbox(journal, Mqtt(broker.address, "line", tls=True), pytest.fail)
        eventually(lambda: outbox.delivered == journal.end)
        outbox.close()
    finally:
        broker.kill()
