"""No ghosts, in real time: mosquitto is killed, and with it agents die. Within three keep-alives neither the
relay nor an operator says that one of them is online; those that are alive are."""

import asyncio
import json
import random
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from bellwire.broker.accounts.credentials import DynamicSecurity
from bellwire.broker.session.address import BrokerAddress
from bellwire.broker.session.session import Session
from bellwire.cli.relay_client import RelayAccess
from bellwire.config.agent.settings import agent_file
from bellwire.config.fleet.operator import OperatorSettings, write_operator_file
from bellwire.config.private_file import write_private
from bellwire.signaling.wire.station import KEEP_ALIVE_S
from tests.broker.running import held, soon
from tests.cli.command import Ended
from tests.cli.fleet_stage import invoke
from tests.conftest import PATIENCE_S, register_station
from tests.forking import ForkedRelay
from tests.system.mosquitto import running_mosquitto
from tests.system.test_agent_process import agent_process

pytestmark = [pytest.mark.full, pytest.mark.timeout(900)]

ROUNDS = 4
DEVICES = ("gate", "yard", "hall")
METRICS_KNOWN_FOR_S = 5.0
SCRAPED_S = 1.0


async def online_by_the_relay(http: httpx.AsyncClient) -> set[str]:
    text = (await http.get("/metrics/devices")).text
    return {
        sample.labels["device_id"]
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "bellwire_device_online" and sample.value == 1
    }


async def online_by_an_operator(operator: Path) -> set[str]:
    words = ["fleet", "status", "--state", "online", "--json", "--operator", str(operator)]
    ended: Ended = await asyncio.to_thread(invoke, words)
    rows: list[dict[str, Any]] = json.loads(ended.out)["devices"]
    return {row["device_id"] for row in rows}


async def operator_of(file: Path, broker: BrokerAddress) -> Path:
    session = Session(broker, "accounts", sleep=soon)
    accounts = DynamicSecurity(session)
    async with held(session):
        password = await accounts.grant_operator("operator:ann")
    settings = OperatorSettings(
        url=broker.url, username="operator:ann", password=SecretStr(password)
    )
    write_operator_file(file, settings)
    return file


async def test_no_ghost_is_shown_three_keep_alives_after_broker_and_agents_were_killed(
    tmp_path: Path,
) -> None:
    chance = random.Random("ghosts")  # noqa: S311 - repeatable, no secret
    async with AsyncExitStack() as opened:
        broker = await opened.enter_async_context(running_mosquitto(tmp_path / "broker"))
        relay = await opened.enter_async_context(
            ForkedRelay(
                tmp_path / "relay", arguments=broker.arguments, environment=broker.environment
            )
        )
        access: RelayAccess = relay.access
        http = await opened.enter_async_context(
            httpx.AsyncClient(
                base_url=access.url,
                headers={"Authorization": f"Bearer {access.api_key}"},
                timeout=PATIENCE_S,
            )
        )
        operator = await operator_of(tmp_path / "ann.toml", broker.address)
        files = {}
        for name in DEVICES:
            files[name] = tmp_path / f"{name}.toml"
            write_private(files[name], agent_file(await register_station(http, name)))
        for _ in range(ROUNDS):
            async with agent_process(files["hall"]):
                async with AsyncExitStack() as mortals:
                    for name in ("gate", "yard"):
                        await mortals.enter_async_context(agent_process(files[name]))
                    async with asyncio.timeout(PATIENCE_S):
                        while await online_by_the_relay(http) != set(DEVICES):  # noqa: ASYNC110 - a relay tells nobody
                            await asyncio.sleep(SCRAPED_S)
                    await asyncio.sleep(chance.uniform(0, 40))
                    await broker.kill()
                # Both agents are dead by now, and nobody could say so.
                died = time.monotonic()
                await broker.start()
                async with asyncio.timeout(3 * KEEP_ALIVE_S + METRICS_KNOWN_FOR_S):
                    while await online_by_the_relay(http) != {"hall"}:  # noqa: ASYNC110 - a relay tells nobody
                        await asyncio.sleep(SCRAPED_S)
                await asyncio.sleep(max(0.0, 3 * KEEP_ALIVE_S - (time.monotonic() - died)))
                assert await online_by_an_operator(operator) == {"hall"}
                assert await online_by_the_relay(http) == {"hall"}
