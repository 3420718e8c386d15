"""Files and folders are written whole or not at all."""

from pathlib import Path

import pytest

from blemish.files import replacing


def test_replacing_is_all_or_nothing(tmp_path: Path) -> None:
    target = tmp_path / "run"
    with replacing(target) as partial:
        partial.mkdir()
        (partial / "new").touch()
        assert not target.exists()
    assert (target / "new").exists()

    def fail() -> None:
        with replacing(target) as partial:
            partial.mkdir()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [p.name for p in tmp_path.iterdir()] == ["run"]  # the old one stays, nothing half-done is left
    killed = tmp_path / ".run.partial"
    killed.mkdir()
    (killed / "half").touch()
    with replacing(target) as partial:
        partial.mkdir()
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    assert not list(target.iterdir())
