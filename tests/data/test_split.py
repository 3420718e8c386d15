"""Splits worked out by hand, and properties that hold for any data set."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blemish.data.layouts import read
from blemish.data.split import Split, kfold, split
from blemish.types import BlemishError, Label, Sample, SplitName
from tests.support import shared_folder


def good(name: str, group: str = "", split: SplitName = "") -> Sample:
    return Sample(Path(name), name, "good", split=split, group=group)


def bad(name: str, defect: str = "dent", group: str = "", split: SplitName = "") -> Sample:
    return Sample(Path(name), name, "anomaly", defect, split=split, group=group)


def names(samples: tuple[Sample, ...]) -> list[str]:
    return [sample.name for sample in samples]


def sizes(result: Split) -> tuple[int, int, int, int]:
    return len(result.train), len(result.calibration), len(result.test), len(result.unused)


HUNDRED = [good(f"good/{i}.png") for i in range(100)]
DENTS = [bad(f"dent/{i}.png") for i in range(10)]


def test_shares_of_single_images() -> None:
    result = split(HUNDRED + DENTS)
    assert sizes(result) == (64, 16, 20 + 10, 0)  # 20 of 100 test; 16 of the other 80 calibrate
    assert all(sample.label == "good" for sample in result.train + result.calibration)
    assert set(names(result.test)) >= set(names(tuple(DENTS)))


def test_the_first_by_hash_test_and_the_next_calibrate() -> None:
    def rank(sample: Sample) -> str:
        return hashlib.sha256(f"7:{sample.name}".encode()).hexdigest()

    ranked = sorted(HUNDRED, key=rank)
    result = split(HUNDRED, seed=7)
    assert sorted(names(result.test)) == names(result.test) == sorted(names(tuple(ranked[:20])))
    assert names(result.calibration) == sorted(names(tuple(ranked[20:36])))


def test_the_split_is_the_same_on_every_machine() -> None:
    assert names(split([good(f"{i}.png") for i in range(8)], seed=0).test) == ["1.png", "4.png"]  # sha256sum


def test_the_seed_matters_and_the_order_does_not() -> None:
    shuffled = HUNDRED + DENTS
    random.Random(3).shuffle(shuffled)
    assert split(shuffled, seed=5) == split(HUNDRED + DENTS, seed=5)
    assert split(HUNDRED, seed=5) != split(HUNDRED, seed=6)


def test_the_test_split_of_the_data_set_is_kept() -> None:
    samples = [good(f"train/good/{i}.png", split="train") for i in range(10)]
    test = [good("test/good/1.png", split="test"), bad("test/dent/1.png", split="test")]
    result = split(samples + test, test=0.5)  # the share is ignored
    assert names(result.test) == ["test/dent/1.png", "test/good/1.png"]
    assert sizes(result) == (8, 2, 2, 0)


def test_calibration_is_raised_to_at_most_half() -> None:
    assert sizes(split(HUNDRED, min_calibration=30)) == (50, 30, 20, 0)
    assert sizes(split(HUNDRED, min_calibration=500)) == (40, 40, 20, 0)
    assert sizes(split(HUNDRED, min_calibration=3)) == (64, 16, 20, 0)  # never lowered
    assert sizes(split(HUNDRED, calibration=0)) == (80, 0, 20, 0)
    assert sizes(split(HUNDRED, test=0)) == (80, 20, 0, 0)


def test_unlabelled_images_train_and_calibrate_but_do_not_test() -> None:
    flat = [Sample(Path(f"{i}.png"), f"{i}.png") for i in range(50)]
    assert sizes(split(flat)) == (40, 10, 0, 0)
    mixed = split(flat + HUNDRED)
    assert all(sample.label for sample in mixed.test)
    assert len(mixed.test) == 20


def test_items_stay_together_with_their_anomalies() -> None:
    samples = [good(f"{item}/{view}.png", group=f"k{item}") for item in range(20) for view in range(5)]
    samples += [bad(f"{item}/bad.png", group=f"k{item}") for item in range(10)]
    result = split(samples)
    assert sizes(result) == (64 + 1, 15, 20 + 4, 6)  # 3 items of 5 fit into the 16 that calibrate
    sides = [{s.group for s in side} for side in (result.train, result.calibration, result.test)]
    assert not sides[0] & sides[1]
    assert not sides[0] & sides[2]
    assert not sides[1] & sides[2]
    assert len(sides[2]) == 4
    assert all(int(group[1:]) < 10 for group in sides[2])  # items with an anomaly are tested first
    assert {s.group for s in result.unused} == {f"k{i}" for i in range(10)} - sides[2]


def test_near_duplicates_stay_together_also_across_items() -> None:
    samples = [good(f"{i}.png", group=f"k{i // 2}") for i in range(40)]
    groups = [(0, 2), (3, 4), (10, 11)]  # joins items k0, k1 and k2
    for seed in range(20):
        result = split(samples, seed=seed, groups=groups)
        for side in (result.train, result.calibration, result.test):
            assert len({f"{i}.png" for i in range(6)} & set(names(side))) in {0, 6}


def test_a_share_of_every_defect_type_for_classifiers() -> None:
    samples = HUNDRED + DENTS + [bad(f"scratch/{i}.png", "scratch") for i in range(5)] + [bad("hole/1.png", "hole")]
    result = split(samples, anomalies_in_train=0.5)
    assert Counter(s.defect for s in result.train) == {"": 64, "dent": 5, "scratch": 3, "hole": 1}
    assert Counter(s.defect for s in result.test) == {"": 20, "dent": 5, "scratch": 2}
    assert not any(s.defect for s in result.calibration)
    given_splits = [good(f"a{i}", split="train") for i in range(4)] + [bad(f"b{i}", split="test") for i in range(4)]
    moved = split(given_splits, anomalies_in_train=0.25)
    assert [len([s for s in side if s.defect]) for side in (moved.train, moved.test)] == [1, 3]


def test_of_the_training_splits_own_anomalies_all_train_or_none() -> None:
    samples = [good(f"a{i}", split="train") for i in range(10)] + [bad(f"b{i}", split="train") for i in range(3)]
    samples += [bad(f"c{i}", split="test") for i in range(5)]
    assert sizes(split(samples)) == (8, 2, 5, 3)
    assert sizes(split(samples, anomalies_in_train=0.1)) == (11, 2, 5, 0)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], "none for training"),
        (DENTS, "none for training"),
        ([good("1")], "training and calibration"),
        ([good("1"), good("2")], "calibration|training"),
        ([good(f"{i}", group="one") for i in range(50)], "of different items"),
    ],
)
def test_too_few_good_images_are_refused(samples: list[Sample], message: str) -> None:
    with pytest.raises(BlemishError, match=message):
        split(samples)


@pytest.mark.parametrize("options", [{"test": 1.0}, {"calibration": -0.1}, {"anomalies_in_train": 1.5}])
def test_shares_outside_0_to_1_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(BlemishError, match=next(iter(options))):
        split(HUNDRED, **options)  # type: ignore[arg-type]


def test_kfold_tests_every_sample_once_and_spreads_kinds_evenly() -> None:
    samples = HUNDRED[:23] + DENTS + [bad(f"scratch/{i}.png", "scratch") for i in range(7)]
    pairs = kfold(samples, 5, seed=1, repeat=3)
    assert len(pairs) == 15
    for repetition in range(3):
        folds = pairs[5 * repetition : 5 * repetition + 5]
        assert sorted(name for _, test in folds for name in names(test)) == sorted(names(tuple(samples)))
        for train, test in folds:
            assert sorted(names(train) + names(test)) == sorted(names(tuple(samples)))
            count = Counter(s.defect for s in test)
            assert count[""] in {4, 5}
            assert count["dent"] == 2
            assert count["scratch"] in {1, 2}
    assert len({tuple(names(test)) for _, test in pairs}) == 15  # repetitions differ
    assert kfold(samples[::-1], 5, seed=1, repeat=3) == pairs
    assert kfold(samples, 5, seed=2, repeat=3) != pairs


def test_kfold_keeps_items_together() -> None:
    samples = [good(f"{i}.png", group=f"k{i // 4}") for i in range(40)]
    for _, test in kfold(samples, 3, groups=[(0, 4)]):
        assert all(count == 4 for count in Counter(s.group for s in test).values())
        assert len({"k0", "k1"} & {s.group for s in test}) != 1


def test_kfold_refuses_too_few_folds_or_images() -> None:
    with pytest.raises(BlemishError, match="at least 2 folds"):
        kfold(HUNDRED, 1)
    with pytest.raises(BlemishError, match="3 good images"):
        kfold(HUNDRED[:3] + DENTS, 4)


@st.composite
def data_sets(draw: st.DrawFn) -> list[Sample]:
    samples = []
    for i in range(draw(st.integers(4, 40))):
        label: Label | None = draw(st.sampled_from(["good", "good", "good", "anomaly", None]))
        defect = draw(st.sampled_from(["a", "b"])) if label == "anomaly" else ""
        group = draw(st.sampled_from(["", "", "g1", "g2", "g3"]))
        samples.append(Sample(Path(f"{i}"), f"{i}", label, defect, group=group))
    return samples


@settings(max_examples=150, deadline=None)
@given(data_sets(), st.integers(0, 3), st.floats(0, 0.9), st.floats(0, 0.9), st.sampled_from([0.0, 0.3]), st.data())
def test_properties_of_any_split(
    samples: list[Sample], seed: int, test: float, calibration: float, anomalies: float, data: st.DataObject
) -> None:
    index = st.integers(0, len(samples) - 1)
    groups = data.draw(st.lists(st.tuples(index, index), max_size=3))
    try:
        result = split(
            samples, seed=seed, test=test, calibration=calibration, groups=groups, anomalies_in_train=anomalies
        )
    except BlemishError:
        return
    sides = [set(names(side)) for side in (result.train, result.calibration, result.test, result.unused)]
    assert sum(map(len, sides)) == len(samples) == len(set().union(*sides))  # each image exactly once
    assert all(s.label != "anomaly" for s in result.calibration)
    assert anomalies or all(s.label != "anomaly" for s in result.train)
    assert all(s.label for s in result.test)
    assert all(s.label == "anomaly" for s in result.unused)
    together = [{a, b} for a, b in groups]
    together += [{i for i, s in enumerate(samples) if s.group == g} for g in ("g1", "g2", "g3")]
    for unit in together:
        touched = [k for k in range(3) if {samples[i].name for i in unit} & sides[k]]
        assert len(touched) <= 1
    shuffled = data.draw(st.permutations(range(len(samples))))
    renamed = [tuple(shuffled.index(i) for i in group) for group in groups]
    again = split(
        [samples[i] for i in shuffled],
        seed=seed,
        test=test,
        calibration=calibration,
        groups=renamed,
        anomalies_in_train=anomalies,
    )
    assert again == result


@pytest.mark.real
def test_kolektor_items_are_never_in_two_splits() -> None:
    samples = read(shared_folder("data") / "kolektorsdd").samples
    result = split(samples)
    sides = [{s.group for s in side} for side in (result.train, result.calibration, result.test)]
    assert sum(map(len, sides)) == len(set().union(*sides)) == 50
