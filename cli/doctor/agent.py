"""The doctor's look at an agent: its file, its broker, its rights there, its pins."""

import asyncio
import secrets
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import aiomqtt
from pydantic import ValidationError

from bellwire.broker.accounts.dynamic_security import doctor_client_id, doctor_username
from bellwire.broker.session.address import BrokerAddress, parse_broker_url
from bellwire.cli.doctor.diagnosis import Finding, bad, good, unknown, warning
from bellwire.config.agent.audio import RING_TONES, AudioSettings
from bellwire.config.agent.settings import AgentSettings, load_agent_settings
from bellwire.config.agent.telemetry import Telemetry
from bellwire.hardware.panel.door_lock import WHAT_TO_DO, why_no_door
from bellwire.signaling.errors import InvalidInput
from bellwire.signaling.identifiers import DeviceId
from bellwire.signaling.topics import call_topic, gathered_topic, request_topic, telemetry_topic

_TIMEOUT_S = 5.0
_NEW_CREDENTIALS = (
    "give the device new ones: bellwire devices add ID --identity NAME --rotate --out FILE"
)


async def examine_agent(config: Path, *, root: Path = Path("/")) -> list[Finding]:
    """The agent of a configuration file. It does not disturb an agent that runs. `root` is the folder
    with the kernel's word on whether it keeps a pin's level."""
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
    findings += await asyncio.to_thread(_door, settings, root)
    findings.append(await asyncio.to_thread(_pins, settings))
    findings += await asyncio.to_thread(lambda: list(examine_ring_tone(settings.audio)))
    return findings


def examine_ring_tone(settings: AudioSettings) -> Iterator[Finding]:
    """Whether its ring tone can be played; nothing where no sound is needed, or it is built in."""
    if not settings.enabled or settings.ring_tone in RING_TONES:
        return
    try:
        from bellwire.hardware.audio.tones import BadTone, ring_tone
    except ImportError as error:
        yield unknown(f"its ring tone was not examined ({error})", "pip install 'bellwire[agent]'")
        return
    try:
        ring_tone(settings.ring_tone)
    except BadTone as error:
        yield bad(f"its ring tone: {error}", f"or name one of {', '.join(RING_TONES)}")
    else:
        yield good(f"its ring tone {settings.ring_tone} can be played")


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
    found: list[Finding] = []
    if address.is_in_clear:
        found.append(
            warning(
                f"the broker {address.url} is reached without TLS: whoever listens on the network reads the"
                " password",
                "give the broker a certificate (deploy/README.md), and name it mqtts:// in the file",
            )
        )
    # A client id of its own: under the device's, it would take the running agent's session over. With an
    # account of its own, too, unless the device has its password from before there was one.
    device = DeviceId(settings.device_id)
    refused: list[Finding] = []
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
                    *found,
                    good(f"the broker {address.url} takes its credentials"),
                    *await _rights(client, settings),
                    *await _reported_faults(client, settings),
                ]
        except TimeoutError:
            return [bad(f"the broker {address.url} does not answer", "look into the broker's log")]
        except aiomqtt.MqttCodeError as error:
            refused = [*found, _not_connected(address, error)]
        except aiomqtt.MqttError as error:
            return [*found, _not_connected(address, error)]
    return refused


def _not_connected(address: BrokerAddress, error: aiomqtt.MqttError) -> Finding:
    if isinstance(error, aiomqtt.MqttCodeError):
        return bad(f"the broker {address.url} refuses its credentials: {error}", _NEW_CREDENTIALS)
    mend = "is the relay up, and is the broker's address the one that this device can reach?"
    if address.is_loopback:
        mend += f" {address.host} is this machine itself: name the broker's own in [broker] url"
    return bad(f"the broker {address.url} is not reached: {error}", mend)


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


async def _reported_faults(client: aiomqtt.Client, settings: AgentSettings) -> list[Finding]:
    """What its agent has last reported to be wrong, such as that another machine uses this file."""
    device = DeviceId(settings.device_id)
    if not await _may_subscribe(client, telemetry_topic(device)):
        said = (
            "what its agent reports cannot be read with this password, which is of an older version"
        )
        return [unknown(said, _NEW_CREDENTIALS)]
    # What comes back on this topic comes after what the broker retains.
    await client.subscribe(gathered_topic(device), qos=1)
    mark = secrets.token_hex(8).encode()
    await client.publish(gathered_topic(device), mark, qos=1)
    telemetry: Telemetry | None = None
    async with asyncio.timeout(_TIMEOUT_S):
        async for message in client.messages:
            if message.payload == mark:
                break
            if message.topic.value == telemetry_topic(device) and message.payload:
                with suppress(ValidationError):  # a newer agent's
                    telemetry = Telemetry.model_validate_json(bytes(message.payload))
    if telemetry is None:
        return [unknown("its agent has not reported yet", "start it: bellwire agent --config FILE")]
    at = f"{telemetry.at:%Y-%m-%d %H:%M} UTC"
    if not telemetry.faults:
        return [good(f"its agent reported no fault at {at}")]
    return [
        bad(f"its agent reported at {at}: {fault.part}: {fault.reason}", "mend this on the device")
        for fault in telemetry.faults
    ]


async def _may_subscribe(client: aiomqtt.Client, topic: str) -> bool:
    codes = await client.subscribe(topic, qos=1)
    return not any(getattr(code, "is_failure", False) for code in codes)


def _door(settings: AgentSettings, root: Path) -> list[Finding]:
    """What keeps its door shut, by this machine or by its file."""
    found = [bad(*reason.split(": ", 1)) for reason in settings.behaviour.shut_doors.values()]
    if settings.panel.door is None:
        return found
    if (reason := why_no_door(root)) is not None:
        found.append(bad(reason.partition(": ")[0], WHAT_TO_DO))
    return found


def _pins(settings: AgentSettings) -> Finding:
    try:
        from bellwire.hardware.panel.panel import Panel, PanelError
    except ImportError as error:
        return unknown(f"its panel was not examined ({error})", "pip install 'bellwire[agent]'")
    if not any(Path("/dev").glob("gpiochip*")):
        return unknown("its pins were not examined: this machine has none", "here use --simulate")
    try:
        Panel(settings.panel).close()
    except PanelError as error:
        return bad(str(error), "if the agent runs, its pins are in use, and that is well")
    return good("its pins can be used")
