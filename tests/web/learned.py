"""A site over the tiny product of tests/conftest.py, with its images imported, and one that has learned again."""

from __future__ import annotations

import time
from pathlib import Path

from blemish.web.app import assembled
from blemish.web.config import ServeConfig
from blemish.web.learning import ALIVE, job_of
from blemish.web.site import Site
from blemish.web.tables import Job


def site_of(data: Path, run: Path, *images: Path) -> Site:
    return assembled(ServeConfig(data=data, bundles=(run,), images=images))


def ended(site: Site, job_id: int, seconds: float = 120.0) -> Job:
    """The job when it has ended."""
    deadline = time.monotonic() + seconds
    while (job := job_of(site.config.folder, site.database, job_id)).state in ALIVE:
        assert time.monotonic() < deadline, f"{job.stage}, not within {seconds:g} s"
        time.sleep(0.1)
    return job


def left(site: Site, job_id: int) -> list[str]:
    """What is in a job's folder."""
    return sorted(entry.name for entry in (site.config.folder.jobs / str(job_id)).iterdir())
