"""Moments that devices say: one that is well-formed and has no place in UTC breaks nobody who reads it."""

import json
from collections.abc import Callable

import pytest
from pydantic import ValidationError

from bellwire.config.agent.telemetry import Telemetry
from bellwire.signaling.wire.station import parse_presence

AT = ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"]


def presence(at: str) -> object:
    return parse_presence(json.dumps({"online": True, "since": at}).encode())


def telemetry(at: str) -> object:
    return Telemetry.model_validate({"device_id": "d", "at": at, "software": "1", "uptime_s": 1.0})


@pytest.mark.parametrize("at", AT)
@pytest.mark.parametrize("said", [presence, telemetry])
def test_a_moment_that_cannot_be_shown_in_utc_is_none(
    said: Callable[[str], object], at: str
) -> None:
    assert said("2026-11-30T12:00:00+02:00")
    with pytest.raises(ValidationError, match="between the years 1 and 9999"):
        said(at)
