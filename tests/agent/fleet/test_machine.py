"""A device's health, read from files as Linux writes them."""

from pathlib import Path

import pytest

from bellwire.agent.fleet.health import Machine

STAT = "cpu  {user} 0 100 {idle} 50 0 0 0 0 0\ncpu0 1 1 1 1\nintr 5\n"
FILES = {
    "proc/uptime": "350735.47 234388.90\n",
    "proc/loadavg": "0.20 0.18 0.12 1/80 11206\n",
    "proc/meminfo": "MemTotal:  1000000 kB\nMemFree:  100 kB\nMemAvailable:  250000 kB\n",
    "proc/self/statm": "10000 5000 900 1 0 900 0\n",
    "sys/class/thermal/thermal_zone0/temp": "48312\n",
    "sys/class/thermal/thermal_zone1/temp": "51000\n",
    "proc/net/wireless": "Inter-| sta-|   Quality        |\n face | tus | link level noise |\n"
    " wlan0: 0000   57.  -53.  -256        0      0      0      0      0        0\n",
}


@pytest.fixture
def pi(tmp_path: Path) -> Path:
    for name, text in {**FILES, "proc/stat": STAT.format(user=100, idle=750)}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_pi_tells_how_it_is(pi: Path) -> None:
    machine = Machine(pi)
    first = machine.look()
    assert first.cpu_percent == 20.0, "since it started"
    assert (first.boot_s, first.load_1m, first.temperature_c) == (350735.47, 0.2, 51.0)
    assert (first.memory_percent, first.wifi_signal_dbm) == (75.0, -53.0)
    assert first.agent_rss_mb is not None
    assert first.agent_rss_mb > 1
    assert first.disk_percent is not None
    assert 0 <= first.disk_percent <= 100
    (pi / "proc/stat").write_text(STAT.format(user=150, idle=800))
    assert machine.look().cpu_percent == 50.0, "since the look before"


def test_what_a_machine_does_not_have_is_not_made_up(pi: Path, tmp_path: Path) -> None:
    (pi / "proc/net/wireless").write_text("".join(FILES["proc/net/wireless"].splitlines(True)[:2]))
    (pi / "sys/class/thermal/thermal_zone0/temp").unlink()
    (pi / "sys/class/thermal/thermal_zone1/temp").unlink()
    (pi / "proc/meminfo").write_text("nonsense")
    look = Machine(pi).look()
    assert (look.wifi_signal_dbm, look.temperature_c, look.memory_percent) == (None, None, None)
    bare = Machine(tmp_path / "nothing").look()
    assert {bare.cpu_percent, bare.boot_s, bare.load_1m, bare.disk_percent} == {None}


def test_this_machine_can_be_read() -> None:
    look = Machine().look()
    assert look.cpu_percent is not None
    assert look.memory_percent is not None
    assert look.agent_rss_mb is not None
