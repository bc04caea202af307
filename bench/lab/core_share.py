"""A share of a core, as much as a process gets meanwhile and no more, by a control group of Linux.

Two processes that have one each run as if there were cores enough for both, on a machine where there
are not: what the second adds can be measured there.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from bellwire.signaling.errors import Unavailable

_MOUNT = Path("/sys/fs/cgroup")
_PERIOD_US = 10_000
"""So short that what waits for the next one hardly waits."""


@contextmanager
def core_share(pid: int, share: float) -> Iterator[None]:
    """Bounds the CPU time of a process and of the children that it starts meanwhile.

    Args:
        pid: A process of this user's.
        share: 0.1 to 1 of a core: Linux grants no less than a millisecond of a period.

    Raises:
        Unavailable: there are no control groups for CPU time here, or none for this user.
    """
    quota_us = int(share * _PERIOD_US)
    if (_MOUNT / "cgroup.controllers").exists():  # version 2
        root, controller, limits = _MOUNT, "", {"cpu.max": f"{quota_us} {_PERIOD_US}"}
    else:
        root, controller = _MOUNT / "cpu", "cpu"
        limits = {"cpu.cfs_period_us": f"{_PERIOD_US}", "cpu.cfs_quota_us": f"{quota_us}"}
    before = root / _group_of(pid, controller)
    group = root / f"bellwire-bench-{pid}"
    try:
        group.mkdir(exist_ok=True)  # One that was killed may have left it.
    except OSError as error:
        raise Unavailable(
            f"no control group can be made here ({error}): it takes root, and {_MOUNT}"
        ) from error
    try:
        _put(pid, group, limits)
        yield
    finally:
        with suppress(ProcessLookupError):  # It has ended.
            (before / "cgroup.procs").write_text(str(pid))
        group.rmdir()


def _put(pid: int, group: Path, limits: Mapping[str, str]) -> None:
    try:
        for name, value in limits.items():
            (group / name).write_text(value)
        (group / "cgroup.procs").write_text(str(pid))
    except OSError as error:
        raise Unavailable(f"control groups do not bound CPU time here ({error})") from error


def _group_of(pid: int, controller: str) -> str:
    """That in which a process is, without the leading slash (cgroups(7), /proc/PID/cgroup)."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return path.lstrip("/")
    return ""
