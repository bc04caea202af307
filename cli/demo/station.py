"""A station without hardware, its buttons under the keys of a keyboard."""

from bellwire.config.agent.panel import ButtonSettings
from bellwire.config.agent.settings import AgentSettings
from bellwire.hardware.panel.simulated_pins import SimulatedPins


class SimulatedStation:
    """Simulated pins wired as the settings say, and a key for each button."""

    def __init__(self, settings: AgentSettings) -> None:
        panel = settings.panel
        self.pins = SimulatedPins(panel)
        self.settings = settings
        self.buttons: dict[str, tuple[str, ButtonSettings]] = {}
        for number, (name, button) in enumerate(panel.call_buttons.items(), start=1):
            self.buttons[str(number)] = (f"call {name}", button)
        if panel.answer is not None:
            self.buttons["a"] = ("answer", panel.answer)
        if panel.hang_up is not None:
            self.buttons["h"] = ("reject or hang up", panel.hang_up)

    @property
    def legend(self) -> str:
        """Which key presses which button."""
        keys = ", ".join(f"{key} {name}" for key, (name, _) in self.buttons.items())
        return (
            f"Simulated panel of {self.settings.device_id}. Type a key and Enter: {keys}, q stop."
        )

    @property
    def is_ringing(self) -> bool:
        """Whether the ringer's pin is active now."""
        ringer = self.settings.panel.ringer
        return ringer is not None and self.pins.is_active(ringer)

    async def press(self, key: str) -> bool:
        """Taps the button under a key; False where there is none."""
        if key not in self.buttons:
            return False
        await self.pins.tap(self.buttons[key][1])
        return True
