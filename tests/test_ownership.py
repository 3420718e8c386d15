"""The mark of the folders that blemish writes."""

from pathlib import Path

from blemish.ownership import MARK, Mark, mark_of, not_own


def test_a_mark_written_over_a_longer_one_is_read_at_any_moment(tmp_path: Path) -> None:
    long, short = Mark("run", files=frozenset(map(str, range(100))), complete=True), Mark("run")
    (tmp_path / MARK).write_bytes(short.content() + long.content()[len(short.content()) :])
    assert mark_of(tmp_path) == short
    for content in (b"", b"{", b"[]", b'{"kind": 1}', b"\xff"):
        (tmp_path / MARK).write_bytes(content)
        assert mark_of(tmp_path) == Mark("")


def test_the_file_that_is_not_ours_is_named_also_in_a_run_within(tmp_path: Path) -> None:
    (tmp_path / "chosen/sub").mkdir(parents=True)
    (tmp_path / MARK).write_bytes(Mark("sweep", ("chosen", "rows")).content())
    (tmp_path / "chosen" / MARK).write_bytes(Mark("run", files=frozenset({"a", "sub/b"}), complete=True).content())
    for name in ("rows", "chosen/a", "chosen/sub/b"):
        (tmp_path / name).touch()
    assert not_own(tmp_path) is None
    (tmp_path / "chosen/sub/notes").touch()
    assert not_own(tmp_path) == "chosen/sub/notes"
    (tmp_path / "chosen/sub/notes").rename(tmp_path / "notes")
    assert not_own(tmp_path) == "notes"
