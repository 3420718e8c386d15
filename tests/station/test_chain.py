from __future__ import annotations

import hashlib
import json
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blemish import BlemishError
from blemish.station.chain import GENESIS, START, Entry, Head, canonical, link, problems


def chain(count: int) -> Iterator[Entry]:
    previous = GENESIS
    for seq in range(1, count + 1):
        entry = link(previous, seq, f"t{seq}", "verdict", {"score": seq / 10, "name": "ä"})
        yield entry
        previous = entry.hash


WHOLE = list(chain(10))
HEAD = Head(10, WHOLE[-1].hash)
FORGED = link(WHOLE[3].hash, 5, "t5", "verdict", {"score": 0.0})  # with a hash that is right
STRANGER = Entry(0, "", "", "text", "", "")


def with_fifth(**changed: str | int) -> list[Entry]:
    return [*WHOLE[:4], WHOLE[4]._replace(**changed), *WHOLE[5:]]  # type: ignore[arg-type]


def test_a_hash_is_the_sha256_of_what_the_documents_say() -> None:
    entry = link("ab" * 32, 7, "2026-11-30T14:00:00.000+00:00", "verdict", {"score": 0.25, "name": 'a"ä', "at": None})
    assert entry.body == r'{"at":null,"name":"a\"\u00e4","score":0.25}'
    written = (
        b'["blemish log 1","' + b"ab" * 32 + b'",7,"2026-11-30T14:00:00.000+00:00","verdict",'
        rb'"{\"at\":null,\"name\":\"a\\\"\\u00e4\",\"score\":0.25}"]'
    )
    assert entry.hash == hashlib.sha256(written).hexdigest()
    # What sha256sum says; logs of years rely on it.
    assert entry.hash == "a09274a093e1c64db75b2b0f02d2d1b15e641fce4349c7bd06e927a928186104"
    assert entry[:5] == (7, "2026-11-30T14:00:00.000+00:00", "verdict", entry.body, "ab" * 32)


def test_canonical_json_is_the_same_for_the_same_content() -> None:
    body = {"b": [1, 2.5, True], "a": {"d": "\udcff", "c": None}}
    assert canonical(body) == r'{"a":{"c":null,"d":"\udcff"},"b":[1,2.5,true]}'
    assert canonical(json.loads(canonical(body))) == canonical(body)
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical({"score": float("nan")})


def test_no_two_entries_share_a_text_under_the_hash() -> None:
    """What moves from one field to the next changes the hash."""
    assert len({link(GENESIS, 1, *fields, {}).hash for fields in (("a", "b"), ("ab", ""), ('a","b', ""))}) == 3


def test_a_head_is_text_and_back() -> None:
    assert HEAD.to_text() == f"blemish log 1 10 {WHOLE[-1].hash}"
    assert Head.from_text(f"{HEAD.to_text()}\n") == HEAD
    assert Head.from_text(START.to_text()) == (0, "0" * 64)


@pytest.mark.parametrize(
    "text",
    [
        *("", "text", f"blemish log 2 1 {GENESIS}", f"blemish log 1 -1 {GENESIS}", f"blemish log 1 01 {GENESIS}"),
        *(f"blemish log 1 1 {GENESIS}0", f"blemish log 1 1 {GENESIS[1:]}", f"blemish log 1 ١ {GENESIS}"),
        *(f"blemish log 1 1 {'G' * 64}", f"{HEAD.to_text()}\n{HEAD.to_text()}"),
    ],
)
def test_any_other_text_is_no_head(text: str) -> None:
    with pytest.raises(BlemishError, match="is no head of a log"):
        Head.from_text(text)


@pytest.mark.parametrize("count", [0, 1, 10])
def test_a_log_as_it_was_written_has_no_problem(count: int) -> None:
    for head in (None, START, *(Head(entry.seq, entry.hash) for entry in WHOLE[:count])):
        assert list(problems(WHOLE[:count], head)) == []


