"""How far two reviewers agree: Cohen's kappa over the images that both labelled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from blemish.evaluation.bootstrap import Floats, Interval, bootstrap_counts
from blemish.web.standing import stands
from blemish.web.tables import Correction, Image

_KEPT: WeakKeyDictionary[Any, dict[str, _Said]] = WeakKeyDictionary()  # by database, then product
_LOCK = Lock()  # so that two who ask at once do not both compute


@dataclass(frozen=True)
class Agreement:
    """Of two reviewers, by the first label that each gave to an image: what somebody says after a second look, once the
    other has spoken, is no independent reading. `kappa` is undefined where both gave all images one and the same label;
    `images` are the numbers of those on which they differed, and `open` of those on which they do so still, by the last
    label of each. `same` has, of each who gave all images one label, the name and that label: kappa is then 0 or
    undefined, however often they agree."""

    first: str
    second: str
    n: int
    agreed: int
    kappa: Interval
    images: tuple[int, ...]
    open: tuple[int, ...]
    same: tuple[tuple[str, str], ...]


def kappa(first: Sequence[str], second: Sequence[str]) -> Interval:
    """Cohen's kappa (1960) of two lists of labels of the same n images, with the 95 % percentile bootstrap over images.

    kappa = (o - e) / (1 - e), with o the share of images on which both agree, and e the share on which they would by
    chance, the sum over labels of the product of the shares in which each gives it. Undefined for e = 1 and for n = 0.

    Of four images, both call one good and two anomalies, and on one they differ: o = 3/4,
    e = 1/4 * 2/4 + 3/4 * 2/4 = 1/2.

    >>> kappa(["good", "anomaly", "anomaly", "anomaly"], ["good", "anomaly", "anomaly", "good"]).value
    0.5
    >>> kappa(["good", "good"], ["good", "good"]).value
    """
    if len(first) != len(second):
        raise ValueError(f"expected as many labels of both; got {len(first)} and {len(second)}")
    if not first:
        return Interval(None)
    names = sorted({*first, *second})
    pairs = Counter(zip(first, second, strict=True))
    one, two = (np.array([[pair[which] == name for name in names] for pair in pairs], float) for which in (0, 1))
    same = (one * two).sum(axis=1)

    def statistic(counts: Floats) -> Floats:
        total = counts.sum(axis=1)
        observed = counts @ same / total
        chance = ((counts @ one) * (counts @ two)).sum(axis=1) / total**2
        left = 1 - chance
        defined = left > 1e-12
        return np.where(defined, (observed - chance) / np.where(defined, left, 1), np.nan)

    return bootstrap_counts(statistic, [*pairs.values()])


@dataclass(frozen=True)
class _Said:
    """What was said until the correction `last`, and how far people agree, once somebody has asked for it."""

    last: int
    labels: Mapping[str, Mapping[int, str]]
    agreements: list[Agreement]


def labels(session: Session, product: str) -> Mapping[str, Mapping[int, str]]:
    """What each reviewer said last of each image: {name: {image: label}}. What was undone does not count."""
    return _said(session, product).labels


def agreements(session: Session, product: str) -> list[Agreement]:
    """Of each two reviewers who labelled at least one image both, those with most images first."""
    return _said(session, product).agreements


def _said(session: Session, product: str) -> _Said:
    """Computed again only where somebody has corrected something since."""
    with _LOCK:
        last = session.scalar(select(func.max(Correction.id))) or 0
        kept = _KEPT.setdefault(session.get_bind(), {})
        if product not in kept or kept[product].last != last:
            first, given = _labels(session, product)
            kept[product] = _Said(last, given, _agreements(first, given))
        return kept[product]


def _labels(session: Session, product: str) -> tuple[dict[str, dict[int, str]], dict[str, dict[int, str]]]:
    """What each reviewer said of each image first, and what last."""
    rows = session.execute(
        select(Correction.by, Correction.image_id, Correction.label)
        .join(Image, Image.id == Correction.image_id)
        .where(Image.product == product, Correction.action == "label", Correction.label.is_not(None), stands())
        .order_by(Correction.id)
    )
    first: dict[str, dict[int, str]] = {}
    last: dict[str, dict[int, str]] = {}
    for by, image, label in rows:
        first.setdefault(by, {}).setdefault(image, str(label))
        last.setdefault(by, {})[image] = str(label)
    return first, last


def _agreements(given: Mapping[str, Mapping[int, str]], last: Mapping[str, Mapping[int, str]]) -> list[Agreement]:
    found = []
    for first, second in combinations(sorted(given), 2):
        both = sorted(given[first].keys() & given[second].keys())
        if not both:
            continue
        one, two = [given[first][i] for i in both], [given[second][i] for i in both]
        differ = tuple(i for i, a, b in zip(both, one, two, strict=True) if a != b)
        still = tuple(i for i in both if last[first][i] != last[second][i])
        same = tuple((name, said[0]) for name, said in ((first, one), (second, two)) if len({*said}) == 1)
        agreed = len(both) - len(differ)
        found.append(Agreement(first, second, len(both), agreed, kappa(one, two), differ, still, same))
    return sorted(found, key=lambda pair: -pair.n)
