"""What no operator can have a layer say: what only a device's own file says, what that file does not
open, and what it locks."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from bellwire.signaling.topics import group_layer, layer_topic
from tests.broker.running import raw_client
from tests.cli.fleet_stage import FleetStage, fleet_stage, runs
from tests.config.fleet_parts import document

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECRETS = [
    ('behaviour.doors={"front": {"code": "4711"}}', "behaviour.doors.front.code"),
    ("broker.password=4711", "broker"),
    ("identity=4711", "identity"),
    ('locked=["4711"]', "locked"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[FleetStage]:
    async with fleet_stage(tmp_path_factory.mktemp("refusals")) as here:
        yield here


@pytest.mark.parametrize(("pair", "path"), SECRETS)
@pytest.mark.parametrize("force", [(), ("--force",)])
async def test_what_only_a_file_says_reaches_no_broker_even_where_no_device_is_known(
    stage: FleetStage, pair: str, path: str, force: tuple[str, ...]
) -> None:
    ended = await stage.run("set", pair, "--group", "cellar", *force)
    ended.must_say_in_one_line(path, "only the device's own file may say this")
    assert "4711" not in ended.out + ended.err
    (await stage.run("log", "--group", "cellar")).must_say_in_one_line("has no revisions")


async def test_what_a_devices_file_locks_it_skips_and_says_so_and_nobodys_write_is_refused(
    stage: FleetStage,
) -> None:
    agent = await stage.add(
        "vault",
        audio={"input_device": "mic"},
        locked=["audio.input_device", "behaviour.auto_answer"],
        remote=["behaviour.auto_answer"],
    )
    for pair in ("audio.input_device=spy", 'behaviour.auto_answer.callers=["client:eve"]'):
        ended = await stage.run("set", pair, "--device", "vault")
        assert ended.code == 0, ended
        assert "skipped: device" in ended.out
        assert "the device's own file locks" in ended.out
        assert "(on vault)" in ended.out
    await stage.run("set", "call_timeout_s=7", "--device", "vault")
    await stage.until(runs("vault", "device", 3))
    now = agent.live.now
    assert (now.audio.input_device, now.call_timeout_s) == ("mic", 7)
    row = (await stage.statuses())["vault"]
    assert (row["state"], row["errors"]) == ("in step", [])
    assert {one["path"] for one in row["skipped"]} == {
        *("audio.input_device", "behaviour.auto_answer.callers")
    }


WIRING = [
    ("panel.door.active_low=true", "panel.door.active_low"),
    ("panel.door.open_s=60", "panel.door.open_s"),
    ('panel.ringer={"pin": 25}', "panel.ringer.pin"),
    ('panel.call_buttons.new={"pin": 5, "to": "eve"}', "panel.call_buttons.new.pin"),
    ("panel=null", "panel"),
    ("behaviour.lockout_s=1", "behaviour.lockout_s"),
    ("behaviour.doors.front=null", "behaviour.doors.front"),
    ('remote=["behaviour.auto_answer"]', "remote"),
]


@pytest.mark.parametrize(("pair", "path"), WIRING)
@pytest.mark.parametrize("force", [(), ("--force",)])
async def test_wiring_times_and_limits_are_refused_by_path_with_force_too(
    stage: FleetStage, pair: str, path: str, force: tuple[str, ...]
) -> None:
    ended = await stage.run("set", pair, "--group", "cellar", *force)
    ended.must_say_in_one_line(path, "only the device's own file may say this")
    (await stage.run("log", "--group", "cellar")).must_say_in_one_line("has no revisions")


async def test_ring_tone_that_there_is_not_is_refused_with_those_that_are(
    stage: FleetStage,
) -> None:
    """A layer may name a ring tone, so it is not told that only the device's own file may."""
    path = stage.write("groups/attic.toml", '[audio]\nring_tone = "dingdong"\n')
    for command in (("set", "audio.ring_tone=dingdong", "--group", "attic"), ("apply", path)):
        ended = await stage.run(*command, "--force")
        ended.must_say_in_one_line("audio.ring_tone", "no ring tone 'dingdong'", "classic, digital")
        assert "own file" not in ended.err


async def test_file_that_says_wiring_is_not_applied_whatever_else_it_says(
    stage: FleetStage,
) -> None:
    path = stage.write("groups/attic.toml", "call_timeout_s = 9\n[panel.door]\npin = 4\n")
    for more in ((), ("--force",), ("--dry-run",)):
        (await stage.run("apply", path, *more)).must_say_in_one_line("panel.door.pin")
    (await stage.run("log", "--group", "attic")).must_say_in_one_line("has no revisions")


