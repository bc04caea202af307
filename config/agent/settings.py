"""Settings of one device's agent: the file that `bellwire devices add` writes, and the part of them
that the fleet's layers may change."""

import difflib
import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tomli_w
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    SecretStr,
    ValidationError,
    model_validator,
)

from bellwire.config.agent.audio import AudioSettings, missing_ring_tone
from bellwire.config.agent.behaviour import BehaviourSettings
from bellwire.config.agent.layer_reach import (
    BUTTON_FIELDS,
    CALL_BUTTON_FIELDS,
    LIMIT_FIELDS,
    PART_FIELDS,
    SCHEMA_KEY,
    cannot_be_opened,
    local_only_places,
    split_local_only,
)
from bellwire.config.agent.panel import (
    ButtonSettings,
    CallButtonSettings,
    PanelSettings,
    RingerSettings,
    StatusLightSettings,
)
from bellwire.config.agent.telemetry import TelemetrySettings
from bellwire.config.media_servers import IceServerSettings
from bellwire.config.setting_mistakes import mistake_in_words
from bellwire.signaling.errors import InvalidInput
from bellwire.signaling.identifiers import DeviceIdField, GroupNameField, IdentityField


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BrokerSettings(_Settings):
    """The broker and this device's own credentials."""

    url: str
    username: str
    password: SecretStr
    ca_file: Path | None = None


SettingPath = Annotated[str, Field(pattern=r"^[^.]+(\.[^.]+)*$", max_length=256)]
"""A place in the settings, dotted: `panel.door`. It means everything below it, too."""


class ConfigurableSettings(_Settings):
    """Everything that an agent does, and an operator may change from afar (`config/fleet`)."""

    groups: Annotated[tuple[GroupNameField, ...], Field(max_length=16)] = ()
    """The fleet's groups that the device belongs to; of two, the later one's layer wins."""
    panel: PanelSettings = Field(default_factory=PanelSettings)
    audio: AudioSettings = Field(default_factory=AudioSettings)
    behaviour: BehaviourSettings = Field(default_factory=BehaviourSettings)
    call_timeout_s: Annotated[float, Field(ge=1, le=600)] = 60
    """How long this device's own calls ring."""
    ice_servers: Annotated[tuple[IceServerSettings, ...], Field(max_length=8)] = ()
    """STUN and TURN servers beside those that the relay names."""
    telemetry: TelemetrySettings = Field(default_factory=TelemetrySettings)
    log_level: Literal["debug", "info", "warning", "error"] = "info"


class AgentSettings(ConfigurableSettings):
    """Everything one agent needs to be told. What is not in ConfigurableSettings only its own file says."""

    device_id: DeviceIdField
    identity: IdentityField
    broker: BrokerSettings
    locked: Annotated[tuple[SettingPath, ...], Field(max_length=64)] = ()
    """Settings that no layer of the fleet may change: `["log_level", "audio.input_device"]`."""
    remote: Annotated[tuple[SettingPath, ...], Field(max_length=64)] = ()
    """What layers may say though it opens a door or a microphone: `["behaviour.doors.front.callers",
    "behaviour.auto_answer"]` (:mod:`config.agent.layer_reach`). As it stands, nothing."""

    @model_validator(mode="after")
    def _open_only_what_can_be_opened(self) -> Self:
        wrong = cannot_be_opened(self.remote, self.behaviour.doors)
        if wrong:
            raise ValueError(
                f"remote: {wrong[0][:80]!r} cannot be opened to layers: behaviour.auto_answer can, and"
                " callers, by_message and verified_only of a door that is in this file, such as"
                " behaviour.doors.front.callers. Pins, times, codes and limits cannot"
            )
        return self


LOCAL_ONLY_PLACES = local_only_places(ConfigurableSettings)
"""Where the configurable settings hold secrets, which no layer may say: door codes."""


def with_secrets_of(
    file: ConfigurableSettings, settings: ConfigurableSettings
) -> ConfigurableSettings:
    """The fleet's sum, with the door codes that the device's own file gives those doors."""
    doors = {
        name: door.model_copy(update={"code": file.behaviour.doors[name].code})
        if name in file.behaviour.doors
        else door
        for name, door in settings.behaviour.doors.items()
    }
    behaviour = settings.behaviour.model_copy(update={"doors": doors})
    return settings.model_copy(update={"behaviour": behaviour})


def configurable_part(settings: ConfigurableSettings) -> ConfigurableSettings:
    """The settings without who the device is, and the password of its broker."""
    fields = {name: getattr(settings, name) for name in ConfigurableSettings.model_fields}
    return ConfigurableSettings.model_validate(fields)


def settings_given(settings: ConfigurableSettings) -> dict[str, JsonValue]:
    """The configurable settings that a file says, without its secrets and what it leaves to the
    defaults: what the fleet's layers are merged over."""
    given: dict[str, Any] = settings.model_dump(
        mode="json", exclude_unset=True, include=set(ConfigurableSettings.model_fields)
    )
    _leave_out_implied(given)
    shared, _ = split_local_only(given, LOCAL_ONLY_PLACES)
    return shared


def _leave_out_implied(given: dict[str, Any]) -> None:
    # ButtonSettings adds this to a pull down; kept, it would turn a layer's pull up into the opposite.
    if given.get("pull") == "down" and given.get("active_low") is False:
        del given["active_low"]
    for value in given.values():
        if isinstance(value, dict):
            _leave_out_implied(value)


