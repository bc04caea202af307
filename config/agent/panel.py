"""How a station's panel is wired: which pin carries which button, lamp, relay and keypad line.

Pins are numbered as the Pi's chip numbers them (BCM: 17 is GPIO17, not the 17th of the header).
One pin has one user; a panel that uses a pin twice is refused, and both users are named.
"""

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

DOOR_OPEN_MIN_S = 0.1
DOOR_OPEN_MAX_S = 60.0
UK_DOUBLE_RING_S = (0.4, 0.2, 0.4, 2.0)

Pin = Annotated[int, Field(ge=0, le=27, description="GPIO in BCM numbering, 0 to 27.")]
Step = Annotated[float, Field(ge=0.01, le=60)]
Identity = Annotated[str, StringConstraints(pattern=r"^\S+$")]
ParameterName = Annotated[
    str,
    Field(description="Printable ASCII without white space and without & = % + #."),
    StringConstraints(pattern=r"^[\x21\x22\x24\x27-\x2a\x2c-\x3c\x3e-\x7e]+$"),
]


def _one_or_many(value: object) -> object:
    return [value] if isinstance(value, str) else value


Identities = Annotated[
    tuple[Identity, ...],
    Field(max_length=9),
    BeforeValidator(_one_or_many, json_schema_input_type=str | list[str]),
]


class Wiring(BaseModel):
    """What all wiring has in common: it is immutable, and a name it does not know is a mistake."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ButtonSettings(Wiring):
    """A push button or switch between a pin and ground (pull up) or between a pin and 3V3 (down).

    Leave ``active_low`` out unless the contact is normally closed (it then says the opposite of
    the pull) or the pull is on the board rather than in the chip (``floating``).
    """

    pin: Pin
    pull: Literal["up", "down", "floating"] = Field(
        default="up",
        description="The chip's own resistor: up, down, or floating where the board has one.",
    )
    active_low: bool = Field(
        default=True,
        description="True where a low pin means pressed. Default: true with pull up, false with "
        "pull down; with floating it has to be given.",
    )
    debounce_s: float = Field(
        default=0.03,
        ge=0,
        le=1,
        description="Seconds a level must hold before it counts; 0 takes every edge.",
    )
    long_press_s: float = Field(
        default=1.0, gt=0, le=60, description="Seconds from which a press is a long press."
    )

    @model_validator(mode="before")
    @classmethod
    def _press_against_the_pull(cls, given: object) -> object:
        if isinstance(given, dict) and given.get("pull") == "down":
            return {"active_low": False, **given}
        return given

    @model_validator(mode="after")
    def _say_what_floating_means(self) -> Self:
        if self.pull == "floating" and "active_low" not in self.model_fields_set:
            raise ValueError(
                f"pin {self.pin} is floating, so its level does not say what is pressed: "
                "give active_low (true where the button connects to ground)"
            )
        return self

    @model_validator(mode="after")
    def _hold_longer_than_a_bounce(self) -> Self:
        if self.long_press_s <= self.debounce_s:
            raise ValueError(
                f"long_press_s ({self.long_press_s} s) must be longer than "
                f"debounce_s ({self.debounce_s} s)"
            )
        return self


class CallButtonSettings(ButtonSettings):
    """A button that calls somebody: one or more identities, or a named group."""

    to: Identities = Field(
        default=(), description="The identity to call, or a list of at most 9 of them."
    )
    group: str | None = Field(
        default=None, min_length=1, description="The named group to call, instead of `to`."
    )
    custom_parameters: dict[ParameterName, str] = Field(
        default_factory=dict, description="Custom parameters that travel with the invite."
    )
    early_media: bool = Field(
        default=False, description="Whether those called may hear this station before they answer."
    )
    forward_to: Identities = Field(
        default=(),
        description="Whom it calls next when nobody has answered: an identity, or at most 9.",
    )
    forward_group: str | None = Field(
        default=None,
        min_length=1,
        description="The named group that it calls next, instead of `forward_to`.",
    )

    @model_validator(mode="after")
    def _call_somebody(self) -> Self:
        if bool(self.to) == bool(self.group):
            found = "both" if self.to else "neither"
            raise ValueError(f"a call button has either `to` or `group`; this one has {found}")
        if self.forward_to and self.forward_group:
            raise ValueError(
                "a call button forwards to either `forward_to` or `forward_group`; this one has both"
            )
        return self


class OutputSettings(Wiring):
    """A pin that switches something."""

    pin: Pin
    active_low: bool = Field(
        default=False, description="True where a low pin switches the load on (many relay boards)."
    )


class RingerSettings(OutputSettings):
    """The bell's relay, or a buzzer, and the cadence it rings in."""

    kind: Literal["relay", "buzzer"] = Field(
        default="relay", description="relay (a bell behind a relay) or buzzer (on the pin)."
    )
    cadence_s: tuple[Step, ...] = Field(
        default=UK_DOUBLE_RING_S,
        min_length=2,
        max_length=32,
        description="Seconds on, off, on, off, and so on, then from the start; each 0.01 to 60. "
        "Default: the UK's double ring.",
    )

    @model_validator(mode="after")
    def _end_in_silence(self) -> Self:
        if len(self.cadence_s) % 2:
            raise ValueError(
                f"cadence_s alternates on and off, so it needs an even number of steps, "
                f"not {len(self.cadence_s)}"
            )
        return self