async def test_layer_that_says_wiring_already_is_refused_by_apply_and_mended_by_unset(
    stage: FleetStage,
) -> None:
    old = document({"panel": {"door": {"pin": 4}}, "log_level": "error"}, 5)
    async with raw_client(stage.broker.address) as client:
        await client.publish(layer_topic(group_layer("old")), old, qos=1, retain=True)
    path = stage.write("groups/old.toml", 'log_level = "debug"\n[panel.door]\npin = 4\n')
    refused = await stage.run("apply", path, "--force")
    refused.must_say_in_one_line("panel.door.pin", "take it out of the layer's file")
    assert (await stage.run("set", "call_timeout_s=9", "--group", "old")).code == 0
    assert (await stage.run("unset", "panel.door.pin", "--group", "old")).code == 0
    back = await stage.run("rollback", "--group", "old")
    back.must_say_in_one_line("panel.door.pin", "only the device's own file may say this")
    (now, *_) = await stage.json("log", "--group", "old")
    assert (now["revision"], now["settings"]["call_timeout_s"]) == (7, 9)


async def test_layer_that_another_client_gave_a_secret_says_what_to_unset_first(
    stage: FleetStage,
) -> None:
    """Nothing could be written to it, and nothing said how to go on."""
    old = document({"remote": ["behaviour.auto_answer"], "panel": {"door": {"pin": 4}}}, 5)
    async with raw_client(stage.broker.address) as client:
        await client.publish(layer_topic(group_layer("eve")), old, qos=1, retain=True)
    for change in (("unset", "panel.door"), ("set", "call_timeout_s=9")):
        refused = await stage.run(*change, "--group", "eve")
        refused.must_say_in_one_line("remote: ", "first `bellwire fleet unset remote`")
    for change in (("unset", "remote"), ("unset", "panel.door"), ("set", "call_timeout_s=9")):
        assert (await stage.run(*change, "--group", "eve")).code == 0


FRONT = {"doors": {"front": {"callers": ["ann"]}}}
CALLERS = 'behaviour.doors.front.callers=["bob"]'


async def test_right_is_written_where_the_devices_files_open_it_and_not_where_one_does_not(
    stage: FleetStage,
) -> None:
    opens = ["behaviour.doors.front.callers"]
    agent = await stage.add("open-1", groups=["open"], behaviour=FRONT, remote=opens)
    await stage.add("no-door", groups=["open"])
    assert (await stage.run("set", CALLERS, "--group", "open")).code == 0
    await stage.until(runs("open-1", "group/open", 1))
    assert agent.live.now.behaviour.doors["front"].callers == ("bob",)
    assert agent.fleet.verdict.skipped == ()

    shut = await stage.add("shut-1", groups=["open"], behaviour=FRONT)
    await stage.run("set", "call_timeout_s=9", "--group", "open")
    await stage.until(runs("shut-1", "group/open", 2))
    assert shut.live.now.behaviour.doors["front"].callers == ("ann",)
    eve = CALLERS.replace("bob", "eve")
    refused = await stage.run("set", eve, "--group", "open")
    refused.must_say_in_one_line(
        "device shut-1 would skip behaviour.doors.front.callers",
        'remote = ["behaviour.doors.front.callers"]',
        "--force",
    )
    path = stage.write("groups/open.toml", '[behaviour.doors.front]\ncallers = ["eve"]\n')
    dry = await stage.run("apply", path, "--dry-run")
    assert "Without --dry-run: device shut-1 would skip behaviour.doors.front.callers" in dry.out
    assert (await stage.run("set", eve, "--group", "open", "--force")).code == 0
    await stage.until(runs("open-1", "group/open", 3))
    assert agent.live.now.behaviour.doors["front"].callers == ("eve",)
    row = (await stage.statuses())["shut-1"]
    assert (row["state"], row["remote"]) == ("in step", [])
    assert [one["path"] for one in row["skipped"]] == ["behaviour.doors.front.callers"]


async def test_right_that_no_known_device_heeds_is_not_written(stage: FleetStage) -> None:
    for pair in (
        'behaviour.doors.nowhere.callers=["bob"]',
        'behaviour.auto_answer.callers=["bob"]',
    ):
        ended = await stage.run("set", pair, "--group", "nobody")
        ended.must_say_in_one_line("no known device that layer group/nobody is for", "remote = [")
    (await stage.run("log", "--group", "nobody")).must_say_in_one_line("has no revisions")


@pytest.mark.parametrize("more", [("--percent", "50"), ("--pause-at-errors", "2")])
async def test_rights_take_no_rollout(stage: FleetStage, more: tuple[str, ...]) -> None:
    path = stage.write("groups/few.toml", '[behaviour.auto_answer]\ncallers = ["bob"]\n')
    ended = await stage.run("apply", path, "--force", *more)
    ended.must_say_in_one_line("behaviour.auto_answer.callers", "takes no rollout")
    (await stage.run("log", "--group", "few")).must_say_in_one_line("has no revisions")
