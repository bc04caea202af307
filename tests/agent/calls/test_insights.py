"""What a device publishes of its calls: the groups and names of Twilio's clients, in bounded documents."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from bellwire.agent.calls import insights
from bellwire.agent.calls.insights import INSIGHT_LIMIT_BYTES, CallReference, Insight
from bellwire.agent.quality.sample import Sample
from bellwire.agent.quality.warnings import (
    Threshold,
    WarningCleared,
    WarningData,
    WarningName,
    WarningRaised,
)
from bellwire.signaling.errors import ERROR_TABLE, CallError
from bellwire.signaling.wire.insights import ToldInsight

AT = datetime(2026, 11, 21, 14, 30, tzinfo=UTC)
SID = "CA" + "0" * 31 + "7"
CALL = CallReference(call_sid=SID, device_id="door-1", direction="INCOMING")


def read(insight: Insight) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(insight.document())
    assert document["timestamp"] == "2026-11-21T14:30:00.000Z"
    assert document["payload"]["call_sid"] == SID
    assert document["payload"]["device_id"] == "door-1"
    return document


def what(insight: Insight) -> tuple[str, str, str]:
    document = read(insight)
    return document["group"], document["name"], document["level"]


def test_accepting_is_told_by_the_name_the_seeds_give_it() -> None:
    assert what(insights.accepted(CALL, AT)) == ("connection", "accepted-by-local", "info")
    assert what(insights.ignored(CALL, AT)) == ("connection", "ignored-by-local", "info")


def test_rejecting_is_told_with_the_error_the_seeds_give_it() -> None:
    told, error = insights.rejected(CALL, AT)
    assert what(told) == ("connection", "rejected-by-local", "info")
    assert what(error) == ("connection", "error", "error")
    payload = read(error)["payload"]
    assert payload["code"] == 31600
    assert payload["message"] == "Busy Everywhere : SIP/2.0 600 Call Rejected"


@pytest.mark.parametrize("code", ERROR_TABLE)
def test_a_failed_call_is_told_with_its_code(code: int) -> None:
    error = insights.failed(CALL, CallError(code), AT)
    assert what(error) == ("connection", "error", "error")
    assert read(error)["payload"]["code"] == code


def test_the_codec_is_told() -> None:
    told = insights.codec_selected(CALL, "opus", AT, parameters="minptime=10;useinbandfec=1")
    assert what(told) == ("settings", "codec", "info")
    assert read(told)["payload"]["selected_codec"] == "opus"
    assert read(told)["payload"]["codec_params"] == "minptime=10;useinbandfec=1"


def of(name: WarningName, count: int = 5) -> tuple[WarningName, WarningData]:
    samples = tuple(Sample(timestamp=float(n)) for n in range(count))
    threshold = Threshold(name="max", value=400)
    values = tuple(400.12345 + n for n in range(count))
    return name, WarningData(name="rtt", values=values, samples=samples, threshold=threshold)


@pytest.mark.parametrize("name", WarningName)
def test_a_warning_is_told_when_it_is_raised_and_when_it_is_cleared(name: WarningName) -> None:
    about = "audio-level" if name.startswith("constant-audio") else "network-quality"
    raised = insights.quality_changed(CALL, WarningRaised(*of(name)), AT)
    assert what(raised) == (f"{about}-warning-raised", name, "warning")
    assert read(raised)["payload"]["data"] == {
        "threshold": {"name": "max", "value": 400},
        "values": [400.12, 401.12, 402.12, 403.12, 404.12],
    }
    cleared = insights.quality_changed(CALL, WarningCleared(*of(name)), AT)
    assert what(cleared) == (f"{about}-warning-cleared", name, "info")


def test_feedback_is_told_and_so_is_that_there_is_none() -> None:
    told = insights.feedback(CALL, 2, AT, issue="choppy-audio")
    assert what(told) == ("feedback", "received", "info")
    payload = read(told)["payload"]
    assert (payload["quality_score"], payload["issue_name"]) == (2, "choppy-audio")
    assert what(insights.feedback(CALL, None, AT)) == ("feedback", "received-none", "info")


@pytest.mark.parametrize(("score", "issue"), [(0, None), (6, None), (3, "boring-talk")])
def test_feedback_that_twilio_does_not_know_is_refused(score: int, issue: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValidationError):
        insights.feedback(CALL, score, AT, issue=issue)


def test_an_outgoing_call_is_told_of_before_it_has_a_sid() -> None:
    early = CallReference(call_sid=None, device_id="door-1", direction="OUTGOING")
    document = json.loads(insights.failed(early, CallError(53404), AT).document())
    assert document["payload"]["call_sid"] is None


def test_an_error_in_no_unicode_is_told_all_the_same() -> None:
    told = read(insights.failed(CALL, CallError(31005, "caf\udce9"), AT))
    assert told["payload"]["message"] == "caf?"


@pytest.mark.parametrize("long", ["é" * 5000, "\x00" * 5000, "\N{BELL}" * 5000, "x" * 5000, ""])
def test_no_insight_is_over_its_limit(long: str) -> None:
    told = [
        insights.failed(CALL, CallError(31005, long), AT),
        insights.codec_selected(CALL, long, AT, parameters=long),
        insights.quality_changed(CALL, WarningRaised(*of(WarningName.HIGH_RTT, 10)), AT),
    ]
    for insight in told:
        assert len(insight.document().encode()) <= INSIGHT_LIMIT_BYTES
        heard = ToldInsight.model_validate_json(insight.document())  # as a relay reads it
        assert (heard.call_sid, heard.name) == (CALL.call_sid, insight.name)
        assert "\x00" not in heard.model_dump_json()  # which PostgreSQL would not keep
