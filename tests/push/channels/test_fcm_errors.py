"""What each of FCM's documented errors means for the delivery, the token and the operator."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from email.utils import format_datetime

import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from bellwire.push.channels.channel import (
    ChannelAtFault,
    DeliveryFailed,
    DeliveryRefused,
    TokenDead,
)
from bellwire.push.channels.fcm.channel import FcmChannel
from bellwire.push.metrics import Metrics
from tests.push.fcm_parts import gauge, google_in, running_channel, to, utc_now
from tests.push.fcm_server import Answer, FcmServer, fcm_error

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass
class Scene:
    """One server and one channel for all of these tests; each finds the app well."""

    google: FcmServer
    channel: FcmChannel
    metrics: Metrics


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def whole(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    metrics = Metrics()
    async with (
        google_in(tmp_path_factory.mktemp("google")) as google,
        running_channel(google, metrics=metrics) as channel,
    ):
        yield Scene(google, channel, metrics)


@pytest_asyncio.fixture(loop_scope="module")
async def scene(whole: Scene) -> Scene:
    whole.google.answers.clear()
    await whole.channel.send(to("well"), 30)
    assert gauge(whole.metrics) == 0
    whole.google.count = 0
    return whole


HTML = b"<!DOCTYPE html><title>Error 502 (Server Error)!!1</title>\xff"
BAD_REQUEST = {
    "error": {
        "code": 400,
        "message": "Invalid value at 'message.data[0].value'",
        "status": "INVALID_ARGUMENT",
        "details": [{"@type": "type.googleapis.com/scene.google.rpc.BadRequest"}],
    }
}


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (fcm_error(404, "NOT_FOUND", "UNREGISTERED"), TokenDead),
        (fcm_error(403, "PERMISSION_DENIED", "SENDER_ID_MISMATCH"), TokenDead),
        (fcm_error(400, "INVALID_ARGUMENT", "INVALID_ARGUMENT"), DeliveryRefused),
        ((400, BAD_REQUEST), DeliveryRefused),
        (fcm_error(413, "INVALID_ARGUMENT"), DeliveryRefused),
        (fcm_error(429, "RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED"), DeliveryFailed),
        (fcm_error(429, "RESOURCE_EXHAUSTED"), DeliveryFailed),
        (fcm_error(503, "UNAVAILABLE", "UNAVAILABLE"), DeliveryFailed),
        (fcm_error(500, "INTERNAL", "INTERNAL"), DeliveryFailed),
        (fcm_error(400, "INVALID_ARGUMENT", "UNSPECIFIED_ERROR"), DeliveryRefused),
        (fcm_error(500, "UNKNOWN", "UNSPECIFIED_ERROR"), DeliveryFailed),
        ((502, HTML), DeliveryFailed),
        ((500, b""), DeliveryFailed),
        ((500, {"error": "not an object"}), DeliveryFailed),
        ((408, {}), DeliveryFailed),
        ((302, {}), DeliveryFailed),
        ((200, b"not JSON"), DeliveryFailed),
        ((200, {}), DeliveryFailed),
        (fcm_error(401, "UNAUTHENTICATED", "THIRD_PARTY_AUTH_ERROR"), ChannelAtFault),
        (fcm_error(401, "UNAUTHENTICATED", "APNS_AUTH_ERROR"), ChannelAtFault),
        (fcm_error(403, "PERMISSION_DENIED"), ChannelAtFault),
        (fcm_error(404, "NOT_FOUND"), ChannelAtFault),
    ],
    ids=lambda value: str(value)[:60],
)
async def test_error_is_told_for_what_it_is_after_one_attempt(
    scene: Scene,
    answer: tuple[int, object],
    kind: type[Exception],
) -> None:
    scene.google.answers["secret-token"] = Answer(*answer)
    with pytest.raises((DeliveryFailed, DeliveryRefused)) as failed:
        await scene.channel.send(to("secret-token"), 30)
    assert type(failed.value) is kind
    assert scene.google.count == 1
    assert "FCM" in str(failed.value)
    assert len(str(failed.value)) < 500
    assert not any(token in str(failed.value) for token in scene.google.tokens)
    assert gauge(scene.metrics) == (1 if kind is ChannelAtFault else 0)


async def test_reason_says_what_fcm_said(scene: Scene) -> None:
    scene.google.answers["phone"] = Answer(*fcm_error(500, "INTERNAL", message="Internal error."))
    with pytest.raises(DeliveryFailed, match=r"^FCM 500: INTERNAL Internal error\.$"):
        await scene.channel.send(to(), 30)


@pytest.mark.parametrize("status", [429, 503, 500])
async def test_when_fcm_says_when_to_come_back_that_is_passed_on(scene: Scene, status: int) -> None:
    _, document = fcm_error(status, "UNAVAILABLE")
    headers = {
        "7": 7.0,
        " 0 ": 0.0,
        "99999999999999999999": 86_400.0,
        "soon": None,
        "": None,
        "-1": None,
    }
    for header, expected_s in headers.items():
        scene.google.answers["phone"] = Answer(status, document, {"retry-after": header})
        with pytest.raises(DeliveryFailed) as failed:
            await scene.channel.send(to(), 30)
        assert failed.value.retry_after_s == expected_s
    assert scene.google.count == len(headers)


async def test_when_to_come_back_may_be_a_date(scene: Scene) -> None:
    for ahead_s, least_s, most_s in ((120, 115.0, 120.0), (-120, 0.0, 0.0)):
        date = format_datetime(utc_now() + timedelta(seconds=ahead_s), usegmt=True)
        scene.google.answers["phone"] = Answer(
            *fcm_error(503, "UNAVAILABLE"), headers={"retry-after": date}
        )
        with pytest.raises(DeliveryFailed) as failed:
            await scene.channel.send(to(), 30)
        assert failed.value.retry_after_s is not None
        assert least_s <= failed.value.retry_after_s <= most_s


@pytest.mark.parametrize(
    ("answer", "advice"),
    [
        (fcm_error(403, "PERMISSION_DENIED"), "Firebase Cloud Messaging API Admin"),
        (fcm_error(404, "NOT_FOUND"), "check project_id"),
        (fcm_error(401, "UNAUTHENTICATED", "THIRD_PARTY_AUTH_ERROR"), "Firebase console"),
    ],
    ids=["403", "404", "third party"],
)
async def test_fault_of_an_app_is_said_once_with_what_to_check_until_it_is_mended(
    scene: Scene,
    answer: tuple[int, object],
    advice: str,
) -> None:
    scene.google.answers["phone"] = Answer(*answer)
    with capture_logs() as logs:
        for _ in range(3):
            with pytest.raises(ChannelAtFault, match=advice):
                await scene.channel.send(to("phone"), 30)
        assert gauge(scene.metrics) == 1
        assert [entry["log_level"] for entry in logs] == ["error"]
        assert advice in logs[0]["reason"]
        scene.google.answers.clear()
        await scene.channel.send(to("phone"), 30)
        assert gauge(scene.metrics) == 0
        assert [entry["log_level"] for entry in logs] == ["error", "info"]
    assert "access-" not in str(logs)


async def test_dead_token_shows_that_the_app_is_well(
    scene: Scene,
) -> None:
    scene.google.answers["phone"] = Answer(*fcm_error(403, "PERMISSION_DENIED"))
    scene.google.answers["gone"] = Answer(*fcm_error(404, "NOT_FOUND", "UNREGISTERED"))
    with pytest.raises(ChannelAtFault):
        await scene.channel.send(to("phone"), 30)
    with pytest.raises(TokenDead) as dead:
        await scene.channel.send(to("gone"), 30)
    assert dead.value.since is None
    assert gauge(scene.metrics) == 0
