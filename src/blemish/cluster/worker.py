"""What runs on a node: an actor with one Inspector, which turns row groups of the manifest into files of verdicts."""

from __future__ import annotations

import hashlib
import io
import os
import platform
import secrets
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq

from blemish.cluster.ahead import MOST, ahead
from blemish.cluster.places import LOCAL, Place, file_system, reason_of, split_uri
from blemish.cluster.plan import ATTEMPTS, ID, MANIFEST_FILE, OVERLAYS, PLAN, VERDICTS, Plan
from blemish.cluster.schema import map_columns, parquet, part, verdict_columns
from blemish.cluster.start import versions
from blemish.decoding import BESIDES, PER_PIXEL
from blemish.images import ImageError, read_file
from blemish.inference import overlay
from blemish.inference.inspector import Inspection, Inspector
from blemish.inference.naming import output_name
from blemish.types import DECISIONS, BlemishError, Verdict

PAUSES = (2.0, 10.0)  # seconds before a part that could not be written is written again
UNKNOWN = MOST // 4  # bytes that count for a file whose size is not known
TELL = 1.0  # seconds between two reports of progress
DEATHS = 2  # times that a worker may die on an image before that image is given up

Row = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """What every worker is told."""

    plan: Plan
    out: Place
    options: str  # of the source's URI
    root: str  # a folder of images that every node must see; "" where they are in a bucket, or in a table
    cpus: int
    max_pixels: int
    timeout: float

    @property
    def most(self) -> int:
        """Bytes of an image's file at most."""
        return BESIDES + PER_PIXEL * self.max_pixels


class Board:
    """Ray's actor beside the driver to which the workers report: how far each is with its part."""

    def __init__(self) -> None:
        self._workers: dict[str, Row] = {}

    def tell(self, worker: str, facts: Row) -> None:
        self._workers.pop(worker, None)
        self._workers[worker] = facts  # the newest is the last

    def state(self) -> dict[str, Row]:
        return self._workers


