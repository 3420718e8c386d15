"""The folder of a page, for the commands beside a server and for the server itself."""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from blemish.types import BlemishError
from blemish.web import restoring
from blemish.web.app import assembled
from blemish.web.backup import save
from blemish.web.config import ServeConfig
from blemish.web.opening import as_it_is, opened
from blemish.web.restoring import restore
from tests.web.support import PRODUCT, grey, made_site


@pytest.mark.parametrize("moment", ["files", "rows"])
def test_what_a_killed_restore_left_is_no_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """It was served as an empty page, without a word."""
    site = made_site(tmp_path)
    site.line.inspect(grey(60), "60.png", PRODUCT, by="ann", source="api")
    saved = tmp_path / "saved.zip"
    save(site.config, saved)
    site.database.close()
    config = ServeConfig(data=tmp_path / "again")

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(restoring, "_clear", lambda _: None)  # as after a kill
    monkeypatch.setattr(restoring, "_fill" if moment == "rows" else "Database", killed)
    with pytest.raises(KeyboardInterrupt):
        restore(saved, config)
    monkeypatch.undo()
    assert (config.data / "images").is_dir()
    for use in (lambda: assembled(config), lambda: enter(opened(config)), lambda: enter(as_it_is(config))):
        with pytest.raises(BlemishError, match="a restore into it did not end; delete the folder and restore again"):
            use()
    with pytest.raises(BlemishError, match="is not empty"):
        restore(saved, config)
    shutil.rmtree(config.data)
    assert restore(saved, config).problems == []
    assembled(config).database.close()


def enter(context: AbstractContextManager[object]) -> None:
    with context:
        pass
