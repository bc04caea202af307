"""How often an agent reports its health, and what it reports on its telemetry topic."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from bellwire.signaling.calls.events import SaidMoment

CallNow = Literal["idle", "pending", "connecting", "ringing", "open", "reconnecting", "closed"]


class TelemetrySettings(BaseModel):
    """The pace of health reports."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = True
    interval_s: Annotated[float, Field(ge=1, le=86_400)] = 60
    """Seconds between two reports."""


class Fault(BaseModel):
    """Something of the device that does not work: `part` is `panel`, `audio`, ...; what and what to do."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    part: Annotated[str, Field(max_length=64)]
    reason: Annotated[str, Field(max_length=512)]


class LastCall(BaseModel):
    """The call that has ended last: `ended_because` says in words why."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    call_sid: Annotated[str, Field(max_length=64)]
    direction: Literal["INCOMING", "OUTGOING"]
    ended_at: SaidMoment
    ended_because: Annotated[str, Field(max_length=512)] = ""


class DoorNow(BaseModel):
    """How many wrong door codes count now, and whose digits are ignored for theirs, at most 16 of them.
    An identity "" is somebody in a call of several, where nobody knows who typed."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    wrong_codes: int = 0
    locked_out: Annotated[
        tuple[Annotated[str, Field(max_length=128)], ...], Field(max_length=16)
    ] = ()


class Telemetry(BaseModel):
    """A device's health. What it cannot tell (a Pi on a cable has no Wi-Fi) is None.

    `cpu_percent` is the share of all cores since the report before; `clock_skew_s` how far the
    device's clock is ahead of the relay's, from the time stamps of the relay's events.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    device_id: str
    at: SaidMoment
    software: str
    uptime_s: float
    """Since the agent started."""
    boot_s: float | None = None
    """Since the device started."""
    cpu_percent: float | None = None
    load_1m: float | None = None
    temperature_c: float | None = None
    memory_percent: float | None = None
    agent_rss_mb: float | None = None
    disk_percent: float | None = None
    wifi_signal_dbm: float | None = None
    clock_skew_s: float | None = None
    config_hash: str = ""
    call: CallNow = "idle"
    last_call: LastCall | None = None
    """Since the agent started."""
    door: DoorNow | None = None
    """None where no settings name a door, or all is well with its codes."""
    faults: tuple[Fault, ...] = ()
