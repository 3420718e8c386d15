from __future__ import annotations

import signal
import time

import pytest

from blemish.cli import signals
from blemish.cli.signals import ending


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_runs_what_is_to_be_cleaned_up(number: signal.Signals, code: int) -> None:
    cleaned = []

    def work() -> None:
        try:
            signal.raise_signal(number)
            time.sleep(5)
        finally:
            signal.raise_signal(number)  # soon after, as a shell and a service manager send both
            cleaned.append(True)

    before = signal.signal(number, signal.SIG_DFL)
    try:
        with pytest.raises(SystemExit) as ended, ending():
            work()
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)
    assert ended.value.code == code
    assert cleaned


def test_what_is_ignored_or_handled_stays_so() -> None:
    def own(*_: object) -> None: ...

    before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGTERM)}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
        signal.signal(signal.SIGTERM, own)
        with ending():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is own
            signal.raise_signal(signal.SIGHUP)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_later_signal_ends_the_process_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where cleaning up hangs; here the default is a handler of ours."""
    monkeypatch.setattr(signals, "GRACE", -1.0)
    sent: list[int] = []

    def work() -> None:
        end = signal.getsignal(signal.SIGTERM)
        assert callable(end)
        try:
            end(signal.SIGTERM, None)
        finally:
            end(signal.SIGTERM, None)
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    monkeypatch.setattr(signal, "raise_signal", sent.append)
    try:
        with pytest.raises(SystemExit), ending():
            work()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert sent == [signal.SIGTERM]
