"""The tables of the database. Times are text, UTC, ISO 8601 with milliseconds: the same on every database, in order.

A verdict and a correction are never changed or deleted; the columns of an image that say what it is now (its label, its
latest verdict) follow from them. `log` is the hash chain over all of them, see `ledger.py`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, Float, ForeignKey, Index, Integer, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship


def now() -> str:
    """The time as the tables keep it: `2026-11-30T13:44:29.123+00:00`."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Base(DeclarativeBase):
    type_annotation_map = {dict[str, Any]: JSON, list[dict[str, Any]]: JSON}  # noqa: RUF012


class Product(Base):
    """What is inspected, by the name on its bundles' cards; `detector_id` is the version that judges."""

    __tablename__ = "product"
    name: Mapped[str] = mapped_column(String(255), primary_key=True)
    detector_id: Mapped[int | None] = mapped_column(Integer)


class Detector(Base):
    """A version of a product's detector. `kind`: "imported", "learned", or "threshold" (another threshold of `parent`).

    `folder` is below `Folder.detectors`; `metrics` is the content of its run's metrics.json, {} without one.
    """

    __tablename__ = "detector"
    __table_args__ = (UniqueConstraint("product", "version"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64), unique=True)  # of the bundle's card
    product: Mapped[str] = mapped_column(String(255), ForeignKey("product.name"))
    version: Mapped[int]
    kind: Mapped[str] = mapped_column(String(16))
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("detector.id"))
    job_id: Mapped[int | None]
    created: Mapped[str] = mapped_column(String(32))
    by: Mapped[str] = mapped_column(String(64))
    note: Mapped[str] = mapped_column(Text, default="")
    metrics: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)


class Promotion(Base):
    """A version was made the one that judges; the latest of a product counts. Rolling back is a promotion too."""

    __tablename__ = "promotion"
    id: Mapped[int] = mapped_column(primary_key=True)
    product: Mapped[str] = mapped_column(String(255))
    detector_id: Mapped[int] = mapped_column(ForeignKey("detector.id"))
    before_id: Mapped[int | None]  # the version that judged before
    by: Mapped[str] = mapped_column(String(64))
    time: Mapped[str] = mapped_column(String(32))


class Image(Base):
    """An image of one product, by the hash of its bytes. `ending` is "" where it cannot be decoded and is not kept.

    `split` is "" until it is labelled, then "train" or "test" for good. `shapes` are polygons around the defect in
    pixels, [{"points": [[x, y], ...]}]; `mask` is the hash of an imported mask. `queue` is its rank in the review
    queue, see `review.py`; None = not in it.
    """

    __tablename__ = "image"
    __table_args__ = (
        UniqueConstraint("product", "sha256"),
        Index("image_queue", "product", "queue", "id"),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64), index=True)
    product: Mapped[str] = mapped_column(String(255), ForeignKey("product.name"))
    name: Mapped[str] = mapped_column(Text)  # under which it came first; only ever shown
    ending: Mapped[str] = mapped_column(String(8), default="")
    width: Mapped[int | None]
    height: Mapped[int | None]
    added: Mapped[str] = mapped_column(String(32))
    label: Mapped[str | None] = mapped_column(String(16))  # "good", "anomaly"
    defect: Mapped[str] = mapped_column(String(100), default="")
    shapes: Mapped[list[dict[str, Any]]] = mapped_column(JSON, default=list)
    mask: Mapped[str] = mapped_column(String(64), default="")
    split: Mapped[str] = mapped_column(String(8), default="")
    item: Mapped[str] = mapped_column(Text, default="")  # images of one item stay in one split
    labelled_by: Mapped[str] = mapped_column(String(64), default="")
    verdict_id: Mapped[int | None]  # the latest
    queue: Mapped[float | None] = mapped_column(Float)


