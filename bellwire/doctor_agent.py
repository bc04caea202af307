"""The doctor's look at an agent: its file, its broker, its rights there, its pins."""

import asyncio
import stat
from pathlib import Path

import aiomqtt

from bellwire.diagnosis import Finding, bad, good, unknown
from broker.address import BrokerAddress, parse_broker_url
from broker.dynamic_security import doctor_client_id, doctor_username
from config.agent import AgentSettings, load_agent_settings
from signaling.errors import InvalidInput
from signaling.identifiers import DeviceId
from signaling.topics import call_topic, request_topic

_TIMEOUT_S = 5.0
_NEW_CREDENTIALS = (
    "give the device new ones: bellwire devices add ID --identity NAME --rotate --out FILE"
)


async def examine_agent(config: Path) -> list[Finding]:
    """The agent of a configuration file. It does not disturb an agent that runs."""
    try:
        settings = await asyncio.to_thread(load_agent_settings, config)
    except InvalidInput as error:
        return [
            bad(error.detail, "mend the file, or have it written anew by `bellwire devices add`")
        ]
    findings = [good(f"the file is valid: device {settings.device_id} of {settings.identity}")]
    mode = stat.S_IMODE((await asyncio.to_thread(config.stat)).st_mode)
    if mode & 0o007:
        findings.append(
            bad(f"everybody may read its password (mode {mode:o})", f"chmod 600 {config}")
        )
    findings += await _broker(settings)
    findings.append(await asyncio.to_thread(_pins, settings))
    return findings


async def _broker(settings: AgentSettings) -> list[Finding]:
    password = settings.broker.password.get_secret_value()
    try:
        address = parse_broker_url(
            settings.broker.url,
            username=settings.broker.username,
            password=password,
            ca_file=settings.broker.ca_file,
        )
        tls_context = address.tls_context()
    except InvalidInput as error:
        return [bad(error.detail, "mend [broker] in the file")]
    # A client id of its own: under the device's, it would take the running agent's session over. With an
    # account of its own, too, unless the device has its password from before there was one.
    device = DeviceId(settings.device_id)
    found: list[Finding] = []
    for username in (doctor_username(device), address.username):
        client = aiomqtt.Client(
            address.host,
            address.port,
            username=username,
            password=address.password,
            identifier=doctor_client_id(device),
            protocol=aiomqtt.ProtocolVersion.V5,
            tls_context=tls_context,
            timeout=_TIMEOUT_S,
        )
        try:
            async with client:
                return [
                    good(f"the broker {address.url} takes its credentials"),
                    *await _rights(client, settings),
                ]
        except aiomqtt.MqttCodeError as error:
            found = [_not_connected(address, error)]
        except aiomqtt.MqttError as error:
            return [_not_connected(address, error)]
    return found


def _not_connected(address: BrokerAddress, error: aiomqtt.MqttError) -> Finding:
    if isinstance(error, aiomqtt.MqttCodeError):
        return bad(f"the broker {address.url} refuses its credentials: {error}", _NEW_CREDENTIALS)
    return bad(
        f"the broker {address.url} is not reached: {error}",
        "is the relay up, and is the broker's address the one that this device can reach?",
    )


async def _rights(client: aiomqtt.Client, settings: AgentSettings) -> list[Finding]:
    own = await _may_subscribe(client, call_topic(DeviceId(settings.device_id)))
    foreign = await _may_subscribe(client, request_topic(DeviceId("somebody-else")))
    return [
        good("it may hear its own calls")
        if own
        else bad("it may not hear its own calls", _NEW_CREDENTIALS),
        bad("it may hear other devices", "the broker's rights are too wide: see docs/mqtt.md")
        if foreign
        else good("it may not hear other devices"),
    ]


async def _may_subscribe(client: aiomqtt.Client, topic: str) -> bool:
    codes = await client.subscribe(topic, qos=1)
    return not any(getattr(code, "is_failure", False) for code in codes)


def _pins(settings: AgentSettings) -> Finding:
    try:
        from hardware.panel import Panel, PanelError
    except ImportError as error:
        return unknown(f"its panel was not examined ({error})", "pip install 'bellwire[agent]'")
    if not any(Path("/dev").glob("gpiochip*")):
        return unknown("its pins were not examined: this machine has none", "here use --simulate")
    try:
        Panel(settings.panel).close()
    except PanelError as error:
        return bad(str(error), "if the agent runs, its pins are in use, and that is well")
    return good("its pins can be used")
