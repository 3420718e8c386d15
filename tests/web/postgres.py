"""A real PostgreSQL in a folder of its own."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

ABSENT = "no PostgreSQL on this machine: install Debian's package postgresql"
# Nothing outlives the test, so nothing need reach the disk.
SETTINGS = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "max_connections=40", "shared_buffers=16MB")


def postgres_bin() -> Path | None:
    """The folder with initdb and pg_ctl: of the PATH, else of the newest that Debian has installed; or None."""
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    there = [file.parent for file in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    return max(there, key=lambda folder: [int(n) for n in re.findall(r"\d+", folder.parent.name)], default=None)


@contextmanager
def served(programs: Path) -> Iterator[Callable[[], str]]:
    """A server, reached through a socket in its folder, by everyone on this machine, without a password. Gives a
    function that makes an empty database and returns its URL, `postgresql+psycopg://...`."""
    home = Path(tempfile.mkdtemp(prefix="blemish-postgres-"))
    user = _user()
    if user:
        os.chown(home, user.pw_uid, user.pw_gid)
        home.chmod(0o755)  # of the socket, too: the tests connect as another user

    def run(program: str, *arguments: object) -> None:
        # Not as root, which PostgreSQL refuses. The server keeps standard output open: it goes to a file.
        with (home / "said").open("wb") as said:
            done = subprocess.run(
                [programs / program, "-D", home / "data", *map(str, arguments)],
                cwd=home,
                env={"PATH": os.defpath, "LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                user=user.pw_uid if user else None,
                group=user.pw_gid if user else None,
                extra_groups=[] if user else None,
                check=False,
                timeout=60,
            )
        log = home / "log"
        words = (home / "said").read_text() + (log.read_text() if log.exists() else "")
        assert done.returncode == 0, f"{program}: {words}"

    try:
        run("initdb", "--no-sync", "--auth=trust", "--username=blemish", "--encoding=UTF8", "--no-locale")
        settings = (*SETTINGS, f"unix_socket_directories={home}", "listen_addresses=")
        options = " ".join(f"-c {setting}" for setting in settings)
        run("pg_ctl", "--wait", "--log", home / "log", "--options", options, "start")
        try:
            numbers = count(1)
            yield lambda: _fresh(home, next(numbers))
        finally:
            run("pg_ctl", "--wait", "--mode=immediate", "stop")
    finally:
        shutil.rmtree(home)


def _fresh(home: Path, number: int) -> str:
    import psycopg

    with psycopg.connect(host=str(home), user="blemish", dbname="postgres", autocommit=True) as connection:
        connection.execute(f"create database test_{number} template template0")
    return f"postgresql+psycopg://blemish@/test_{number}?host={home}"


def _user() -> pwd.struct_passwd | None:
    """Whose the server is: where we are root, Debian's user for it, or nobody; else ours (None)."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return pwd.getpwnam("nobody")
