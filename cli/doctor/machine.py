"""The doctor's look at the machine: Python, mosquitto, memory for them, the Pi's pins."""

import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from bellwire.broker.embedded import find_dynamic_security_plugin, find_mosquitto
from bellwire.cli.doctor.diagnosis import Finding, bad, good, unknown
from bellwire.config.relay import default_data_folder
from bellwire.signaling.errors import Unavailable

_DISK_WANTED_MB = 200
_INSTALL = "run `script/setup` in the checkout, or `apt-get install mosquitto`"


def examine_machine() -> Iterator[Finding]:
    """What every machine needs, and what a relay or a Pi needs besides."""
    release = ".".join(map(str, sys.version_info[:3]))
    if (3, 11) <= sys.version_info[:2] <= (3, 13):
        yield good(f"Python {release}")
    else:
        yield bad(f"Python {release}", "Bellwire runs on Python 3.11 to 3.13: install one of them")
    yield _extra("relay", "fastapi", "a relay")
    yield _extra("agent", "gpiozero", "an agent")
    yield from _mosquitto()
    yield _disk()
    yield _pins()


def _extra(name: str, module: str, what: str) -> Finding:
    if importlib.util.find_spec(module) is not None:
        return good(f"what {what} needs is installed")
    return unknown(
        f"what {what} needs is not installed", f"if you want it: pip install 'bellwire[{name}]'"
    )


def _mosquitto() -> Iterator[Finding]:
    try:
        path = find_mosquitto()
        plugin = find_dynamic_security_plugin()
    except Unavailable as error:
        yield unknown(f"no mosquitto of our own can run: {error.detail}", _INSTALL)
        return
    said = subprocess.run([path, "-h"], capture_output=True, text=True, check=False, timeout=10)  # noqa: S603
    version = re.search(r"version (\d+)\.(\d+)\S*", said.stdout)
    if version is None:
        yield unknown(f"{path} does not say its version")
    elif int(version[1]) < 2:
        yield bad(f"mosquitto {version[0]} is too old", f"version 2 or newer is needed: {_INSTALL}")
    else:
        yield good(f"mosquitto {version[0].removeprefix('version ')}, dynamic security at {plugin}")
    if shutil.which("setpriv") is None:
        yield bad(
            "setpriv is missing",
            "it ties mosquitto's life to the relay's: apt-get install util-linux",
        )


def _disk() -> Finding:
    folder = default_data_folder()
    while not folder.exists():
        folder = folder.parent
    free_mb = shutil.disk_usage(folder).free // 1_000_000
    if free_mb < _DISK_WANTED_MB:
        return bad(f"{free_mb} MB of disk free at {folder}", f"free {_DISK_WANTED_MB} MB or more")
    return good(f"{free_mb} MB of disk free at {folder}")


def _pins() -> Finding:
    chips = sorted(Path("/dev").glob("gpiochip*"))
    if not chips:
        return unknown("this machine has no GPIO pins", "here an agent needs --simulate")
    for chip in chips:
        try:
            chip.open("rb").close()
        except OSError:
            return bad(
                f"{chip} is not yours to use", "add the user to the group gpio, and log in again"
            )
    return good(f"GPIO at {', '.join(map(str, chips))}")
