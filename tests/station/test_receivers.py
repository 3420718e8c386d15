"""Addresses and secrets: what is refused, and what is never shown."""

from __future__ import annotations

import sys

import pytest

from blemish import BlemishError
from blemish.station.receivers import PASSWORD, TOKEN, USER, Mqtt, Webhook, cause_of

SECRET = "geheim"
URLS = [
    "ftp://a/b",
    "file:///etc/passwd",
    "host",
    "http://",
    "http:/a/b",
    "http://a:x/",
    "https://a:99999/",
    "http://user:geheim@host/",
    "https://user%3Ageheim%40host/",
    "https://user:1234/geheim@host/",
    "https://user:12#geheim@host/",
    "https://user:12?geheim@host/",
    "https://host:geheim/",
    "https://geheim host/",
    "https://host/a b?token=geheim",
    "https://host/\n?token=geheim",
    "https://host/é?token=geheim",
    "https:user:geheim@host",
    "https://[geheim/",
    "https://user:geheim\\@host",
    "",
]


@pytest.mark.parametrize("url", URLS)
def test_an_invalid_web_address_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(BlemishError, match="--webhook takes an address") as caught:
        Webhook(url)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://host/services/geheim/x", "webhook https://host"),
        ("https://host:8443/?token=geheim", "webhook https://host:8443"),
        ("http://127.0.0.1:80/#geheim", "webhook http://127.0.0.1:80"),
        ("http://[::1]:80/geheim", "webhook http://[::1]:80"),
    ],
)
def test_of_an_address_only_the_host_is_shown(url: str, shown: str) -> None:
    assert Webhook(url).shown == shown


BROKERS = [
    *("", "a:b:c", "user:geheim@host", "host/topic", "host:99999", ":1883", "mqtt://user:geheim@host", "host:geheim"),
    *("user%3Ageheim%40host", "host?geheim", "host#geheim", "geheim host", "geheim\n"),
]


@pytest.mark.parametrize("address", BROKERS)
def test_an_invalid_broker_is_refused_and_not_shown(address: str) -> None:
    with pytest.raises(BlemishError, match="--mqtt takes HOST") as caught:
        Mqtt(address, "blemish")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("topic", ["", "a/#", "+/a", "a\0", "x" * 70_000, "\udcff"])
def test_an_invalid_topic_is_refused(topic: str) -> None:
    with pytest.raises(BlemishError, match="--topic"):
        Mqtt("localhost", topic)


@pytest.mark.parametrize("token", ["geheim\n", "geheim\r\nX: y", "geheim零", "geheim\udce4", "\tgeheim"])
def test_a_token_that_http_cannot_carry_is_refused_and_not_shown(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN, token)
    with pytest.raises(BlemishError, match=TOKEN) as caught:
        Webhook("https://host/")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("variable", [USER, PASSWORD])
@pytest.mark.parametrize("text", ["geheim\udce4", "geheim" * 20_000])
def test_a_password_that_mqtt_cannot_carry_is_refused_and_not_shown(
    variable: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, text)
    with pytest.raises(BlemishError, match=variable) as caught:
        Mqtt("localhost", "blemish")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "warned"),
    [
        ("http://host/", True),
        ("http://10.0.0.1/", True),
        ("http://localhost.example/", True),
        ("https://host/", False),
        ("http://localhost:80/", False),
        ("http://127.0.0.1/", False),
        ("http://127.1.2.3/", False),
        ("http://[::1]/", False),
    ],
)
def test_a_token_without_encryption_is_warned_of(url: str, warned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Webhook(url).warning == ""
    monkeypatch.setenv(TOKEN, SECRET)
    warning = Webhook(url).warning
    assert ("unencrypted" in warning) == warned
    assert SECRET not in warning


def test_a_password_without_encryption_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Mqtt("broker", "blemish").warning == ""
    monkeypatch.setenv(USER, "line")
    monkeypatch.setenv(PASSWORD, SECRET)
    assert "use --mqtt-tls" in Mqtt("broker", "blemish").warning
    assert SECRET not in Mqtt("broker", "blemish").warning
    assert Mqtt("broker", "blemish", tls=True).warning == Mqtt("localhost", "blemish").warning == ""


def test_of_an_exception_only_what_cannot_hold_a_secret_is_shown() -> None:
    assert cause_of(ValueError("Invalid header value b'Bearer geheim'")) == "ValueError"
    assert cause_of(OSError("Tunnel connection failed: 407 geheim")) == "OSError"
    assert cause_of(ConnectionRefusedError(111, "Connection refused")) == "Connection refused"
    assert cause_of(TimeoutError("geheim")) == "timed out"


def test_a_missing_paho_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "paho.mqtt.client", None)
    with pytest.raises(BlemishError, match=r"pip install 'blemish\[mqtt\]'"):
        Mqtt("localhost", "blemish")