class Verdict(Base):
    """One judgement of one image by one version, as `types.Verdict`."""

    __tablename__ = "verdict"
    __table_args__ = (
        Index("verdict_time", "time"),
        Index("verdict_image", "image_id"),
        Index("verdict_detector", "detector_id", "id"),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    image_id: Mapped[int] = mapped_column(ForeignKey("image.id"))
    detector_id: Mapped[int] = mapped_column(ForeignKey("detector.id"))
    time: Mapped[str] = mapped_column(String(32))
    name: Mapped[str] = mapped_column(Text)
    source: Mapped[str] = mapped_column(String(255))  # "page", "webcam", "api", "folder NAME", "again"
    by: Mapped[str] = mapped_column(String(64))
    request: Mapped[str | None] = mapped_column(String(100), unique=True)  # a repeated request is the same verdict
    decision: Mapped[str] = mapped_column(String(8))
    score: Mapped[float | None]
    threshold: Mapped[float | None]
    p_value: Mapped[float | None]
    probability: Mapped[float | None]
    defect: Mapped[str] = mapped_column(String(100), default="")
    regions: Mapped[list[dict[str, Any]]] = mapped_column(JSON, default=list)
    error: Mapped[str | None] = mapped_column(Text)
    image: Mapped[Image] = relationship(lazy="joined")
    detector: Mapped[Detector] = relationship(lazy="joined")


class Correction(Base):
    """What a person said of an image. `action`: "label", "again" (another look), "skip", or "undo" of `undoes`.

    `before` is what the image's columns were, so that it can be undone. Its "kept", where there is any, names those
    columns of which a label said nothing: the image kept them, and here they are empty.
    """

    __tablename__ = "correction"
    __table_args__ = (Index("correction_image", "image_id"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    image_id: Mapped[int] = mapped_column(ForeignKey("image.id"))
    verdict_id: Mapped[int | None]  # that was seen
    time: Mapped[str] = mapped_column(String(32))
    by: Mapped[str] = mapped_column(String(64))
    action: Mapped[str] = mapped_column(String(8))
    label: Mapped[str | None] = mapped_column(String(16))
    defect: Mapped[str] = mapped_column(String(100), default="")
    shapes: Mapped[list[dict[str, Any]]] = mapped_column(JSON, default=list)
    note: Mapped[str] = mapped_column(Text, default="")
    before: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    undoes: Mapped[int | None]
    image: Mapped[Image] = relationship(lazy="joined")


class Job(Base):
    """A training in a process of its own. `state`: "queued", "running", "done", "failed", "cancelled".

    `comparison` is what `reporting.compare.compare` gives of the version that judged (first) and the new one, on the
    images that are held out, as `comparison.compared` has it; {} where there is none.
    """

    __tablename__ = "job"
    id: Mapped[int] = mapped_column(primary_key=True)
    product: Mapped[str] = mapped_column(String(255))
    state: Mapped[str] = mapped_column(String(16))
    by: Mapped[str] = mapped_column(String(64))
    created: Mapped[str] = mapped_column(String(32))
    started: Mapped[str | None] = mapped_column(String(32))
    ended: Mapped[str | None] = mapped_column(String(32))
    settings: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    stage: Mapped[str] = mapped_column(Text, default="")
    done: Mapped[int] = mapped_column(default=0)
    total: Mapped[int] = mapped_column(default=0)
    error: Mapped[str] = mapped_column(Text, default="")
    before_id: Mapped[int | None]  # the version that judged
    detector_id: Mapped[int | None]  # the new version
    comparison: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)


class User(Base):
    """Who may log in. `role`: "inspector", "reviewer", "admin". `token` is the SHA-256 of a token for programs."""

    __tablename__ = "user"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    role: Mapped[str] = mapped_column(String(16))
    password: Mapped[str | None] = mapped_column(Text)  # argon2id
    token: Mapped[str | None] = mapped_column(String(64), unique=True)
    created: Mapped[str] = mapped_column(String(32))


class Session(Base):
    """Somebody who is there: with a user where people log in, else with the name that they gave."""

    __tablename__ = "session"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)  # SHA-256 of the cookie
    user_id: Mapped[int | None] = mapped_column(ForeignKey("user.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(64), default="")
    expires: Mapped[str] = mapped_column(String(32))


class Log(Base):
    """The hash chain, see `station.chain`. `kind` names a table, `ref` its row."""

    __tablename__ = "log"
    __table_args__ = (Index("log_ref", "kind", "ref"),)
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    time: Mapped[str] = mapped_column(String(32))
    kind: Mapped[str] = mapped_column(String(16))
    ref: Mapped[int]
    body: Mapped[str] = mapped_column(Text)  # canonical JSON
    previous: Mapped[str] = mapped_column(String(64), unique=True)  # so that the chain cannot fork
    hash: Mapped[str] = mapped_column(String(64))
