"""What no operator can have a layer say: what only a device's own file says, and what that file locks."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.bellwire.fleet_stage import FleetStage, fleet_stage

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


async def test_what_a_devices_file_locks_is_refused_and_names_the_device_and_the_lock(
    stage: FleetStage,
) -> None:
    agent = await stage.add(
        "vault", panel={"door": {"pin": 4}}, locked=["panel.door", "behaviour.auto_answer"]
    )
    for pair in ('panel.door={"pin": 9}', 'behaviour.auto_answer.callers=["client:eve"]'):
        ended = await stage.run("set", pair, "--device", "vault")
        ended.must_say_in_one_line("device vault would refuse it", "the device's own file locks")
    assert agent.live.now.panel.door is not None and agent.live.now.panel.door.pin == 4
    assert (await stage.statuses())["vault"]["revisions"] == {}
