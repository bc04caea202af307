"""The account an app sends as: its files are checked at the start, and its access token is fetched off
the event loop, ahead of its expiry, and replaced when Google no longer takes it."""

import asyncio
import json
import traceback
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from bellwire.config.relay import FcmApp
from bellwire.push.channels.channel import ChannelAtFault, DeliveryFailed
from bellwire.push.channels.fcm.channel import FcmChannel
from bellwire.push.metrics import Metrics
from bellwire.signaling.errors import InvalidInput
from tests.conftest import PATIENCE_S
from tests.push.clock import Clock
from tests.push.fcm_parts import (
    APP,
    app_at,
    gauge,
    google_in,
    payload,
    running_channel,
    to,
    utc_now,
)
from tests.push.fcm_server import Answer, FcmServer, fcm_error

AHEAD_S = 225


@pytest.fixture
async def google(tmp_path: Path) -> AsyncIterator[FcmServer]:
    async with google_in(tmp_path) as serving:
        yield serving


@pytest.fixture
async def another(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[FcmServer]:
    async with google_in(tmp_path_factory.mktemp("another")) as serving:
        yield serving


async def test_slow_token_server_blocks_neither_the_loop_nor_another_app(
    google: FcmServer, another: FcmServer
) -> None:
    google.token_gate.clear()
    async with running_channel(apps={APP: app_at(google), "b": app_at(another)}) as channel:
        waiting = asyncio.create_task(channel.send(to(), 30))
        await google.next_token_request()
        # The server of the second app runs on this loop: were it blocked, nothing would come back.
        for _ in range(3):
            await channel.send(to(app="b"), 30)
        assert (another.count, google.count, waiting.done()) == (3, 0, False)
        google.token_gate.set()
        assert await waiting
    assert google.count == 1


async def test_pushes_that_wait_for_the_first_token_share_it(google: FcmServer) -> None:
    google.token_gate.clear()
    async with running_channel(google) as channel, asyncio.TaskGroup() as tasks:
        for _ in range(20):
            tasks.create_task(channel.send(to(), 30))
        await google.next_token_request()
        google.token_gate.set()
    assert (google.count, google.tokens) == (20, ["access-1"])


async def test_token_that_comes_after_the_deadline_sends_nothing(google: FcmServer) -> None:
    google.token_gate.clear()
    async with running_channel(google) as channel:
        with pytest.raises(DeliveryFailed, match=r"within 0\.2 s"):
            await channel.send(to("late"), 0.2)
        cancelled = asyncio.create_task(channel.send(to("cancelled"), 30))
        await google.next_token_request()
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        google.token_gate.set()
        await channel.send(to("in time"), 30)
    assert (await google.next_push()).message["token"] == "in time"
    assert google.count == 1


async def test_token_is_renewed_ahead_of_its_expiry_while_pushes_go_on(
    google: FcmServer, clock: Clock
) -> None:
    async with running_channel(google, now=clock.now, sleep=clock.sleep) as channel:
        await channel.send(to(), 30)
        await clock.until_asleep()
        clock.advance(3600 - AHEAD_S - 1)
        await channel.send(to(), 30)
        assert google.token_requests.qsize() == 1
        google.token_gate.clear()
        clock.advance(1)
        await google.next_token_request()
        await google.next_token_request()
        await channel.send(to(), 30)  # while the next is on its way
        google.token_gate.set()
        await clock.until_asleep()
        await channel.send(to(), 30)
    shown = [(await google.next_push()).header("authorization") for _ in range(4)]
    assert shown == ["Bearer access-1"] * 3 + ["Bearer access-2"]


async def test_token_that_has_expired_meanwhile_is_not_shown(
    google: FcmServer, clock: Clock
) -> None:
    async with running_channel(google, now=clock.now, sleep=clock.sleep) as channel:
        await channel.send(to(), 30)
        await clock.until_asleep()
        clock.advance(7200)  # the machine slept
        await channel.send(to(), 30)
    assert google.revoked == set()
    shown = [(await google.next_push()).header("authorization") for _ in range(2)]
    assert shown == ["Bearer access-1", "Bearer access-2"]


async def test_token_that_fcm_has_taken_and_no_longer_takes_is_replaced(google: FcmServer) -> None:
    metrics = Metrics()
    async with running_channel(google, metrics=metrics) as channel:
        await channel.send(to(), 30)
        google.revoked = {"access-1"}
        with pytest.raises(DeliveryFailed, match="another access token is fetched") as failed:
            await channel.send(to(), 30)
        assert not isinstance(failed.value, ChannelAtFault)
        assert await channel.send(to(), 30)
        assert (google.tokens, gauge(metrics)) == (["access-1", "access-2"], 0)


async def test_token_that_fcm_never_takes_is_a_fault_of_the_app(google: FcmServer) -> None:
    metrics = Metrics()
    google.answers["phone"] = Answer(*fcm_error(401, "UNAUTHENTICATED"))
    async with running_channel(google, metrics=metrics) as channel:
        for _ in range(2):
            with pytest.raises(ChannelAtFault, match="check this machine's clock"):
                await channel.send(to(), 30)
        assert gauge(metrics) == 1
        google.answers.clear()
        await channel.send(to(), 30)
        assert (google.count, gauge(metrics)) == (3, 0)


async def test_wrong_clock_is_said_once_and_pushes_flow_again_once_it_is_set(
    google: FcmServer, clock: Clock
) -> None:
    metrics = Metrics()
    google.clock_ahead_s = 7200
    with capture_logs() as logs:
        async with running_channel(
            google, metrics=metrics, now=clock.now, sleep=clock.sleep
        ) as channel:
            for _ in range(2):
                for _ in range(3):
                    with pytest.raises(
                        ChannelAtFault, match=r"clock.*credentials_file of the FCM app"
                    ):
                        await channel.send(to(), 30)
                await clock.until_asleep()
                clock.advance(30)
                await google.next_token_request()
            await clock.until_asleep()
            assert (gauge(metrics), google.count) == (1, 0)
            google.clock_ahead_s = 0
            clock.advance(30)
            await google.next_token_request()
            await clock.until_asleep()
            await channel.send(to(), 30)
            assert gauge(metrics) == 0
    assert [entry["log_level"] for entry in logs] == ["error", "info"]
    assert "invalid_grant" in logs[0]["reason"]
    assert "PRIVATE KEY" not in str(logs)


@pytest.mark.parametrize(
    "answer",
    [
        Answer(400, {"error": "invalid_client"}),
        Answer(401, {"error": "unauthorized_client", "error_description": "no"}),
        Answer(403, b"<html>forbidden</html>"),
    ],
    ids=["client", "unauthorized", "page"],
)
async def test_token_endpoint_that_refuses_is_a_fault(google: FcmServer, answer: Answer) -> None:
    metrics = Metrics()
    google.token_answer = answer
    async with running_channel(google, metrics=metrics) as channel:
        with pytest.raises(ChannelAtFault, match="Google refuses"):
            await channel.send(to(), 30)
        assert gauge(metrics) == 1


@pytest.mark.parametrize(
    "answer",
    [
        Answer(200, b"not JSON"),
        Answer(200, []),
        Answer(200, {"access_token": "t", "expires_in": "soon"}),
        Answer(200, {"access_token": "t", "expires_in": 0}),
    ],
    ids=["no JSON", "no object", "no number", "expired"],
)
async def test_answer_of_the_token_endpoint_that_makes_no_sense_is_tried_again(
    google: FcmServer, clock: Clock, answer: Answer
) -> None:
    metrics = Metrics()
    google.token_answer = answer
    async with running_channel(
        google, metrics=metrics, now=clock.now, sleep=clock.sleep
    ) as channel:
        with pytest.raises(DeliveryFailed, match="access token") as failed:
            await channel.send(to(), 30)
        assert type(failed.value) is DeliveryFailed
        assert gauge(metrics) == 0
        await clock.until_asleep()
        google.token_answer = None
        await google.next_token_request()
        clock.advance(1)
        await google.next_token_request()
        await clock.until_asleep()
        await channel.send(to(), 30)


async def test_token_endpoint_that_nobody_serves_is_tried_again(google: FcmServer) -> None:
    file = google.account_file(token_uri="https://127.0.0.1:1/token")
    async with running_channel(apps={APP: app_at(google, credentials_file=file)}) as channel:
        with pytest.raises(DeliveryFailed) as failed:
            await channel.send(to(), 30)
    assert type(failed.value) is DeliveryFailed


async def test_workload_identity_is_used_where_no_file_is_named(
    google: FcmServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(google.account_file()))
    async with running_channel(apps={APP: app_at(google, credentials_file=None)}) as channel:
        assert await channel.send(to(), 30)


async def test_machine_without_an_identity_is_told_to_have_one(
    google: FcmServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    metrics = Metrics()
    apps = {APP: app_at(google, credentials_file=None)}
    async with running_channel(apps=apps, metrics=metrics) as channel:
        with pytest.raises(ChannelAtFault, match="give credentials_file of the FCM app"):
            await channel.send(to(), 30)
    assert gauge(metrics) == 1


def construct(app: FcmApp) -> FcmChannel:
    return FcmChannel({APP: app}, payload(), Metrics(), now=utc_now)


SECRET = "TOP-SECRET"
ACCOUNT = {"type": "service_account", "private_key": SECRET, "client_email": "a", "token_uri": "b"}


@pytest.mark.parametrize(
    "content",
    [
        SECRET,
        "",
        json.dumps([SECRET]),
        json.dumps({"type": "authorized_user", "private_key": SECRET}),
        json.dumps(ACCOUNT),
        json.dumps({**ACCOUNT, "private_key": 5}),
        "\ufeff\x00",
    ],
)
def test_credentials_file_that_is_none_is_refused_by_name_and_never_quoted(
    tmp_path: Path, content: str
) -> None:
    file = tmp_path / "account.json"
    file.write_text(content)
    with pytest.raises(InvalidInput, match=rf"credentials_file of the FCM app {APP}, {file}") as no:
        construct(FcmApp(credentials_file=file))
    assert SECRET not in "".join(traceback.format_exception(no.value))


def test_credentials_file_that_cannot_be_read_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"nothing\.json, cannot be read: No such file"):
        construct(FcmApp(credentials_file=tmp_path / "nothing.json"))
    with pytest.raises(InvalidInput, match="cannot be read: Is a directory"):
        construct(FcmApp(credentials_file=tmp_path))


async def test_account_without_a_project_needs_one_in_the_settings(
    google: FcmServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = google.account_file(project_id=None)
    with pytest.raises(InvalidInput, match="give project_id"):
        construct(app_at(google, credentials_file=file))
    construct(app_at(google, credentials_file=file, project_id="x"))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
    async with running_channel(apps={APP: app_at(google, credentials_file=None)}) as channel:
        with pytest.raises(ChannelAtFault, match="give project_id"):
            await channel.send(to(), PATIENCE_S)


async def test_ca_file_and_server_that_are_none_are_refused_by_name(
    google: FcmServer, tmp_path: Path
) -> None:
    for server in ("fcm.googleapis.com", "ftp://a", "https://", "https://a:b"):
        with pytest.raises(InvalidInput, match=f"server of the FCM app {APP}"):
            construct(app_at(google, server=server))
    (tmp_path / "garbage.pem").write_text("no certificate")
    for name in ("garbage.pem", "nothing.pem"):
        with pytest.raises(InvalidInput, match=f"ca_file of the FCM app {APP}, .*{name}"):
            construct(app_at(google, ca_file=tmp_path / name))
