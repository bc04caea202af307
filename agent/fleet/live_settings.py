"""The settings in force, and those that wait for the device to be idle.

What can change under a call changes at once. What is wired (pins, which sound card) is made anew, so
it waits while there is a call. Parts read `now` when they need a setting, or watch it.
"""

import asyncio
from collections.abc import Callable

import structlog

from bellwire.config.agent.panel import CallButtonSettings, PanelSettings
from bellwire.config.agent.settings import ConfigurableSettings, configurable_part
from bellwire.config.waiting import Sleep

log = structlog.get_logger(__name__)

Watcher = Callable[[ConfigurableSettings, ConfigurableSettings], None]

_LOOK_AGAIN_S = 2.0
_SOUND_CARD = ("enabled", "input_device", "output_device")
_TARGET = ("to", "group", "custom_parameters", "early_media", "forward_to", "forward_group")


class LiveSettings:
    """An agent's settings, as they change.

    Args:
        settings: The settings at the start.
        is_idle: Whether the device may be rewired now.
        sleep: Waits.
    """

    def __init__(
        self,
        settings: ConfigurableSettings,
        *,
        is_idle: Callable[[], bool] = lambda: True,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._now = self._target = configurable_part(settings)
        self._is_idle = is_idle
        self._sleep = sleep
        self._watchers: list[Watcher] = []

    @property
    def now(self) -> ConfigurableSettings:
        """The settings in force."""
        return self._now

    @property
    def waiting(self) -> tuple[str, ...]:
        """The settings, dotted, that take effect when the device is idle."""
        now, target = self._now, self._target
        panel = () if now.panel == target.panel else ("panel",)
        changed = (n for n in _SOUND_CARD if getattr(now.audio, n) != getattr(target.audio, n))
        return (*panel, *(f"audio.{name}" for name in changed))

    def watch(self, watcher: Watcher) -> None:
        """Has `watcher` called with the settings before and now, at each change. It must not raise."""
        self._watchers.append(watcher)

    def take(self, target: ConfigurableSettings) -> None:
        """Has these settings in force: at once what can be, the rest once the device is idle."""
        self._target = target
        self.settle()

    async def run(self) -> None:
        """Looks, while something waits, whether the device is idle, until cancelled: not everything
        that keeps it busy tells of its end."""
        while True:
            await self._sleep(_LOOK_AGAIN_S)
            if self.waiting:
                self.settle()

    def settle(self) -> None:
        """To be called whenever the device may have become idle."""
        before = self._now
        now = self._target if self._is_idle() else _without_rewiring(before, self._target)
        if now == before:
            return
        self._now = now
        log.info("settings changed", waiting=self.waiting)
        for watcher in tuple(self._watchers):
            watcher(before, now)


def wiring_of(panel: PanelSettings) -> PanelSettings:
    """A panel without what can change under a call: two of one wiring use the same pins alike."""
    anybody = CallButtonSettings(pin=0, to=("nobody",))
    nobody = {field: getattr(anybody, field) for field in _TARGET}
    buttons = {n: b.model_copy(update=nobody) for n, b in panel.call_buttons.items()}
    return panel.model_copy(update={"call_buttons": buttons})


def _without_rewiring(
    now: ConfigurableSettings, target: ConfigurableSettings
) -> ConfigurableSettings:
    panel = target.panel
    if wiring_of(panel) != wiring_of(now.panel):
        buttons = {
            name: button.model_copy(
                update={
                    field: getattr(panel.call_buttons.get(name, button), field) for field in _TARGET
                }
            )
            for name, button in now.panel.call_buttons.items()
        }
        panel = now.panel.model_copy(update={"call_buttons": buttons})
    card = {name: getattr(now.audio, name) for name in _SOUND_CARD}
    audio = target.audio.model_copy(update=card)
    return target.model_copy(update={"panel": panel, "audio": audio})
