"""Whether the kernel leaves a GPIO line as it was when the process that drove it dies.

Kernels of Raspberry Pi OS do, unless ``dtparam=strict_gpiod`` is set: a door that is open at that
moment stays open. A station therefore does not use its door there (:class:`hardware.panel.Panel`).
"""

from pathlib import Path

_PARAMETER = "sys/module/{driver}/parameters/persist_gpio_outputs"
_MODEL = "proc/device-tree/compatible"

WHAT_TO_DO = (
    "set `dtparam=strict_gpiod` in /boot/firmware/config.txt (deploy/install-pi does) "
    "and restart the Pi"
)


def why_no_door(root: Path = Path("/")) -> str | None:
    """Why a door must not be used on this machine, and what to do; None where it may be.

    It goes by the driver of the header's pins alone: the kernel holds the other boards' drivers
    too, with a parameter that says nothing here (that of a Pi 5 is ``pinctrl_rp1``; what
    ``strict_gpiod`` sets there is no other one's).

    :param root: the folder that holds ``sys`` and ``proc``; a test has its own
    """
    file = root / _PARAMETER.format(driver=_driver_of_the_header(root))
    try:
        keeps = file.read_text().strip() == "Y"
    except OSError:  # another kernel, which has no such thing
        return None
    if not keeps:
        return None
    return (
        f"the kernel keeps a pin's level when its process dies ({file} reads Y), so the door could "
        f"stay open and is not used: {WHAT_TO_DO}"
    )


def _driver_of_the_header(root: Path) -> str:
    try:
        is_pi_5 = b"bcm2712" in (root / _MODEL).read_bytes()
    except OSError:  # no Raspberry Pi
        is_pi_5 = False
    return "pinctrl_rp1" if is_pi_5 else "pinctrl_bcm2835"
