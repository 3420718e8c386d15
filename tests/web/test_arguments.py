"""What `blemish serve` refuses, in its own words, before it writes anything."""

from __future__ import annotations

import zipfile
from pathlib import Path

from tests import tiny
from tests.support import refused


def test_what_it_is_given_is_checked_before_anything_is_written(tmp_path: Path) -> None:
    data, none, file = tmp_path / "page", tmp_path / "none", tmp_path / "file"
    bundle = tiny.made(tmp_path / "runs/one/bundle")
    file.write_text("x")
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as packed:
        packed.write(bundle / "card.json", "bundle/card.json")

    def sentence(*arguments: object) -> str:
        said = refused("serve", *arguments, "--data", data, "--port", 0)
        assert not data.exists()
        return said

    assert sentence(none).startswith(f"{none}: does not exist; give a run of `blemish train`")
    assert sentence(file).startswith(f"{file}: not a readable .zip")
    assert sentence(tmp_path / "runs").endswith(f"is no bundle, but holds some; give them one by one: {bundle}")
    assert sentence(tmp_path / "packed.zip").endswith(
        "it has no card.json at its top, only bundle/card.json; pack the bundle with `blemish bundle --zip`."
    )
    assert sentence(bundle, "--images", none).startswith(f"--images {none}: does not exist;")
    assert sentence(bundle, "--images", file).startswith(f"--images {file}: is a file, not a folder;")
    (tmp_path / "other").mkdir()
    assert sentence(bundle, "--images", tmp_path / "other").endswith("learned from a folder other; give its run too.")
    assert sentence("--database", "mysql://a/b").startswith("--database mysql://a/b: is neither SQLite nor PostgreSQL;")
    gone = "postgresql+psycopg://127.0.0.1:1/page"
    assert sentence("--database", gone).startswith(f"{gone}: cannot be opened (")
    assert sentence(bundle, "--watch", none).startswith(f"--watch {none}: does not exist;")
    assert sentence(bundle, "--watch", file).startswith(f"--watch {file}: is a file, not a folder;")
    assert sentence(bundle, "--host", "0.0.0.0").endswith(f"blemish user NAME --role admin --data {data}.")
    taken = refused("serve", bundle, "--data", file, "--port", 0)
    assert taken == f"{file} exists and is no folder; choose another one."
    assert file.read_text() == "x"
