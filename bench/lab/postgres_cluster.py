"""A PostgreSQL of its own for a test or a bench: a fresh cluster on a Unix socket, gone afterwards."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_DEBIAN = Path("/usr/lib/postgresql")


def find_program(name: str) -> Path:
    """A program of PostgreSQL, where Debian keeps it or on the PATH.

    Raises:
        FileNotFoundError: it is not installed.
    """
    versions = sorted(_DEBIAN.glob(f"*/bin/{name}"), key=lambda path: float(path.parts[4]))
    found = versions[-1] if versions else shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"{name} is missing: apt-get install postgresql")
    return Path(found)


@contextmanager
def postgres_cluster(*, outlives_the_machine: bool = True) -> Iterator[str]:
    """A running server; gives the URL of its empty database.

    Args:
        outlives_the_machine: Whether it has every default of its own. Else it waits for no disk: what it
            has committed outlives its processes, and not a power cut.
    """
    with tempfile.TemporaryDirectory(prefix="bellwire-postgres-") as folder:
        as_postgres = _without_root(folder)
        data = Path(folder) / "data"
        hurried = () if outlives_the_machine else ("--no-sync",)
        _run(
            as_postgres,
            *("initdb", "-D", data, "-A", "trust", "-U", "bellwire", "-E", "UTF8"),
            *hurried,
        )
        options = (
            f"-c listen_addresses='' -c unix_socket_directories='{folder}' -c max_connections=100"
        )
        if not outlives_the_machine:
            options += " -c fsync=off -c full_page_writes=off"
        _run(as_postgres, "pg_ctl", "-D", data, "-w", "-l", f"{folder}/log", "-o", options, "start")
        try:
            yield f"postgresql://bellwire@/postgres?host={folder}"
        finally:
            _run(as_postgres, "pg_ctl", "-D", data, "-m", "immediate", "stop")


def _without_root(folder: str) -> list[str]:
    """PostgreSQL refuses to run as root: then it runs as the user that its package has made."""
    if os.geteuid() != 0:
        return []
    user = pwd.getpwnam("postgres")
    os.chown(folder, user.pw_uid, user.pw_gid)
    return ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]


def _run(prefix: list[str], program: str, *arguments: str | Path) -> None:
    command = [*prefix, str(find_program(program)), *map(str, arguments)]
    done = subprocess.run(  # noqa: S603 - its own program, its own arguments
        command,
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        text=True,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    )
    if done.returncode != 0:
        raise RuntimeError(f"{program}: {done.stdout}")
