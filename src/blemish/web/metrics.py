"""What the server counts, for Prometheus. Each server has a registry of its own; counts begin at its start.

Labels are of few values: products that have a detector, decisions, states, and status codes of HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 60.0)


class Metrics:
    """Counters of one server."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._verdicts = Counter(
            "blemish_verdicts", "Verdicts that were recorded.", ("product", "decision"), registry=registry
        )
        self._seconds = Histogram(
            "blemish_inspect_seconds",
            "From the image's last byte to its recorded verdict.",
            ("product",),
            buckets=SECONDS,
            registry=registry,
        )
        self._failed = Counter("blemish_errors", "Answers that were errors.", ("status",), registry=registry)
        self._queue = Gauge("blemish_queue", "Images that wait for a person.", ("product",), registry=registry)
        self._jobs = Gauge("blemish_jobs", "Trainings.", ("state",), registry=registry)
        self._head = Gauge("blemish_log_entries", "Number of the log's last entry.", registry=registry)

    def judged(self, product: str, decision: str, seconds: float) -> None:
        self._verdicts.labels(product, decision).inc()
        self._seconds.labels(product).observe(seconds)

    def failed(self, status: int) -> None:
        self._failed.labels(str(status)).inc()

    def text(self, queue: Mapping[str, int], jobs: Mapping[str, int], head: int) -> bytes:
        """All of it, with what the database says now."""
        self._queue.clear()
        for product, waiting in queue.items():
            self._queue.labels(product).set(waiting)
        self._jobs.clear()
        for state, number in jobs.items():
            self._jobs.labels(state).set(number)
        self._head.set(head)
        return generate_latest(self.registry)
