"""The plan of a run: its manifest, in whose row groups the work is cut, and what all its verdicts depend on.

Row group k of `manifest.parquet` becomes `verdicts/part-00000k.parquet`, whole or not at all. That is all there is to
"exactly once": a part that is there is done, any other is done again, and two workers on one part write the same rows.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from blemish import __version__
from blemish.cluster.listing import Entry, Listed
from blemish.cluster.places import Place
from blemish.cluster.schema import MANIFEST, VERSION, number_of
from blemish.types import BlemishError, Progress

FORMAT = "blemish cluster 1"
PLAN, MANIFEST_FILE, SUMMARY = "plan.json", "manifest.parquet", "summary.json"
VERDICTS, OVERLAYS, ATTEMPTS = "verdicts", "overlays", "attempts"
WRITTEN = (PLAN, MANIFEST_FILE, SUMMARY, VERDICTS, OVERLAYS, ATTEMPTS)
PER_FILE = 1000  # images in a file of verdicts, of many images
FEWEST, FILES = 32, 64  # of few images: so many in a file at least, and about so many files
SOURCES = 1000  # that are told apart; the others are one
OTHERS = "others"


@dataclass(frozen=True)
class Plan:
    """What the verdicts in a folder depend on, and the work: `files` parts with `per_file` images each, the last fewer.
    `sources` counts images, `left_out` files by reason."""

    bundle: str  # SHA-256 of its card
    source: str
    column: str
    maps: bool
    overlays: bool
    max_pixels: int
    timeout: float
    rows: int = 0
    bytes: int = 0
    per_file: int = 0
    files: int = 0
    sources: dict[str, int] | None = None
    left_out: dict[str, int] | None = None
    format: str = FORMAT
    schema: int = VERSION
    blemish: str = __version__

    def asked(self) -> dict[str, Any]:
        """The fields that a user asks for; a run is gone on with only where all are the same."""
        counted = {"rows", "bytes", "per_file", "files", "sources", "left_out", "blemish"}
        return {name: value for name, value in asdict(self).items() if name not in counted}

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        return json.dumps(self.to_json(), indent=1) + "\n"


def begun(out: Place) -> Plan | None:
    """The plan that is in a folder; None where there is none. Raises `BlemishError` where that is damaged."""
    try:
        content = json.loads(out.read(PLAN))
        return Plan(**{field.name: content[field.name] for field in fields(Plan)})
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise BlemishError(
            f"{out.at(PLAN)} is damaged; choose another --out, or start again with --overwrite."
        ) from None


def same(found: Plan, asked: Plan, out: Place) -> None:
    """Raises `BlemishError` unless `found` is the plan of what is asked."""
    before, now = found.asked(), asked.asked()
    version = f"another version, {found.blemish}"
    names = {"bundle": "another bundle", "source": f"another source, {found.source}"}
    names |= {"format": version, "schema": version}
    words = [names.get(name, f"another --{name.replace('_', '-')}") for name in now if before[name] != now[name]]
    if different := dict.fromkeys(words):
        raise BlemishError(
            f"{out.uri} holds verdicts of {', '.join(different)}; choose another --out, or start again with "
            "--overwrite."
        )


def make(asked: Plan, listed: Listed, out: Place, per_file: int, progress: Progress) -> Plan:
    """Lists the images, and writes the manifest and, last, the plan. Holds one row group of images at a time.
    Raises `BlemishError` where there are no images."""
    out.check()  # not only after hours of listing
    entries = iter(progress(listed.entries, "listing", 0))
    first = list(islice(entries, FILES * PER_FILE))
    if not first:
        passed = ", ".join(f"{count} {reason}" for reason, count in listed.left_out.items())
        raise BlemishError(f"{asked.source}: holds no images{f' ({passed})' if passed else ''}; check what it names.")
    per_file = per_file or min(PER_FILE, max(FEWEST, -(-len(first) // FILES)))
    sources: Counter[str] = Counter()
    rows = size = 0
    with tempfile.TemporaryDirectory(prefix="blemish-") as folder:
        file = Path(folder, MANIFEST_FILE)
        # Without statistics, of which the writer, and each worker, would hold those of all row groups.
        options = {"compression": "zstd", "use_dictionary": ["source"], "write_statistics": False}
        with pq.ParquetWriter(file, MANIFEST, **options) as writer:
            for group in _groups(chain(first, entries), per_file):
                first = []  # all of it is on its way
                names = [_counted(entry.source, sources) for entry in group]
                ids = range(rows, rows + len(group))
                columns = [list(ids), [e.uri for e in group], [e.bytes for e in group], names]
                writer.write_table(pa.table(columns, schema=MANIFEST), row_group_size=per_file)
                rows += len(group)
                size += sum(entry.bytes or 0 for entry in group)
        out.upload(MANIFEST_FILE, file)
    known = {**asdict(asked), "rows": rows, "bytes": size, "per_file": per_file, "files": -(-rows // per_file)}
    plan = Plan(**{**known, "sources": dict(sources), "left_out": dict(listed.left_out)})
    out.write(PLAN, plan.text().encode())
    return plan


def _groups(entries: Iterator[Entry], per_file: int) -> Iterator[list[Entry]]:
    while group := list(islice(entries, per_file)):
        yield group


def _counted(source: str, sources: Counter[str]) -> str:
    if source not in sources and len(sources) >= SOURCES:
        source = OTHERS
    sources[source] += 1
    return source


def done(out: Place) -> set[int]:
    """The parts that are there."""
    return {number for name in out.names(VERDICTS) if (number := number_of(name)) is not None}
