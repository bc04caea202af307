"""How the machine is, read from Linux's /proc and /sys. No library: psutil would bring a compiled
dependency to every Pi for eight numbers, and does not know the Wi-Fi's signal.

What this machine does not have, or does not let us read, is None.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Readings:
    """One look at the machine; the fields are those of :class:`config.telemetry.Telemetry`."""

    boot_s: float | None
    cpu_percent: float | None
    load_1m: float | None
    temperature_c: float | None
    memory_percent: float | None
    agent_rss_mb: float | None
    disk_percent: float | None
    wifi_signal_dbm: float | None


class Machine:
    """This machine. Its method blocks for as long as a few small reads take.

    Args:
        root: Where /proc and /sys are; a test has its own.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._ticks = (0, 0)

    def look(self) -> Readings:
        """How it is now; the processor's share is since the look before."""
        return Readings(
            boot_s=_tried(lambda: float(self._words("proc/uptime")[0])),
            cpu_percent=_tried(self._cpu_percent),
            load_1m=_tried(lambda: float(self._words("proc/loadavg")[0])),
            temperature_c=_tried(self._temperature_c),
            memory_percent=_tried(self._memory_percent),
            agent_rss_mb=_tried(self._agent_rss_mb),
            disk_percent=_tried(self._disk_percent),
            wifi_signal_dbm=_tried(self._wifi_signal_dbm),
        )

    def _words(self, file: str) -> list[str]:
        return (self._root / file).read_text().split()

    def _cpu_percent(self) -> float:
        """proc(5), /proc/stat: user nice system idle iowait irq softirq steal, in ticks."""
        ticks = [int(word) for word in self._words("proc/stat")[1:9]]
        busy, total = sum(ticks) - ticks[3] - ticks[4], sum(ticks)
        busy_before, total_before = self._ticks
        self._ticks = (busy, total)
        share = (busy - busy_before) / max(1, total - total_before)
        return round(100 * min(1.0, max(0.0, share)), 1)

    def _temperature_c(self) -> float:
        zones = sorted((self._root / "sys/class/thermal").glob("thermal_zone*/temp"))
        return max(int(zone.read_text()) for zone in zones) / 1000

    def _memory_percent(self) -> float:
        words = self._words("proc/meminfo")
        total, free = (int(words[words.index(n) + 1]) for n in ("MemTotal:", "MemAvailable:"))
        return round(100 * (total - free) / total, 1)

    def _agent_rss_mb(self) -> float:
        return round(int(self._words("proc/self/statm")[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)

    def _disk_percent(self) -> float:
        disk = os.statvfs(self._root)
        return round(100 * (1 - disk.f_bavail / disk.f_blocks), 1)

    def _wifi_signal_dbm(self) -> float:
        """wireless extensions, /proc/net/wireless: two lines of header, then interface, status, link
        quality, signal level in dBm, ..."""
        lines = (self._root / "proc/net/wireless").read_text().splitlines()[2:]
        return max(float(line.split()[3]) for line in lines)


def _tried(read: Callable[[], float]) -> float | None:
    try:
        return read()
    except (OSError, ValueError, IndexError, ZeroDivisionError):
        return None
