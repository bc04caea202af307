"""Settings of one device's agent: the file that `bellwire devices add` writes."""

import tomllib
from pathlib import Path
from typing import Annotated, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from config.audio import AudioSettings
from config.behaviour import BehaviourSettings
from config.panel import (
    ButtonSettings,
    CallButtonSettings,
    PanelSettings,
    RingerSettings,
    StatusLightSettings,
)
from signaling.errors import InvalidInput
from signaling.identifiers import DeviceIdField, IdentityField


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BrokerSettings(_Settings):
    """The broker and this device's own credentials."""

    url: str
    username: str
    password: SecretStr
    ca_file: Path | None = None


class AgentSettings(_Settings):
    """Everything one agent needs to be told."""

    device_id: DeviceIdField
    identity: IdentityField
    broker: BrokerSettings
    panel: PanelSettings = Field(default_factory=PanelSettings)
    audio: AudioSettings = Field(default_factory=AudioSettings)
    behaviour: BehaviourSettings = Field(default_factory=BehaviourSettings)
    call_timeout_s: Annotated[float, Field(ge=1, le=600)] = 60
    """How long this device's own calls ring."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"


_HEADER = """\
# Bellwire agent, written by `bellwire devices add`. It holds this device's broker password:
# keep it mode 600, and never in version control. Pins are BCM numbers; change them to your wiring.

"""


def default_panel(calls: list[str]) -> PanelSettings:
    """A small station: ringer, status light, answer and hang-up, and a call button per identity to call."""
    call_pins = (17, 27, 5, 6, 13, 19, 26)
    if len(calls) > len(call_pins):
        raise InvalidInput(f"the default panel has {len(call_pins)} call buttons, not {len(calls)}")
    return PanelSettings(
        call_buttons={
            identity: CallButtonSettings(pin=pin, to=(identity,))
            for identity, pin in zip(calls, call_pins, strict=False)
        },
        answer=ButtonSettings(pin=23),
        hang_up=ButtonSettings(pin=22),
        ringer=RingerSettings(pin=18),
        status_light=StatusLightSettings(pin=24),
    )


def agent_file(settings: AgentSettings) -> str:
    """The settings as their TOML file, password included. Defaults are left out."""
    document = settings.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    document["broker"]["password"] = settings.broker.password.get_secret_value()
    return _HEADER + tomli_w.dumps(document)


def load_agent_settings(path: Path) -> AgentSettings:
    """The settings in a file.

    Raises:
        InvalidInput: it cannot be read, or names each place that is wrong and why.
    """
    try:
        return AgentSettings.model_validate(tomllib.loads(path.read_text()))
    except FileNotFoundError as error:
        raise InvalidInput(
            f"{path} does not exist: make it with `bellwire devices add ID --identity NAME --out {path}`"
        ) from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidInput(f"{path} cannot be read: {error}") from error
    except ValidationError as error:
        places = "; ".join(
            f"{'.'.join(map(str, problem['loc'])) or 'file'}: {problem['msg']}"
            for problem in error.errors(include_input=False, include_url=False)
        )
        raise InvalidInput(f"{path} is not a valid agent configuration: {places}") from error