class StatusLightSettings(OutputSettings):
    """The LED that shows what the station is doing."""


class DoorSettings(OutputSettings):
    """The relay of the door's electric strike or lock (wired fail-secure)."""

    open_s: float = Field(
        default=5.0,
        ge=DOOR_OPEN_MIN_S,
        le=DOOR_OPEN_MAX_S,
        description="Seconds the door stays released, 0.1 to 60.",
    )


class KeypadSettings(Wiring):
    """A telephone keypad: 4 rows by 3 columns, 1 2 3 at the top, * 0 # at the bottom."""

    rows: tuple[Pin, Pin, Pin, Pin] = Field(description="Row pins, the row of 1 2 3 first.")
    columns: tuple[Pin, Pin, Pin] = Field(description="Column pins, the column of 1 4 7 * first.")
    debounce_s: float = Field(
        default=0.02,
        ge=0.001,
        le=1,
        description="Seconds between two scans; a key counts when two in a row see it.",
    )


class PanelSettings(Wiring):
    """Everything that is wired to one station. What is left out is not there."""

    call_buttons: dict[Annotated[str, Field(min_length=1)], CallButtonSettings] = Field(
        default_factory=dict, description="The call buttons by name, such as front-door."
    )
    answer: ButtonSettings | None = Field(default=None, description="Answers the call.")
    hang_up: ButtonSettings | None = Field(
        default=None, description="Rejects the call that rings, or hangs up."
    )
    hook: ButtonSettings | None = Field(
        default=None, description="The hook switch; active means that the handset is lifted."
    )
    mute: ButtonSettings | None = Field(default=None, description="Mutes the microphone.")
    keypad: KeypadSettings | None = Field(default=None, description="The 4x3 keypad.")
    ringer: RingerSettings | None = Field(default=None, description="The bell or buzzer.")
    status_light: StatusLightSettings | None = Field(default=None, description="The status LED.")
    door: DoorSettings | None = Field(default=None, description="The door release.")

    def buttons(self) -> Iterator[tuple[str, ButtonSettings]]:
        """Every button and the hook switch, named as in the configuration."""
        for name, call_button in self.call_buttons.items():
            yield f"call_buttons.{name}", call_button
        singles = {
            "answer": self.answer,
            "hang_up": self.hang_up,
            "hook": self.hook,
            "mute": self.mute,
        }
        yield from ((name, button) for name, button in singles.items() if button is not None)

    def outputs(self) -> Iterator[tuple[str, OutputSettings]]:
        """Every output, named as in the configuration."""
        singles = {"ringer": self.ringer, "status_light": self.status_light, "door": self.door}
        yield from ((name, output) for name, output in singles.items() if output is not None)

    def pin_users(self) -> Iterator[tuple[str, int]]:
        """Every part with the pin it uses, named as in the configuration (``keypad.rows[0]``)."""
        yield from ((name, button.pin) for name, button in self.buttons())
        yield from ((name, output.pin) for name, output in self.outputs())
        if self.keypad is not None:
            yield from ((f"keypad.rows[{i}]", pin) for i, pin in enumerate(self.keypad.rows))
            yield from ((f"keypad.columns[{i}]", pin) for i, pin in enumerate(self.keypad.columns))

    @model_validator(mode="after")
    def _give_each_pin_one_user(self) -> Self:
        users: dict[int, str] = {}
        for user, pin in self.pin_users():
            if pin in users:
                raise ValueError(
                    f"pin {pin} is used twice, by {users[pin]} and by {user}: give one another pin"
                )
            users[pin] = user
        return self
