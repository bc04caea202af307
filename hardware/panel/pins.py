"""How a part of the panel claims its pin, and what it says when it cannot have it.

Whether the kernel leaves a GPIO line as it was when the process that drove it dies.

Kernels of Raspberry Pi OS do, unless ``dtparam=strict_gpiod`` is set: a door that is open at that
moment stays open. A station therefore does not use its door there (:class:`hardware.panel.panel.Panel`).
"""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from gpiozero import Factory, GPIOPinInUse, OutputDevice, PinFixedPull
from gpiozero.exc import BadPinFactory, PinFactoryFallback, PinInvalidPin, PinUnknownPi

from bellwire.config.agent.panel import OutputSettings

Device = TypeVar("Device")

NOT_A_PI = "This machine shows no Raspberry Pi header: run the agent with --simulate"
ADVICE: tuple[tuple[tuple[type[Exception], ...], str], ...] = (
    ((GPIOPinInUse,), "Another part of this process has it: give one of the two another pin"),
    ((PinFixedPull,), 'The board has a pull-up there: set pull = "up", or take another pin'),
    ((PinInvalidPin,), "This board does not lead that pin out: take another one"),
    ((BadPinFactory, PinFactoryFallback, PinUnknownPi), NOT_A_PI),
    ((PermissionError,), "Add the agent's user to the group gpio, then start it again"),
)
BUSY = "See with `gpioinfo` who holds it (I2C, SPI and UART take pins too), or take another pin"


class PanelError(Exception):
    """A part of the panel could not have its pin.

    ``part`` is the part's name in the configuration, ``pin`` its BCM number, ``reason`` what the
    pin driver said, and ``advice`` what to do about it.
    """

    def __init__(self, part: str, pin: int, reason: str, advice: str) -> None:
        super().__init__(f"{part} cannot have GPIO{pin}: {reason}. {advice}.")
        self.part = part
        self.pin = pin
        self.reason = reason
        self.advice = advice


def claim(part: str, pin: int, open_device: Callable[[], Device]) -> Device:
    """Open the gpiozero device of `part` on `pin`.

    :raises PanelError: the pin driver refused it
    """
    try:
        return open_device()
    except Exception as error:  # each pin driver (lgpio, RPi.GPIO, native) raises its own types
        reason = str(error).rstrip(".!") or type(error).__name__
        raise PanelError(part, pin, reason, _advise(error)) from error


def claim_output(
    part: str,
    settings: OutputSettings,
    pin_factory: Factory | None,
    device: type[OutputDevice] = OutputDevice,
) -> OutputDevice:
    """Open an output that starts inactive.

    :raises PanelError: the pin driver refused it
    """
    return claim(
        part,
        settings.pin,
        lambda: device(settings.pin, active_high=not settings.active_low, pin_factory=pin_factory),
    )


def _advise(error: Exception) -> str:
    return next((advice for types, advice in ADVICE if isinstance(error, types)), BUSY)


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
