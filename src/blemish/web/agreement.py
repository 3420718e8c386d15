"""How far two reviewers agree: Cohen's kappa over the images that both labelled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from blemish.evaluation.bootstrap import Floats, Interval, bootstrap
from blemish.web.review import UNDOING
from blemish.web.tables import Correction, Image


@dataclass(frozen=True)
class Agreement:
    """Of two reviewers. `kappa` is undefined where both gave all images one and the same label; `images` are the
    numbers of those on which they differ."""

    first: str
    second: str
    n: int
    agreed: int
    kappa: Interval
    images: tuple[int, ...]


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
    one, two = (np.array([[label == name for name in names] for label in labels], float) for labels in (first, second))
    same = (one * two).sum(axis=1)

    def statistic(weights: Floats) -> Floats:
        total = weights.sum(axis=1)
        observed = weights @ same / total
        chance = ((weights @ one) * (weights @ two)).sum(axis=1) / total**2
        left = 1 - chance
        defined = left > 1e-12
        return np.where(defined, (observed - chance) / np.where(defined, left, 1), np.nan)

    return bootstrap(statistic, len(first))


def labels(session: Session, product: str) -> Mapping[str, Mapping[int, str]]:
    """What each reviewer said last of each image: {name: {image: label}}. What was undone does not count."""
    rows = session.execute(
        select(Correction.by, Correction.image_id, Correction.label)
        .join(Image, Image.id == Correction.image_id)
        .where(Image.product == product, Correction.action == "label", Correction.label.is_not(None))
        .where(Correction.id.not_in(select(Correction.undoes).where(UNDOING)))
        .order_by(Correction.id)
    )
    found: dict[str, dict[int, str]] = {}
    for by, image, label in rows:
        found.setdefault(by, {})[image] = str(label)
    return found


def agreements(session: Session, product: str) -> list[Agreement]:
    """Of each two reviewers who labelled at least one image both, those with most images first."""
    given = labels(session, product)
    found = []
    for first, second in combinations(sorted(given), 2):
        both = sorted(given[first].keys() & given[second].keys())
        if not both:
            continue
        one, two = [given[first][i] for i in both], [given[second][i] for i in both]
        differ = tuple(i for i, a, b in zip(both, one, two, strict=True) if a != b)
        found.append(Agreement(first, second, len(both), len(both) - len(differ), kappa(one, two), differ))
    return sorted(found, key=lambda pair: -pair.n)