def settings_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a layer's `settings`, for editors. A layer is a merge patch, so
    nothing in it is required, and null, which removes a value, is allowed everywhere. What only a
    device's own file says is left out."""
    schema = ConfigurableSettings.model_json_schema(by_alias=True, mode="validation")
    definitions = schema.get("$defs", {})
    for definition in (schema, *definitions.values()):
        if definition.get("type") == "object":
            definition.pop("required", None)
            fields = definition.get("properties", {})
            configurable = {n: field for n, field in fields.items() if SCHEMA_KEY not in field}
            definition["properties"] = {n: _or_null(field) for n, field in configurable.items()}
    _leave_out_wiring(definitions)
    for name in ("panel", "behaviour"):  # null would take what the file alone says with it
        _take_null_out(schema["properties"][name])
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


_SAID_OF = {
    "ButtonSettings": BUTTON_FIELDS,
    "CallButtonSettings": CALL_BUTTON_FIELDS,
    "KeypadSettings": PART_FIELDS["keypad"],
    "RingerSettings": PART_FIELDS["ringer"],
    "PanelSettings": {"call_buttons", *(name for name, fields in PART_FIELDS.items() if fields)},
}


def _leave_out_wiring(definitions: dict[str, Any]) -> None:
    for name, said in _SAID_OF.items():
        fields = definitions[name]["properties"]
        definitions[name]["properties"] = {n: field for n, field in fields.items() if n in said}
    for wired in ("DoorSettings", "StatusLightSettings"):
        del definitions[wired]
    behaviour = definitions["BehaviourSettings"]["properties"]
    for limit in LIMIT_FIELDS:
        del behaviour[limit]
    for right in ("auto_answer", "doors"):
        behaviour[right]["description"] = (
            "In force only on devices whose own file opens it to layers (`remote`)."
        )
    for field in (*definitions["PanelSettings"]["properties"].values(), behaviour["doors"]):
        _take_null_out(field)


def _take_null_out(field: dict[str, Any]) -> None:
    field["anyOf"] = [one for one in field["anyOf"] if one != {"type": "null"}]
    field.pop("default", None)


def _or_null(field: dict[str, Any]) -> dict[str, Any]:
    about = ("title", "description", "default")
    kept: dict[str, Any] = {key: field[key] for key in about if key in field}
    rest = {key: value for key, value in field.items() if key not in kept}
    return {**kept, "anyOf": [*rest.pop("anyOf", [rest] if rest else []), {"type": "null"}]}


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
    given = settings.model_dump(exclude_none=True, exclude_defaults=True)
    _reveal(document, split_local_only(given, LOCAL_ONLY_PLACES)[1])
    document = {name: document.pop(name) for name in ("device_id", "identity", "broker")} | document
    return _HEADER + tomli_w.dumps(document)


def _reveal(document: dict[str, Any], secrets: dict[str, Any]) -> None:
    """Puts secrets where pydantic has written masks."""
    for name, value in secrets.items():
        if isinstance(value, SecretStr):
            document[name] = value.get_secret_value()
        else:
            _reveal(document[name], value)


def load_agent_settings(path: Path, *, on_device: bool = True) -> AgentSettings:
    """The settings in a file; `on_device` has the files that it names looked at, too.

    Raises:
        InvalidInput: it cannot be read, or names each place that is wrong and why.
    """
    found: dict[str, Any] = {}
    try:
        found = tomllib.loads(path.read_text())
        settings = AgentSettings.model_validate(found)
    except FileNotFoundError as error:
        raise InvalidInput(
            f"{path} does not exist: make it with `bellwire devices add ID --identity NAME --out {path}`"
        ) from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidInput(f"{path} cannot be read: {error}") from error
    except ValidationError as error:
        places = "; ".join(
            _unknown(problem["loc"], found)
            if problem["type"] == "extra_forbidden"
            else mistake_in_words(problem)
            for problem in error.errors(include_input=False, include_url=False)
        )
        raise InvalidInput(f"{path} is not a valid agent configuration: {places}") from error
    wrong = missing_ring_tone(settings.audio.ring_tone) if on_device else None
    if wrong is not None:
        raise InvalidInput(f"{path} is not a valid agent configuration: audio.ring_tone: {wrong}")
    return settings


def _unknown(loc: tuple[int | str, ...], found: dict[str, Any]) -> str:
    """What to do about a setting that there is not: it stands in the wrong place, or is misspelt."""
    *above, name = map(str, loc)
    value: Any = found
    for step in loc:
        inside = isinstance(value, dict) and step in value
        inside |= isinstance(value, list) and isinstance(step, int) and step < len(value)
        value = value[step] if inside else None
    section = ".".join(above)
    dotted = ".".join((*above, name))
    what = f"unknown section [{dotted}]" if isinstance(value, dict) else f"unknown setting `{name}`"
    where = "" if isinstance(value, dict) else f" in [{section}]" if above else " at the top"
    places = {field: place for place, fields in _SECTIONS.items() for field in fields}
    if name in AgentSettings.model_fields:
        hint = "; it belongs at the top, before the first [section]"
    elif not above and name in places:
        hint = f"; it belongs in [{places[name]}]"
    else:
        known = _SECTIONS.get(section, AgentSettings.model_fields if not above else ())
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean `{near[0]}`?" if near else ""
    return f"{dotted}: {what}{where}{hint}"


_SECTIONS: dict[str, Collection[str]] = {
    name: field.annotation.model_fields
    for name, field in AgentSettings.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
}
"""The settings of each section."""
