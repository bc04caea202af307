"""How a part of the panel claims its pin, and what it says when it cannot have it."""

from collections.abc import Callable
from typing import TypeVar

from gpiozero import Factory, GPIOPinInUse, OutputDevice, PinFixedPull
from gpiozero.exc import BadPinFactory, PinFactoryFallback, PinInvalidPin, PinUnknownPi

from bellwire.config.agent.panel import OutputSettings

DeviceT = TypeVar("DeviceT")

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


def claim(part: str, pin: int, open_device: Callable[[], DeviceT]) -> DeviceT:
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
