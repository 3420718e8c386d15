"""The command that inspects a folder while images are written into it, registered by `cli/app.py`."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blemish.cli.verdicts import INCOMPLETE, DriftFile, print_verdict, summary
from blemish.cli.words import say, say_raw
from blemish.types import BlemishError

if TYPE_CHECKING:
    from blemish.station.deliveries import Outbox
    from blemish.station.receivers import Target
    from blemish.types import Verdict

GRACE = 10.0  # seconds that it may take to end after a signal
SAME = 1.0  # seconds in which another signal is the same request: some send it to a process and to its group


def watch(
    folder: Annotated[Path, typer.Argument(help="The folder that images are written into.")],
    bundle: Annotated[Path, typer.Option(help="What `blemish train` wrote: the folder, its bundle, or a .zip.")],
    out: Annotated[Path, typer.Option(help="Write verdicts.jsonl, overlays and evidence here, and resume from there.")],
    evidence: Annotated[
        bool | None, typer.Option(help="Of anomalies, show the nearest normal patches and an inpainted image.")
    ] = None,
    drift: Annotated[
        Path | None, typer.Option(help="Keep a test here: do good parts still look like the calibration set?")
    ] = None,
    webhook: Annotated[str | None, typer.Option(help="POST each verdict to this address.")] = None,
    mqtt: Annotated[str | None, typer.Option(help="Publish each verdict to this broker, HOST or HOST:PORT.")] = None,
    topic: Annotated[str, typer.Option(help="The topic to publish on.")] = "blemish",
    mqtt_tls: Annotated[bool, typer.Option("--mqtt-tls", help="Encrypted; the port is then 8883.")] = False,
    settle: Annotated[float, typer.Option(min=0, help="Seconds unchanged after which a file is complete.")] = 1.0,
    give_up: Annotated[float, typer.Option(min=0, help="Seconds unchanged after which it is broken.")] = 10.0,
    poll: Annotated[float, typer.Option(min=0.01, help="Seconds between two listings of the folder.")] = 0.5,
    once: Annotated[bool, typer.Option("--once", help="Inspect what is there, then stop.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print each line of verdicts.jsonl instead of text.")] = False,
    threads: Annotated[int, typer.Option(min=0, help="Processor threads; 0 = all.")] = 0,
    max_pixels: Annotated[int, typer.Option(min=1, help="Refuse larger images.")] = 100_000_000,
    timeout: Annotated[float, typer.Option(help="Seconds that the graph may take for an image or four tiles.")] = 60.0,
    device: Annotated[str, typer.Option(help="cpu, or cuda with onnxruntime-gpu.")] = "cpu",
) -> None:
    """Inspect a folder while images are written into it: each once, in order."""
    from blemish.files import kept
    from blemish.inference.inspector import Inspector
    from blemish.inference.results import WRITTEN
    from blemish.station.deliveries import Outbox
    from blemish.station.journal import Journal, is_foreign
    from blemish.station.watch import UNJUDGED, WatchConfig
    from blemish.station.watch import watch as run

    config = WatchConfig(
        folder, out, settle=settle, give_up=give_up, poll=poll, once=once, evidence=evidence is not False
    )
    targets = _targets(webhook, mqtt, topic, mqtt_tls)
    for warning in (target.warning for target in targets if target.warning):
        _notify(warning)
    inspector = Inspector(bundle, threads=threads, max_pixels=max_pixels, timeout=timeout, device=device)
    drift_file = DriftFile(drift, inspector.card, anew=True) if drift else None

    def read(row: dict[str, Any]) -> None:
        if drift_file and row.get("bundle") == inspector.card.sha256:
            drift_file.see(row["score"])

    own = kept(out, "watch", WRITTEN, resume=True, foreign=is_foreign)
    with _stopped_by_signals() as stop, own, Journal(out, read) as journal:
        if drift_file:
            drift_file.check_complete(journal.file)
        outboxes = [Outbox(journal, target, _notify) for target in targets]
        try:
            counts = run(inspector, config, journal, stop, _to_all(outboxes, as_json, drift_file), _notify)
        finally:
            for outbox in outboxes:
                outbox.close()
    unjudged = counts.pop(UNJUDGED, 0)
    if unjudged:
        _notify(f"{unjudged} images or folders could not be inspected, for the reasons above; run it again.")
    if not as_json:
        say(f"{summary(counts)} Verdicts are in {journal.file}.")
    if drift_file:
        _notify(drift_file.save())
    if once and (counts["error"] or unjudged):
        raise typer.Exit(INCOMPLETE)


def _to_all(
    outboxes: Sequence[Outbox], as_json: bool, drift_file: DriftFile | None
) -> Callable[[Verdict, bytes], None]:
    """A function that gives a verdict and its line to the receivers, the terminal and the drift test."""

    def deliver(verdict: Verdict, line: bytes) -> None:
        for outbox in outboxes:
            outbox.wake()
        if as_json:
            say_raw(line.decode().rstrip("\n"))
        else:
            print_verdict(verdict, False)
        if drift_file and drift_file.see(verdict.score):
            _notify(drift_file.save())

    return deliver


def _targets(webhook: str | None, mqtt: str | None, topic: str, tls: bool) -> list[Target]:
    from blemish.station.receivers import Mqtt, Webhook

    if tls and not mqtt:
        raise BlemishError("--mqtt-tls is about a broker; name it with --mqtt.")
    targets: list[Target] = [Webhook(webhook)] if webhook else []
    return [*targets, Mqtt(mqtt, topic, tls=tls)] if mqtt else targets


@contextmanager
def _stopped_by_signals() -> Iterator[Event]:
    """An event that Ctrl-C and SIGTERM set, so that what was begun is finished. A second one ends the process at once,
    and so does `GRACE`: an image, a disk or a terminal that never answers must not hold it."""
    stop = Event()
    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    def wait() -> None:
        # The system writes here even where the main thread is deep in a library and runs no handler.
        signals = os.read(reading, 1)
        begun, left = time.monotonic(), GRACE
        stop.set()
        while signals and left > 0 and select.select([reading], [], [], left)[0]:
            if not os.read(reading, 1):  # nobody writes any more: the watch is over
                return
            left = begun + GRACE - time.monotonic() if time.monotonic() - begun < SAME else 0
        if signals:
            os._exit(128 + signals[0])

    def handle(_number: int, _frame: object) -> None:
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    woken = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    waiter = Thread(target=wait, name="signals", daemon=True)
    waiter.start()
    try:
        yield stop
    finally:
        signal.set_wakeup_fd(woken)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(writing)
        waiter.join()
        os.close(reading)


def _notify(sentence: str) -> None:
    """What is not a verdict goes to standard error."""
    say(sentence, err=True)
