"""The plan of a run: its manifest, in whose row groups the work is cut, and what all its verdicts depend on.

Row group k of `manifest.parquet` becomes `verdicts/part-00000k.parquet`, whole or not at all. That is all there is to
"exactly once": a part that is there is done, any other is done again, and two workers on one part write the same rows.
"""

from __future__ import annotations

import json
import secrets
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from blemish.cluster.listing import Listed
from blemish.cluster.places import Place
from blemish.cluster.schema import MANIFEST, VERSION, number_of
from blemish.ownership import MARK, Mark
from blemish.types import BlemishError, Progress

FORMAT = "blemish cluster 1"
PLAN, MANIFEST_FILE, SUMMARY = "plan.json", "manifest.parquet", "summary.json"
VERDICTS, OVERLAYS, ATTEMPTS = "verdicts", "overlays", "attempts"
WRITTEN = (PLAN, MANIFEST_FILE, SUMMARY, VERDICTS, OVERLAYS, ATTEMPTS)
PER_FILE = 1000  # images in a file of verdicts, of many images
FEWEST, FILES = 32, 64  # of few images: so many in a file at least, and about so many files
SOURCES = 1000  # that are told apart; the others are one
OTHERS = "others"
ID = "blemish plan"  # in the manifest's metadata
KIND = "cluster inspection"  # what the mark of --out says


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
    device: str = "cpu"
    versions: dict[str, str] = field(default_factory=dict)  # see `start.versions`
    id: str = ""  # also in the manifest, so that both are known to belong together
    rows: int = 0
    bytes: int = 0
    per_file: int = 0
    files: int = 0
    sources: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    format: str = FORMAT
    schema: int = VERSION

    def asked(self) -> dict[str, Any]:
        """The fields that a user asks for; a run is gone on with only where all are the same."""
        counted = {"id", "rows", "bytes", "per_file", "files", "sources", "left_out"}
        counted |= {"max_pixels", "timeout"}  # what was refused for them may be tried again with others
        return {name: value for name, value in asdict(self).items() if name not in counted}

    def images_in(self, number: int) -> int:
        """How many images part `number` has."""
        return min(self.per_file, self.rows - number * self.per_file)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        return json.dumps(self.to_json(), indent=1) + "\n"


def begun(out: Place) -> Plan | None:
    """The plan that is in a folder; None where there is none. Raises `BlemishError` where that is damaged."""
    try:
        return TypeAdapter(Plan).validate_json(out.read(PLAN), strict=True)
    except FileNotFoundError:
        return None
    except ValueError:
        raise BlemishError(f"{out.at(PLAN)} is damaged, or of another version; {_remedy(out)}.") from None


def _remedy(out: Place) -> str:
    return "choose another --out" + (", or start again with --overwrite" if out.local else "")


def claim(out: Place) -> None:
    """Marks a bucket's prefix as blemish's, as `files.kept` does a folder. Raises `BlemishError` where something of
    another's has a name that would be written."""
    holds = out.holds()
    if MARK in holds:
        return
    if taken := sorted(holds & set(WRITTEN)):
        raise BlemishError(f"{out.at(taken[0])} is there, and was not written by blemish; choose another --out.")
    out.write(MARK, Mark(KIND, WRITTEN).content())


def same(found: Plan, asked: Plan, out: Place, per_file: int = 0) -> None:
    """Raises `BlemishError` unless `found` is the plan of what is asked, also of so many images in a file, if not 0."""
    before, now = found.asked(), asked.asked()
    then = ", ".join(f"{name} {version}" for name, version in found.versions.items())
    names = {"bundle": "another bundle", "source": f"another source, {found.source}"}
    names["device"] = "another --gpus-per-actor"
    names |= dict.fromkeys(("format", "schema", "versions"), f"other versions ({then})")
    words = [names.get(name, f"another --{name.replace('_', '-')}") for name in now if before[name] != now[name]]
    words += ["another --per-file"] if per_file not in (0, found.per_file) else []
    if different := dict.fromkeys(words):
        raise BlemishError(f"{out.uri} holds verdicts of {', '.join(different)}; {_remedy(out)}.")


def make(asked: Plan, listed: Listed, out: Place, per_file: int, progress: Progress) -> Plan:
    """Lists the images, and writes the manifest and, last, the plan. Holds one row group of images at a time.
    Raises `BlemishError` where there are no images."""
    if out.local:
        out.check()  # not only after hours of listing
    else:
        claim(out)
    entries = iter(progress(listed.entries, "listing", 0))
    first = list(islice(entries, FILES * PER_FILE))
    if not first:
        passed = ", ".join(f"{count} {reason}" for reason, count in listed.left_out.items())
        raise BlemishError(f"{asked.source}: holds no images{f' ({passed})' if passed else ''}; check what it names.")
    per_file = per_file or min(PER_FILE, max(FEWEST, -(-len(first) // FILES)))
    sources: Counter[str] = Counter()
    rows, size, number = 0, 0, secrets.token_hex(8)
    with tempfile.TemporaryDirectory(prefix="blemish-") as folder:
        file = Path(folder, MANIFEST_FILE)
        # Without statistics, of which the writer, and each worker, would hold those of all row groups.
        options = {"compression": "zstd", "use_dictionary": ["source"], "write_statistics": False}
        with pq.ParquetWriter(file, MANIFEST.with_metadata({ID: number}), **options) as writer:
            following = chain(first, entries)
            first = []  # all of it is on its way
            while group := list(islice(following, per_file)):
                columns = [list(range(rows, rows + len(group))), *zip(*group, strict=True)]
                writer.write_table(pa.table(columns, schema=writer.schema), row_group_size=per_file)
                sources.update(entry.source if known(sources, entry.source) else OTHERS for entry in group)
                rows += len(group)
                size += sum(entry.bytes or 0 for entry in group)
        out.upload(MANIFEST_FILE, file)
    plan = replace(
        asked,
        id=number,
        rows=rows,
        bytes=size,
        per_file=per_file,
        files=-(-rows // per_file),
        sources=dict(sources),
        left_out={str(reason): count for reason, count in listed.left_out.items()},
    )
    out.write(PLAN, plan.text().encode())
    return plan


def known(sources: Mapping[str, int], source: str) -> bool:
    """Whether a source is counted by itself."""
    return source in sources or len(sources) < SOURCES


def done(out: Place) -> set[int]:
    """The parts that are there."""
    return {number for name in out.names(VERDICTS) if (number := number_of(name)) is not None}
