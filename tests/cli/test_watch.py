"""The program as it runs in production: started, killed, started again."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from blemish.atomic import open_regular
from tests.conftest import tile
from tests.station.test_deliveries import Broker, Receiver, needs_mosquitto, subscribed
from tests.support import blemish, eventually, refused, write_image

QUICK = ["--settle", "0", "--give-up", "0", "--poll", "0.01", "--threads", "1"]
FIVE = 5 * 10**9


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Receivers on this machine are contacted directly, also where the environment names a proxy."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """24 images of which the last but one is broken; four are defective, and one good one is a false alarm."""
    for i in range(24):
        path = write_image(tmp_path / f"in/{i}.png", tile(900 + i, (20, 30) if i % 6 == 1 else None)[0])
        if i == 22:
            path.write_bytes(b"no image")
        os.utime(path, ns=(FIVE + i, FIVE + i))
    return tmp_path / "in"


def command(run: Path, folder: Path, *more: object) -> list[str]:
    arguments = ["watch", folder, "--bundle", run, "--out", folder.parent / "out", *QUICK, *more]
    return [sys.executable, "-m", "blemish", *map(str, arguments)]


def start(run: Path, folder: Path, *more: object) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(command(run, folder, *more), stdout=pipe, stderr=pipe, text=True)


def lines(folder: Path) -> list[str]:
    file = folder.parent / "out/verdicts.jsonl"
    return file.read_text("utf-8").splitlines() if file.exists() else []


def names(folder: Path) -> list[str]:
    return [json.loads(line)["name"] for line in lines(folder)]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


def test_two_kills_lose_nothing_and_repeat_nothing(run: Path, folder: Path, receiver: Receiver) -> None:
    receiver.answers = [503]
    for least in (3, 9):
        process = start(run, folder, "--webhook", receiver.url)
        eventually(lambda least=least: len(lines(folder)) >= least)  # type: ignore[misc]
        process.kill()
        assert process.communicate()[1].count("does not take verdicts") <= 1
        assert process.returncode == -signal.SIGKILL
    with (folder.parent / "out/verdicts.jsonl").open("ab") as file:
        file.write(b'{"id": "torn')
    done = subprocess.run(
        command(run, folder, "--once", "--webhook", receiver.url), capture_output=True, text=True, check=False
    )
    assert done.returncode == 3, done.stderr  # one was broken
    assert names(folder) == [f"{i}.png" for i in range(24)]
    assert [json.loads(line)["decision"] for line in lines(folder)].count("error") == 1
    assert list(dict.fromkeys(receiver.taken)) == names(folder)  # at least once, in order
    assert len(receiver.taken) <= 24 + 2  # and after each kill at most one message again
    assert (
        blemish("log", "verify", folder.parent / "out").stdout.splitlines()[-1].startswith("24 entries, no problem; ")
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_after_the_images_that_were_begun(run: Path, folder: Path, number: signal.Signals) -> None:
    process = start(run, folder)
    eventually(lambda: len(lines(folder)) >= 2)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 0, stderr
    assert "Traceback" not in stderr
    count = len(lines(folder))
    assert stdout.splitlines()[-1].startswith(f"{count} images: ")
    assert names(folder) == [f"{i}.png" for i in range(count)]


def test_a_second_watcher_is_refused_until_the_first_is_killed(run: Path, folder: Path) -> None:
    process = start(run, folder)
    eventually(lambda: lines(folder))
    second = ["watch", folder, "--bundle", run, "--out", folder.parent / "out", "--once", *QUICK]
    assert "another process writes there" in refused(*second)
    process.kill()
    process.communicate()
    blemish(*second, code=3)
    assert len(names(folder)) == len(set(names(folder))) == 24


def test_a_deleted_journal_ends_it_with_2_and_the_next_run_begins_a_new_one(
    run: Path, folder: Path, receiver: Receiver
) -> None:
    process = start(run, folder, "--webhook", receiver.url)
    eventually(lambda: lines(folder))
    (folder.parent / "out/verdicts.jsonl").unlink()
    stderr = process.communicate(timeout=30)[1]
    assert process.returncode == 2
    assert stderr.splitlines()[-1].startswith("blemish: ")
    assert "was deleted or moved away" in stderr.splitlines()[-1]
    blemish("watch", folder, "--bundle", run, "--out", folder.parent / "out", "--once", *QUICK, code=3)
    assert len(names(folder)) == 24


def test_a_reader_that_stops_does_not_keep_it_from_ending(run: Path, folder: Path) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with suppress(BlockingIOError):  # a terminal that is held: every write to it waits
        while True:
            os.write(writing, bytes(1 << 16))
    os.set_blocking(writing, True)
    shorter = "from blemish.cli import app, watch; watch.GRACE = 2; app.main()"
    options = command(run, folder)[3:]
    process = subprocess.Popen([sys.executable, "-c", shorter, *options], stdout=writing, stderr=subprocess.DEVNULL)
    eventually(lambda: lines(folder))
    process.send_signal(signal.SIGTERM)
    begun = time.monotonic()
    assert process.wait(30) == 128 + signal.SIGTERM
    assert 1 < time.monotonic() - begun < 20
    os.close(reading)
    os.close(writing)
    count = len(names(folder))
    blemish("watch", folder, "--bundle", run, "--out", folder.parent / "out", "--once", *QUICK, code=3)
    assert len(names(folder)) == len(set(names(folder))) == 24 >= count


def test_what_trouble_leaves_without_a_verdict_is_counted(
    run: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(path: Path) -> Any:
        if path.name == "3.png":
            raise PermissionError(13, "Permission denied")
        return open_regular(path)

    (folder / "22.png").unlink()
    monkeypatch.setattr("blemish.station.watch.open_regular", refusing)
    printed = blemish("watch", folder, "--bundle", run, "--out", folder.parent / "out", "--once", *QUICK, code=3)
    assert "3.png: cannot be inspected now (Permission denied)" in printed.stderr
    assert "1 images or folders could not be inspected" in printed.stderr
    assert printed.stdout.splitlines()[-1].startswith("22 images: ")
    monkeypatch.undo()
    blemish("watch", folder, "--bundle", run, "--out", folder.parent / "out", "--once", *QUICK)
    assert names(folder)[-1] == "3.png"


def test_a_secret_that_would_be_sent_unencrypted_is_warned_of_and_none_is_printed(
    run: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BLEMISH_WEBHOOK_TOKEN", "geheim")
    arguments = ["watch", folder, "--bundle", run, "--out", folder.parent / "out", "--once", *QUICK, "--webhook"]
    printed = blemish(*arguments, "http://host.invalid/geheim?geheim", code=3)
    assert "is sent unencrypted" in printed.stderr
    assert "geheim" not in printed.stdout + printed.stderr
    monkeypatch.setenv("BLEMISH_WEBHOOK_TOKEN", "geheim\n")
    assert "geheim" not in refused(*arguments, "https://host.invalid/")
    assert "geheim" not in refused(*arguments, "https://user:geheim@host.invalid/")


def test_once_prints_what_inspect_prints(run: Path, folder: Path, tmp_path: Path) -> None:
    arguments = ["watch", folder, "--bundle", run, "--once", *QUICK, "--out"]
    watched = blemish(*arguments, tmp_path / "a", code=3).stdout.splitlines()
    inspected = blemish("inspect", run, *(folder / f"{i}.png" for i in range(24)), code=3).stdout.splitlines()
    assert watched == [*inspected[:-1], f"{inspected[-1]} Verdicts are in {tmp_path}/a/verdicts.jsonl."]
    assert re.fullmatch(r"24 images: \d+ good, \d+ anomaly, 1 error\.", inspected[-1])
    (folder / "22.png").unlink()
    printed = blemish(*arguments, tmp_path / "b", "--json", "--no-evidence").stdout
    assert printed == (tmp_path / "b/verdicts.jsonl").read_text("utf-8")
    assert not (tmp_path / "b/evidence").exists()
    assert blemish(*arguments, tmp_path / "b", "--json").stdout == ""


def test_the_drift_test_is_resumed_after_a_kill(run: Path, folder: Path, tmp_path: Path) -> None:
    drift = tmp_path / "drift.json"
    process = start(run, folder, "--drift", drift)
    eventually(lambda: len(lines(folder)) >= 4)
    process.kill()
    process.communicate()
    arguments = ["watch", folder, "--bundle", run, "--once", *QUICK, "--drift"]
    blemish(*arguments, drift, "--out", tmp_path / "out", code=3)
    saved = drift.read_text("utf-8")
    images = [folder / f"{i}.png" for i in range(24)]
    blemish("inspect", run, *images, "--drift", tmp_path / "whole.json", code=3)
    assert json.loads(saved) == json.loads((tmp_path / "whole.json").read_text("utf-8"))
    blemish(*arguments, drift, "--out", tmp_path / "out")  # there is nothing new, and nothing is counted twice
    assert drift.read_text("utf-8") == saved
    assert "has seen 23 parts, and only 0" in refused(*arguments, drift, "--out", tmp_path / "other")


@needs_mosquitto
def test_mqtt_from_the_command_line(run: Path, folder: Path, tmp_path: Path) -> None:
    broker = Broker(tmp_path, "allow_anonymous true")
    try:
        with subscribed(broker, "line/1") as received:
            arguments = ["watch", folder, "--bundle", run, "--once", *QUICK, "--out", tmp_path / "out"]
            printed = blemish(*arguments, "--mqtt", broker.address, "--topic", "line/1", code=3)
            eventually(lambda: len(received) == 24)
        assert received == names(folder)
        assert printed.stderr == ""
    finally:
        broker.kill()


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--mqtt-tls"], "--mqtt-tls is about a broker"),
        (["--webhook", "ftp://a"], "--webhook takes an address"),
        (["--mqtt", "a b/c"], "--mqtt takes HOST"),
        (["--settle", "20"], "--give-up"),
    ],
)
def test_impossible_options_are_refused(run: Path, folder: Path, more: list[Any], sentence: str) -> None:
    assert sentence in refused("watch", folder, "--bundle", run, "--out", folder.parent / "out", *more)
    assert not (folder.parent / "out").exists()


def test_a_folder_that_is_missing_is_refused_at_the_start(run: Path, tmp_path: Path) -> None:
    begun = time.monotonic()
    assert "is not a folder" in refused("watch", tmp_path / "in", "--bundle", run, "--out", tmp_path / "out")
    assert time.monotonic() - begun < 10