CHANGED = "Entry 5 was changed: what it says and its hash do not belong together."
KINDS: dict[str, tuple[list[Entry], list[str]]] = {
    "body": (with_fifth(body="{}"), [CHANGED]),
    "time": (with_fifth(time="t6"), [CHANGED]),
    "kind": (with_fifth(kind="correction"), [CHANGED]),
    "seq": (with_fifth(seq=99), [CHANGED]),
    "previous": (with_fifth(previous="a" * 64), [CHANGED]),
    "hash": (with_fifth(hash="a" * 64), [CHANGED]),
    "all of it": (
        with_fifth(seq=99, previous="b" * 64, hash="a" * 64),
        [CHANGED.replace("5", "99"), "Entry 5 is missing before entry 6."],
    ),
    "changed, and its hash computed again": (
        [*WHOLE[:4], FORGED, *WHOLE[5:]],
        [
            "Entry 6 was linked to another entry 5 than the one before it: one of the two was replaced, and its hash "
            "computed again."
        ],
    ),
    "number, and its hash computed again": (
        [*WHOLE[:4], link(WHOLE[3].hash, 9, "", "verdict", {})],
        ["Entry 9 follows entry 4, so its number is wrong."],
    ),
    "dropped": ([*WHOLE[:4], *WHOLE[5:]], ["Entry 5 is missing before entry 6."]),
    "dropped at the beginning": (WHOLE[2:], ["Entries 1 to 2 are missing before entry 3."]),
    "dropped, and the next changed": (
        [*WHOLE[:3], WHOLE[4]._replace(body="{}"), *WHOLE[5:]],
        [CHANGED, "Entry 4 is missing before entry 5."],
    ),
    "swapped": (
        [*WHOLE[:4], WHOLE[5], WHOLE[4], *WHOLE[6:]],
        ["Entry 5 is missing before entry 6.", "Entry 5 stands after entry 6: it was moved or copied there."],
    ),
    "moved far": (
        [*WHOLE[:2], *WHOLE[3:9], WHOLE[2], WHOLE[9]],
        ["Entry 3 is missing before entry 4.", "Entry 3 stands after entry 9: it was moved or copied there."],
    ),
    "doubled": ([*WHOLE[:5], *WHOLE[4:]], ["Entry 5 stands there twice."]),
    "copied far": ([*WHOLE[:9], WHOLE[2], WHOLE[9]], ["Entry 3 stands after entry 9: it was moved or copied there."]),
    "inserted before": (
        [*WHOLE[:4], FORGED, *WHOLE[4:]],
        ["There are two different entries 5: one of them was inserted."],
    ),
    "inserted after": (
        [*WHOLE[:5], FORGED, *WHOLE[5:]],
        ["There are two different entries 5: one of them was inserted."],
    ),
    "inserted without a place": (
        [*WHOLE[:4], STRANGER, *WHOLE[4:]],
        ["After entry 4 stands something that is no entry: it was inserted, or an entry was made unreadable."],
    ),
    "made unreadable": (
        [*WHOLE[:4], STRANGER, STRANGER, *WHOLE[6:]],
        [
            "After entry 4 stands 2 times something that is no entry: it was inserted, or an entry was made "
            "unreadable.",
            "Entries 5 to 6 are missing before entry 7.",
        ],
    ),
    "unreadable at the end": (
        [*WHOLE, STRANGER],
        ["After entry 10 stands something that is no entry: it was inserted, or an entry was made unreadable."],
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_tampering_is_named_once_and_what_follows_is_not(kind: str) -> None:
    entries, sentences = KINDS[kind]
    assert list(problems(entries)) == sentences
    if entries[-1] == WHOLE[-1]:
        assert list(problems(entries, HEAD)) == sentences  # the end is there all the same


def test_two_places_are_two_sentences() -> None:
    tampered = [WHOLE[0], WHOLE[1]._replace(body="{}"), *WHOLE[2:6], *WHOLE[7:]]
    assert [s.split(" ")[1] for s in problems(tampered)] == ["2", "7"]


def test_only_a_head_kept_elsewhere_tells_that_the_end_was_cut_off() -> None:
    assert list(problems(WHOLE[:7])) == []
    (sentence,) = problems(WHOLE[:7], HEAD)
    assert sentence == "The log ends with entry 7, and the kept head is entry 10: its end was cut off."
    (sentence,) = problems([], HEAD)
    assert sentence.startswith("The log ends with entry 0,")


def test_only_a_head_kept_elsewhere_tells_that_the_chain_was_built_again() -> None:
    rebuilt, previous = [*WHOLE[:4], FORGED], FORGED.hash
    for old in WHOLE[5:]:
        rebuilt.append(link(previous, old.seq, old.time, old.kind, json.loads(old.body)))
        previous = rebuilt[-1].hash
    assert list(problems(rebuilt)) == []
    assert list(problems(rebuilt, Head(4, WHOLE[3].hash))) == []  # the head was kept before what was changed
    for kept in WHOLE[4:]:
        (sentence,) = problems(rebuilt, Head(kept.seq, kept.hash))
        assert sentence == (
            f"Entry {kept.seq} is not the one of the kept head: it, or something before it, was changed, and the chain "
            "built again."
        )


def test_a_head_of_an_entry_that_was_dropped_is_not_in_the_log() -> None:
    sentences = list(problems([*WHOLE[:4], *WHOLE[5:]], Head(5, WHOLE[4].hash)))
    assert sentences == ["Entry 5 is missing before entry 6.", "Entry 5, the kept head, is not in the log."]


def test_a_chain_may_begin_after_something_older() -> None:
    before = Head(4, WHOLE[3].hash)
    assert list(problems(WHOLE[4:], HEAD, before=before)) == []
    assert list(problems(WHOLE[4:], before, before=before)) == []
    assert list(problems([], before, before=before)) == []
    (sentence,) = problems(WHOLE[4:], before=Head(4, "a" * 64))
    assert sentence.startswith("What stands before entry 5 is not what it was linked to")


@given(st.data())
def test_whatever_is_tampered_with_is_found(data: st.DataObject) -> None:
    """Anything but cutting off the end, which the head tells."""
    entries = list(WHOLE)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(entries) - 1))
        what = data.draw(st.sampled_from(["edit", "drop", "swap", "copy", "insert", "forge"]))
        if what == "edit":
            field = data.draw(st.sampled_from(Entry._fields))
            new: Any = data.draw(st.integers(0, 20) if field == "seq" else st.text('0aä"', max_size=4))
            entries[place] = entries[place]._replace(**{field: new})
        elif what == "drop" and len(entries) > 1:
            del entries[place]
        elif what == "swap":
            other = data.draw(st.integers(0, len(entries) - 1))
            entries[place], entries[other] = entries[other], entries[place]
        elif what == "copy":
            entries.insert(data.draw(st.integers(0, len(entries))), entries[place])
        elif what in ("insert", "forge"):
            at = entries[place]
            forged = link(at.previous, at.seq, at.time, at.kind, {"forged": data.draw(st.integers(0, 3))})
            entries[place : place + (what == "forge")] = [forged]
    found = list(problems(entries, HEAD))
    assert bool(found) == (entries != WHOLE)
    assert len(found) <= 2 * 4 * 2 + 1  # at two places each, two sentences: not one for all that follow


def test_memory_does_not_grow_with_the_log() -> None:
    tracemalloc.start()
    try:
        assert list(problems(chain(300))) == []
        few = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        assert list(problems(chain(6000))) == []
        assert tracemalloc.get_traced_memory()[1] < few + 10_000
    finally:
        tracemalloc.stop()
