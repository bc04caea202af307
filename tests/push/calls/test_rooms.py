"""Rooms for calls of more than five: whom the relay lets in, on a real Janus, and when rooms end."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from pydantic import ValidationError

from bellwire.agent.media.engine.interface import IceCandidate, PeerConnection, PeerListeners
from bellwire.agent.media.engine.wrtc_engine import WrtcEngine
from bellwire.agent.media.negotiation import with_candidates
from bellwire.config.media_servers import read_janus_secret
from bellwire.config.relay import RelaySettings
from bellwire.signaling.errors import InvalidInput
from tests.conftest import PATIENCE_S
from tests.janus import SECRET, RunningJanus, janus, needs_janus
from tests.push.support import Running, assert_problem, fresh, listening

pytestmark = [needs_janus]
in_module = pytest.mark.asyncio(loop_scope="module")

OFFER = "v=0\r\n"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bridge(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningJanus]:
    async with janus(tmp_path_factory.mktemp("janus")) as running:
        yield running


@pytest.fixture(scope="module")
def secret_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("shared") / "secret"
    file.touch(mode=0o600)
    file.write_text(SECRET)
    return file


@pytest.fixture(scope="module")
def settings(bridge: RunningJanus, secret_file: Path) -> dict[str, str]:
    return {"BELLWIRE_JANUS_URL": bridge.url, "BELLWIRE_JANUS_SECRET_FILE": str(secret_file)}


@pytest_asyncio.fixture(loop_scope="module")
async def engine() -> AsyncIterator[WrtcEngine]:
    engine = WrtcEngine(allow_loopback=True)
    yield engine
    await engine.close()


async def offered(engine: WrtcEngine) -> tuple[PeerConnection, str]:
    """A connection, and its offer with all its candidates."""
    found: list[IceCandidate] = []
    gathered = asyncio.Event()

    def on_candidate(candidate: IceCandidate) -> None:
        found.append(candidate)
        if not candidate.candidate:
            gathered.set()

    connection = engine.connect((), PeerListeners(on_candidate, lambda _: None, lambda _: None))
    sdp = await connection.create_offer()
    async with asyncio.timeout(PATIENCE_S):
        await gathered.wait()
    return connection, with_candidates(sdp, found)[0]


async def open_call(running: Running, size: int) -> tuple[str, list[str]]:
    """A call of so many, all of whom are in it; its SID, and who they are."""
    users = [fresh("user") for _ in range(size)]
    for user in users:
        await running.register(user)
    sid = await running.called(*users[1:], **{"from": users[0]})
    for user in users[1:]:
        answer = await running.do(sid, "accept", identity=user, device_id=user)
        assert answer.is_success, answer.text
    return sid, users


@in_module
async def test_who_is_in_a_call_of_six_gets_an_answer_by_every_way_to_ask_and_one_room(
    running: Running, bridge: RunningJanus, engine: WrtcEngine
) -> None:
    sid, users = await open_call(running, 6)
    _, first = await offered(engine)
    answer = await running.do(sid, "room", identity=users[0], sdp=first)
    assert answer.status_code == 200, answer.text
    _, second = await offered(engine)
    async with listening(running, users[1]) as device:
        over_mqtt = await device.ask({"operation": "room", "call_sid": sid, "sdp": second})
    assert over_mqtt["status"] == 200, over_mqtt
    token = await running.token(users[2], users[2])
    _, third = await offered(engine)
    over_http = await running.http.post(f"/v1/calls/{sid}/room", json={"sdp": third}, headers=token)
    for given in (answer.json(), over_mqtt, over_http.json()):
        assert "opus" in given["sdp"]
        assert " typ host" in given["sdp"]
    await bridge.until_rooms_are(3)
    # Who comes again takes the place of what he brought before.
    _, again = await offered(engine)
    assert (await running.do(sid, "room", identity=users[0], sdp=again)).status_code == 200
    await bridge.until_rooms_are(3)
    (room,) = await bridge.rooms()
    assert sid not in room
    # Who leaves the call leaves its room, also where his connection would go on.
    await running.do(sid, "quit", identity=users[2])
    await bridge.until_rooms_are(2)
    # Also with fewer: the others are there.
    for user in users[3:]:
        await running.do(sid, "quit", identity=user)
    answer = await running.do(sid, "room", identity=users[0], sdp=(await offered(engine))[1])
    assert answer.status_code == 200, answer.text
    await running.do(sid, "end")
    await bridge.until_rooms_are()
    assert SECRET not in running.relay.log_path.read_text()


@in_module
async def test_nobody_else_is_let_in(running: Running) -> None:
    sid, users = await open_call(running, 5)
    small = await running.do(sid, "room", identity=users[0], sdp=OFFER)
    assert_problem(small, 409, "operation-refused")
    assert "talk directly" in small.json()["detail"]
    other = fresh("other")
    await running.register(other, users[1])
    for device in (other, None):
        shown = await running.token(users[1], device)
        path = f"/v1/calls/{sid}/room"
        elsewhere = await running.http.post(path, json={"sdp": OFFER}, headers=shown)
        problem = assert_problem(elsewhere, 409, "operation-refused")
        assert (problem["operation"], problem["reason"]) == ("room", "not-main-device")
    token = await running.token(users[3], users[3])
    own = await running.http.post(f"/v1/calls/{sid}/join", json={}, headers=token)
    assert own.status_code == 200, own.text
    instead = await running.do(sid, "room", identity=users[3], device_id=users[3], sdp=OFFER)
    assert "of its own" in assert_problem(instead, 403, "forbidden")["detail"]
    stranger = await running.do(sid, "room", identity=fresh("stranger"), sdp=OFFER)
    assert_problem(stranger, 403, "forbidden")
    ringing = await running.called(users[0], users[1], **{"from": users[2]})
    early = await running.do(ringing, "room", identity=users[0], sdp=OFFER)
    assert_problem(early, 409, "operation-refused")
    await running.do(sid, "end")
    late = await running.do(sid, "room", identity=users[0], sdp=OFFER)
    assert_problem(late, 409, "operation-refused")
    for bad in ({}, {"sdp": ""}, {"sdp": "x" * 3501}):
        assert (await running.do(sid, "room", identity=users[0], **bad)).status_code == 422


@in_module
async def test_an_offer_that_janus_does_not_understand_is_refused_and_harms_nobody(
    running: Running, bridge: RunningJanus, engine: WrtcEngine
) -> None:
    sid, users = await open_call(running, 6)
    bad = await running.do(sid, "room", identity=users[0], sdp="v=0 and nothing else")
    assert_problem(bad, 503, "unavailable")
    good = await running.do(sid, "room", identity=users[1], sdp=(await offered(engine))[1])
    assert good.status_code == 200, good.text
    await bridge.until_rooms_are(1)
    await running.do(sid, "end")


@in_module
async def test_a_relay_that_was_killed_finds_the_same_room_again(
    running: Running, bridge: RunningJanus, engine: WrtcEngine
) -> None:
    sid, users = await open_call(running, 6)
    before = await bridge.rooms()
    connection, first = await offered(engine)
    entered = await running.do(sid, "room", identity=users[0], sdp=first)
    await connection.accept_answer(entered.json()["sdp"])
    (room,) = (await bridge.rooms()).keys() - before.keys()
    await running.relay.kill()
    await running.relay.start()
    running.http.base_url = running.relay.access.url
    second = (await offered(engine))[1]
    assert (await running.do(sid, "room", identity=users[1], sdp=second)).status_code == 200
    # Who came before is still there: the sound goes on while the relay is away.
    rooms = await bridge.rooms()
    assert rooms[room] == 2
    assert rooms.keys() <= {room, *before}


@pytest.mark.parametrize(
    "given",
    [
        {"janus_url": "ws://127.0.0.1:8188"},
        {"janus_secret_file": "x"},
        {"janus_url": "http://127.0.0.1:8188", "janus_secret_file": "x"},
        {"janus_url": "ws://user:word@127.0.0.1", "janus_secret_file": "x"},
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="janus"):
        RelaySettings.model_validate(given)


def test_a_secret_that_everybody_may_read_is_refused(secret_file: Path, tmp_path: Path) -> None:
    assert read_janus_secret(secret_file) == SECRET
    open_to_all = tmp_path / "secret"
    open_to_all.write_text(SECRET)
    open_to_all.chmod(0o644)
    with pytest.raises(InvalidInput, match=r"janus_secret_file.*chmod 600") as refused:
        read_janus_secret(open_to_all)
    assert SECRET not in refused.value.detail
