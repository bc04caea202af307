"""`bellwire fleet status` says who is locked out of a station's door."""

from datetime import UTC, datetime
from io import StringIO

from rich.console import Console

from bellwire.cli.fleet.session import FleetDevice
from bellwire.cli.fleet.standing import Standing
from bellwire.cli.fleet.status import status_view
from bellwire.config.agent.telemetry import DoorNow, Telemetry
from bellwire.signaling.identifiers import DeviceId
from bellwire.signaling.wire.station import Presence


def station(door: DoorNow | None) -> Standing:
    device = FleetDevice(DeviceId("gate"))
    device.presence = Presence(online=True)
    device.telemetry = Telemetry(
        device_id="gate", at=datetime.now(UTC), software="agent", uptime_s=1, door=door
    )
    return Standing(device, "in step", {})


def shown(standing: Standing) -> str:
    out = StringIO()
    Console(file=out, width=120).print(status_view([standing], {}))
    return out.getvalue()


def test_who_is_locked_out_is_named_with_the_station() -> None:
    locked = station(DoorNow(wrong_codes=6, locked_out=("", "eve")))
    assert "somebody of several, eve typed too many wrong codes" in shown(locked)
    assert locked.as_json()["door"] == {"wrong_codes": 6, "locked_out": ("", "eve")}


def test_a_wrong_code_alone_and_a_station_of_a_version_before_are_nothing_to_mend() -> None:
    assert "wrong codes" not in shown(station(DoorNow(wrong_codes=1)))
    assert "wrong codes" not in shown(station(None))
    assert station(None).as_json()["door"] is None
