"""The bell: a relay or a buzzer that rings in a cadence until it is told to stop."""

import asyncio

from gpiozero import Buzzer, Factory, OutputDevice

from bellwire.config.agent.panel import RingerSettings
from bellwire.config.waiting import Sleep
from bellwire.hardware.panel.cadence import Cadence, CadencePlayer
from bellwire.hardware.panel.pins import claim_output


class Ringer:
    """Represents a bell behind a relay, or a buzzer, on one pin.

    Connect a relay board's input to the pin and its supply to 5V and ground, and the bell's
    circuit to the relay's common and normally-open contacts. Connect a buzzer's negative pin to
    ground and the other to the GPIO pin. A relay board that switches on at a low level needs
    ``active_low=True``.

    The following example rings for three seconds::

        import asyncio

        from bellwire.config.agent.panel import RingerSettings
        from bellwire.hardware.panel.ringer import Ringer

        async def ring_once():
            ringer = Ringer(RingerSettings(pin=17))
            async with asyncio.TaskGroup() as group:
                running = group.create_task(ringer.run())
                ringer.start()
                await asyncio.sleep(3)
                running.cancel()
            ringer.close()

    :param settings: pin, kind and cadence
    :param pin_factory: gpiozero's way to the pins (default None: gpiozero's own default)
    :param sleep: waits for so many seconds (default :func:`asyncio.sleep`)
    :raises PanelError: the pin could not be claimed
    """

    def __init__(
        self,
        settings: RingerSettings,
        *,
        pin_factory: Factory | None = None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        device = Buzzer if settings.kind == "buzzer" else OutputDevice
        output = claim_output("ringer", settings, pin_factory, device)
        self._player = CadencePlayer(output, sleep=sleep)
        self._cadence = Cadence(settings.cadence_s)

    @property
    def is_ringing(self) -> bool:
        """True from :meth:`start` to :meth:`stop`, in the cadence's silences too."""
        return self._player.is_playing

    def start(self) -> None:
        """Ring: the pin is active when this returns. Without effect while it is ringing."""
        if not self.is_ringing:
            self._player.play(self._cadence)

    def stop(self) -> None:
        """Fall silent: the pin is inactive when this returns. Without effect while silent."""
        self._player.rest()

    async def run(self) -> None:
        """Follow the cadence whenever it rings, until cancelled; then fall silent."""
        await self._player.run()

    def close(self) -> None:
        """Fall silent and give the pin back. Closing twice is the same as once."""
        self._player.close()
