"""`bellwire devices`: what can be rung."""

import os
from pathlib import Path
from typing import Annotated

import typer
from pydantic import SecretStr
from rich.console import Console
from rich.table import Table

from bellwire.broker.session.address import parse_broker_url
from bellwire.cli.failures import fail, reported
from bellwire.cli.relay_client import (
    DataOption,
    KeyFileOption,
    RelayClient,
    RelayOption,
    find_relay,
)
from bellwire.config.agent.settings import AgentSettings, BrokerSettings, agent_file, default_panel
from bellwire.config.private_file import write_private
from bellwire.signaling.identifiers import parse_device_id, parse_identity
from bellwire.signaling.wire.requests import ChannelRequest, DeviceRequest

devices = typer.Typer(no_args_is_help=True, help="Adds, lists and removes devices.")


@devices.command(
    "add", epilog="Example: `bellwire devices add desk-1 --identity desk --out desk.toml`"
)
@reported
def add(
    device_id: Annotated[
        str, typer.Argument(metavar="ID", help="The device's name, such as lobby-1.")
    ],
    identity: Annotated[
        str, typer.Option(metavar="NAME", help="Whom it rings for, such as lobby.")
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where to write the agent's file.")],
    calls: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Whom a call button calls; once for each button."),
    ] = None,
    broker: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="The broker's URL as the device reaches it. [the relay's]"
        ),
    ] = None,
    ca_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The CA of the broker, on the device.")
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure", help="Allow mqtt:// over a network: anybody on it may read the password."
        ),
    ] = False,
    rotate: Annotated[
        bool,
        typer.Option(
            "--rotate", help="Give a device that exists new credentials: [broker] of its file."
        ),
    ] = False,
    relay: RelayOption = None,
    data: DataOption = None,
    api_key_file: KeyFileOption = None,
) -> None:
    """Registers a device and writes its agent's configuration file, with credentials of its own.

    The file is readable by you alone (mode 600): bring it to the device and start it there with
    `bellwire agent --config FILE`. The broker lets the device reach its own topics and nothing else.

    Nothing is registered where the file could not be written, or its broker not be used as it should.
    """
    device_id, identity = parse_device_id(device_id), parse_identity(identity)
    panel = default_panel([parse_identity(name) for name in calls or []])
    if out.exists() and not rotate:
        fail(f"{out} exists already: remove it, or give another --out FILE")
    folder = out.absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK) or out.is_dir():
        fail(f"{out} cannot be written: give an --out FILE in a folder that is there and yours")
    if broker is not None:
        _check_broker(broker, insecure=insecure)
    request = DeviceRequest(
        identity=identity,
        channels=[ChannelRequest(kind="mqtt")],
        rotate_credentials=rotate,
    )
    with RelayClient(find_relay(relay, data, api_key_file)) as client:
        listed = client.devices()
        if (
            broker is None and listed.broker_url is not None
        ):  # a relay before this version is silent
            _check_broker(listed.broker_url, insecure=insecure)
        known = {device.device_id for device in listed.devices}
        if device_id in known and not rotate:
            fail(f"device {device_id} exists already: give it new credentials with --rotate")
        access = client.put_device(device_id, request).mqtt
    if access is None:
        fail("the relay gave no broker credentials: try again with --rotate")
    settings = AgentSettings(
        device_id=device_id,
        identity=identity,
        broker=BrokerSettings(
            url=broker or access.url,
            username=access.username,
            password=SecretStr(access.password),
            ca_file=ca_file,
        ),
        panel=panel,
    )
    write_private(out, agent_file(settings))
    console = Console()
    console.print(f"Added device [bold]{device_id}[/] of {identity}; its file is {out} (mode 600).")
    console.print(
        f"Next, on the device: [bold]bellwire agent --config {out}[/] (here: add --simulate)"
    )
    if device_id in known:
        console.print(
            "It has the pins of a new device, and no doors. Where the device has a file already, put only"
            " [broker] of this one into it.",
            soft_wrap=True,
            markup=False,
        )
    if parse_broker_url(settings.broker.url).is_loopback:
        console.print(
            f"Its broker {settings.broker.url} is this machine itself: the file works nowhere else. For"
            " another machine the relay needs a broker with TLS (deploy/README.md).",
            soft_wrap=True,
        )


def _check_broker(url: str, *, insecure: bool) -> None:
    """Refuses a broker that is none, and one that would be told the password in clear."""
    if parse_broker_url(url).is_in_clear and not insecure:
        fail(
            f"{url} has no TLS: whoever listens on the network reads the device's password, and opens its"
            " door. Give the broker a certificate and name it mqtts://HOST (deploy/README.md), or say"
            " --insecure"
        )


@devices.command("list", epilog="Example: `bellwire devices list`")
@reported
def list_devices(
    relay: RelayOption = None, data: DataOption = None, api_key_file: KeyFileOption = None
) -> None:
    """Lists the devices, their identities and channels."""
    with RelayClient(find_relay(relay, data, api_key_file)) as client:
        found = client.devices().devices
    if not found:
        Console().print(
            "No devices yet: add one with `bellwire devices add ID --identity NAME --out FILE`"
        )
        return
    table = Table("Device", "Identity", "Channels")
    for device in found:
        table.add_row(device.device_id, device.identity, ", ".join(c.kind for c in device.channels))
    Console().print(table)


@devices.command("remove", epilog="Example: `bellwire devices remove desk-1`")
@reported
def remove(
    device_id: Annotated[str, typer.Argument(metavar="ID", help="The device.")],
    relay: RelayOption = None,
    data: DataOption = None,
    api_key_file: KeyFileOption = None,
) -> None:
    """Removes a device and its access to the broker, at once."""
    with RelayClient(find_relay(relay, data, api_key_file)) as client:
        client.delete_device(parse_device_id(device_id))
    Console().print(f"Removed device {device_id}.")