class Inspect:
    """The callable that Ray Data makes once in each actor. It is given a batch of one part's number, writes its file of
    verdicts, and returns one row that sums it up; its `refusal` says why it could not, where no node or no other try
    will do better."""

    def __init__(self, job: Job, shipped: list[Any], board: Any) -> None:
        import ray

        self.job, self.board = job, board
        self.name, self.node = f"{platform.node()}-{os.getpid()}-{secrets.token_hex(2)}", _node()
        self.refusal, self._told = "", 0.0
        try:
            self._check()
            if job.plan.device == "cuda" and "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
                raise BlemishError("its onnxruntime has no CUDA; install onnxruntime-gpu, or omit --gpus-per-actor.")
            self.inspector = Inspector(
                ray.get(shipped[0]),  # the bundle
                threads=job.cpus,
                max_pixels=job.max_pixels,
                timeout=job.timeout,
                device=job.plan.device,
            )
        except BlemishError as cause:
            self.refusal = f"node {self.node}: {cause}"

    def _check(self) -> None:
        """Raises `BlemishError` where this node cannot give the verdicts that the others give."""
        for name, version in self.job.plan.versions.items():
            if (here := versions()[name]) != version:
                raise BlemishError(f"has {name} {here}, and the driver {version}; install the same on every node.")
        try:
            seen = self.job.out.read(PLAN) == self.job.plan.text().encode()
        except FileNotFoundError:
            seen = False
        if not seen:
            raise BlemishError(f"does not see {self.job.out.uri}; give a folder that all nodes share, or a bucket.")
        if self.job.root and not Path(self.job.root).exists():
            raise BlemishError(f"does not see {self.job.root}; give images that all nodes share, or a bucket.")

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        summaries = [self._part(int(number)) for number in batch["part"]]
        return {name: [summary[name] for summary in summaries] for name in summaries[0]}

    def _part(self, number: int) -> Row:
        """Writes one part. What goes wrong is in its summary: Ray would try it again, or not tell the cause."""
        start, counts = time.perf_counter(), Counter[str]()
        summary: Row = {"part": number, "node": self.node, "refusal": self.refusal}
        if not self.refusal:
            try:
                self._write(number, counts)
            except BlemishError as cause:
                summary["refusal"] = f"node {self.node}: {cause}"
            except Exception as cause:
                first = str(cause).partition("\n")[0]
                summary["refusal"] = (
                    f"node {self.node}: {part(number)} cannot be made ({type(cause).__name__}: {first}); this is a "
                    "fault of blemish, please report it."
                )
        return {
            **summary,
            **{kind: counts[kind] for kind in DECISIONS},
            "seconds": time.perf_counter() - start,
            "memory": _peak_memory(),
        }

    def _write(self, number: int, counts: Counter[str]) -> None:
        """Inspects one row group, and writes its verdicts whole."""
        attempts = f"{ATTEMPTS}/{number:06}"
        earlier = self.job.out.names(attempts)
        self.job.out.write(f"{attempts}/try-{secrets.token_hex(4)}", b"")
        entries = self._manifest.read_row_group(number).to_pylist()
        # A worker died on this part: from now on one image at a time, so that it is known which one it was.
        rows = self._carefully(entries, attempts, earlier) if earlier else self._all(entries)
        written = []
        for row in rows:
            written.append(row)
            counts[row["decision"]] += 1
            self._tell(number, counts)
        content = parquet(written)
        for pause in (*PAUSES, None):
            try:
                self.job.out.write(f"{VERDICTS}/{part(number)}", content)
                break
            except BlemishError:
                if pause is None:
                    raise
                time.sleep(pause)
        self._tell(number, counts, last=True)
        self.job.out.remove(attempts)

    def _all(self, entries: list[Row]) -> Iterator[Row]:
        read = ahead(entries, lambda entry: (entry, self._read(entry)), lambda entry: entry["bytes"] or UNKNOWN)
        return self.inspector.in_threads(read, lambda pair: self._row(*pair))

    def _carefully(self, entries: list[Row], attempts: str, earlier: list[str]) -> Iterator[Row]:
        """One image after the other, each with a mark while it is inspected. An image is an error where workers died
        on it `DEATHS` times."""
        deaths = Counter(name.split("-")[1] for name in earlier if name.startswith("at-"))
        for entry in entries:
            mark = f"{attempts}/at-{entry['id']}-{secrets.token_hex(4)}"
            if deaths[str(entry["id"])] >= DEATHS:
                why = (
                    f"{entry['uri']}: the process that inspected it ended {DEATHS} times (killed, or out of memory); "
                    "look at the image, or give workers more memory."
                )
                yield self._columns(entry, Verdict(path=entry["uri"], decision="error", error=why), 0.0)
                continue
            self.job.out.write(mark, b"")
            yield self._row(entry, self._read(entry))
            self.job.out.remove_file(mark)

    def _read(self, entry: Row) -> bytes | ImageError:
        """The content of an image's file, or why there is none."""
        uri = entry["uri"]
        scheme, path = split_uri(uri)
        try:
            if not uri:
                return ImageError(
                    f"row {entry['id'] + 1} of the table, its header not counted, names no image; give its path."
                )
            if scheme == LOCAL:
                return read_file(path, self.job.most)
            bucket = path.partition("/")[0]
            with file_system(scheme, bucket, self.job.options).open_input_stream(path) as file:
                content: bytes = file.read(self.job.most + 1)
            if len(content) > self.job.most:
                return ImageError(
                    f"{uri} has more than {self.job.most:,} bytes, far more than an image needs; check it."
                )
            return content
        except BlemishError as cause:
            return ImageError(str(cause))
        except FileNotFoundError:
            return ImageError(f"{uri}: there is no such file; check the path.")
        except (OSError, ValueError, pa.ArrowException) as cause:
            return ImageError(f"{uri} cannot be read ({str(cause).partition(chr(10))[0]}); check access and network.")

    def _row(self, entry: Row, read: bytes | ImageError) -> Row:
        start = time.perf_counter()
        if isinstance(read, ImageError):
            verdict = Verdict(path=entry["uri"], decision="error", error=str(read))
            return self._columns(entry, verdict, time.perf_counter() - start)
        scheme, path = split_uri(entry["uri"])
        inspection = self.inspector.look(read, path if scheme == LOCAL else entry["uri"])
        row = self._columns(entry, inspection.verdict, 0.0)
        row |= {"bytes": len(read), "sha256": hashlib.sha256(read).hexdigest()}
        if self.job.plan.maps and inspection.map is not None:
            row |= map_columns(inspection.map)
        if self.job.plan.overlays and inspection.verdict.decision == "anomaly":
            row["overlay"] = self._overlay(entry, inspection)
        return {**row, "seconds": time.perf_counter() - start}

    def _columns(self, entry: Row, verdict: Verdict, seconds: float) -> Row:
        known = {name: entry[name] for name in ("id", "uri", "source", "bytes")}
        facts = {"bundle": self.job.plan.bundle, "seconds": seconds, "node": self.node}
        return {**known, **verdict_columns(verdict), **facts}

    def _overlay(self, entry: Row, inspection: Inspection) -> str:
        """Writes an anomaly's overlay; returns its name in the folder of the results."""
        assert inspection.image is not None
        low, high = inspection.color_range
        marked = overlay.overlay(inspection.image, inspection.map, inspection.verdict.regions, low=low, high=high)
        file = io.BytesIO()
        marked.save(file, "JPEG", quality=90)
        folder = f"{OVERLAYS}/{part(entry['id'] // self.job.plan.per_file).removesuffix('.parquet')}"
        name = f"{folder}/{output_name('{id:09}-'.format(**entry) + Path(entry['uri']).name)}.jpg"
        self.job.out.write(name, file.getvalue())
        return name

    def _tell(self, number: int, counts: Counter[str], *, last: bool = False) -> None:
        now = time.monotonic()
        if last or now - self._told > TELL:
            self._told = now
            self.board.tell.remote(self.name, {"part": number, "node": self.node, **counts})

    @cached_property
    def _manifest(self) -> Any:
        system, path = self.job.out.system()
        name = self.job.out.at(MANIFEST_FILE)
        try:
            file = pq.ParquetFile(system.open_input_file(f"{path}/{MANIFEST_FILE}"), memory_map=False)
        except (OSError, pa.ArrowException) as cause:
            raise BlemishError(f"{name}: {reason_of(cause)}; choose another --out.") from None
        if (file.schema_arrow.metadata or {}).get(ID.encode()) != self.job.plan.id.encode():
            raise BlemishError(f"{name} is not that of its plan: another run writes here; choose another --out.")
        return file


def _node() -> str:
    """The node's name: its host's, and its address, which differs where several run on one host."""
    import ray

    own = ray.get_runtime_context().get_node_id()
    address = next((node["NodeManagerAddress"] for node in ray.nodes() if node["NodeID"] == own), own[:8])
    return f"{platform.node()}/{address}"


def _peak_memory() -> int:
    """Bytes of memory that this process had at most; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
