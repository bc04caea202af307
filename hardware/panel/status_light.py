"""The status light: one LED that shows what the station is doing."""

import asyncio
from enum import Enum

from gpiozero import LED, Factory

from bellwire.config.agent.panel import StatusLightSettings
from bellwire.config.waiting import Sleep
from bellwire.hardware.panel.cadence import Cadence, CadencePlayer
from bellwire.hardware.panel.pins import claim_output


class Pattern(Enum):
    """What the light can show."""

    IDLE = "idle"
    RINGING = "ringing"
    IN_CALL = "in_call"
    MUTED = "muted"
    OFFLINE = "offline"
    FAULT = "fault"


# Told apart by rhythm alone, dark means no power, and nothing flashes more than three times a
# second (the limit that WCAG sets for people with photosensitive epilepsy).
CADENCES = {
    Pattern.IDLE: Cadence((0.05, 4.95)),  # a wink every five seconds
    Pattern.RINGING: Cadence((0.2, 0.2)),  # quick flashes
    Pattern.IN_CALL: Cadence(),  # steady
    Pattern.MUTED: Cadence((1.8, 0.2)),  # steady, with a gap every two seconds
    Pattern.OFFLINE: Cadence((1.0, 1.0)),  # slow flashes
    Pattern.FAULT: Cadence((0.2, 0.2, 0.2, 0.2, 0.2, 1.2)),  # three flashes and a pause
}


class StatusLight:
    """Represents a light emitting diode that shows a :class:`Pattern`.

    Connect the LED's cathode (short leg, flat side) to ground, and its anode through a resistor
    (330 ohms) to the GPIO pin. With the anode at 3V3 and the cathode at the pin, set
    ``active_low=True``.

    The following example shows that the station is idle::

        from bellwire.config.agent.panel import StatusLightSettings
        from bellwire.hardware.panel.status_light import Pattern, StatusLight

        async def show_idle():
            light = StatusLight(StatusLightSettings(pin=22))
            light.show(Pattern.IDLE)
            await light.run()

    :param settings: pin and polarity
    :param pin_factory: gpiozero's way to the pins (default None: gpiozero's own default)
    :param sleep: waits for so many seconds (default :func:`asyncio.sleep`)
    :raises PanelError: the pin could not be claimed
    """

    def __init__(
        self,
        settings: StatusLightSettings,
        *,
        pin_factory: Factory | None = None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        output = claim_output("status_light", settings, pin_factory, LED)
        self._player = CadencePlayer(output, sleep=sleep)
        self._pattern: Pattern | None = None

    @property
    def pattern(self) -> Pattern | None:
        """What it shows, or None while dark."""
        return self._pattern if self._player.is_playing else None

    def show(self, pattern: Pattern) -> None:
        """Show `pattern` from its start, at once. Without effect if it is shown already."""
        if pattern is not self.pattern:
            self._pattern = pattern
            self._player.play(CADENCES[pattern])

    async def run(self) -> None:
        """Blink as the pattern asks, until cancelled; then go dark."""
        await self._player.run()

    def close(self) -> None:
        """Go dark and give the pin back. Closing twice is the same as once."""
        self._player.close()
