"""A device on a real mosquitto, over a wire that breaks and a broker that dies: it ends with the sum of
the layers that are there in the end."""

import asyncio
import random
import signal
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import SecretStr

from bellwire.agent.fleet.follower import FleetFollower
from bellwire.agent.fleet.live_settings import LiveSettings
from bellwire.broker.accounts.credentials import DynamicSecurity
from bellwire.broker.accounts.dynamic_security import device_acls, device_role_name
from bellwire.broker.session.session import NotConnected, Session
from bellwire.config.agent.settings import AgentSettings, BrokerSettings
from bellwire.config.fleet.last_good import LastGood
from bellwire.config.fleet.layer import Layer, Reported
from bellwire.config.fleet.merge import judge, local_file
from bellwire.signaling.identifiers import DeviceId, mqtt_client_id
from bellwire.signaling.topics import CONFIG_DEFAULT, CONFIG_GROUPS, config_topic, reported_topic
from tests.broker.running import RunningBroker, Wire, held, soon
from tests.config.fleet_parts import layer
from tests.system.scene import Record

GATE = DeviceId("gate")
TOPICS = {
    "default": CONFIG_DEFAULT,
    "group/a": CONFIG_GROUPS.replace("+", "a"),
    "device": config_topic(GATE),
}
CHANGES = ({"call_timeout_s": 5}, {"log_level": "error"}, {"audio": {"ring_volume": 0.1}}, {})


@pytest.mark.parametrize("seed", range(3))
async def test_gaps_and_a_broker_that_dies_end_in_the_sum_of_the_final_layers(
    tmp_path: Path, seed: int
) -> None:
    async with RunningBroker(tmp_path) as broker:
        await suffer(broker, tmp_path, random.Random(seed))  # noqa: S311


@pytest.mark.parametrize("rights", ["of this version", "of the version before"])
async def test_device_hears_the_layers_of_its_own_groups_alone_where_its_rights_let_it(
    tmp_path: Path, rights: str
) -> None:
    async with RunningBroker(tmp_path) as broker:
        operator = Session(broker.address, "operator", sleep=soon)
        provisioner = DynamicSecurity(operator)
        async with held(operator):
            password = await provisioner.grant(GATE)
            if rights == "of the version before":
                acls = [acl for acl in device_acls(GATE) if acl["acltype"] != "subscribePattern"]
                role = {"rolename": device_role_name(GATE), "acls": acls}
                await provisioner._run({"command": "modifyRole", **role})
            address = replace(broker.address, username=GATE, password=password)
            session = Session(address, mqtt_client_id(GATE, password), sleep=soon)
            heard: asyncio.Queue[str] = asyncio.Queue()
            session.subscribe(
                CONFIG_GROUPS,
                lambda message: heard.put_nowait(message.topic),
                narrowed_to=lambda: [CONFIG_GROUPS.replace("+", "mine")],
            )
            async with held(session):
                for group in ("others", "mine"):
                    await publish(operator, CONFIG_GROUPS.replace("+", group), b"{}")
                topics = [await heard.get()]
                if rights == "of the version before":
                    topics.append(await heard.get())
                groups = [topic.rpartition("/")[2] for topic in topics]
    assert groups == (["others", "mine"] if rights == "of the version before" else ["mine"])


async def suffer(broker: RunningBroker, tmp_path: Path, chance: random.Random) -> None:
    operator = Session(broker.address, "operator", sleep=soon)
    reports = Record()
    operator.subscribe(
        reported_topic(GATE),
        lambda m: m.payload and reports.note(Reported.model_validate_json(m.payload)),
    )
    provisioner = DynamicSecurity(operator)
    final: dict[str, Layer] = {}
    async with held(operator), Wire(broker.address) as wire:
        password = await provisioner.grant(GATE)
        settings = AgentSettings(
            device_id=GATE,
            identity="gate",
            groups=("a",),
            broker=BrokerSettings(url="mqtt://x", username=GATE, password=SecretStr(password)),
        )
        address = replace(wire.address, username=GATE, password=password)
        session = Session(address, mqtt_client_id(GATE, password), session_expiry_s=60, sleep=soon)
        fleet = FleetFollower(
            settings,
            session,
            LiveSettings(settings),
            last_good=LastGood(tmp_path / "state", GATE),
            now=lambda: datetime.now(UTC),
            sleep=soon,
        )
        async with held(session), asyncio.TaskGroup() as tasks:
            following = tasks.create_task(fleet.run())
            is_cut = False
            for revision in range(1, 16):
                match chance.randrange(5):
                    case 0 if not is_cut:
                        wire.cut()
                        is_cut = True
                    case 1 if is_cut:
                        await wire.mend()
                        is_cut = False
                    case 2 if revision == 9 or chance.random() < 0.1:
                        await broker.restart(signal.SIGTERM)
                name = chance.choice(list(TOPICS))
                final[name] = layer(chance.choice(CHANGES), revision)
                await publish(operator, TOPICS[name], final[name].model_dump_json().encode())
                if chance.random() < 0.3:
                    await publish(operator, TOPICS[name], b"")
                    # As a relay puts back what the broker has lost.
                    await publish(operator, TOPICS[name], final[name].model_dump_json().encode())
            if is_cut:
                await wire.mend()
            expected = judge(local_file(settings), final)
            await reports.until(
                lambda r: (
                    r is reports.noted[-1]
                    and (r.hash, r.revisions) == (expected.hash, expected.revisions)
                ),
                f"{expected.revisions}",
            )
            following.cancel()
    assert LastGood(tmp_path / "state", GATE).layers == final


async def publish(operator: Session, topic: str, payload: bytes) -> None:
    while True:
        await operator.wait_connected()
        try:
            await operator.publish(topic, payload, retain=True)
            return
        except NotConnected:
            await asyncio.sleep(0.01)
