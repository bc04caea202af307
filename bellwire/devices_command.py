"""`bellwire devices`: what can be rung."""

from pathlib import Path
from typing import Annotated

import typer
from pydantic import SecretStr
from rich.console import Console
from rich.table import Table

from bellwire.failures import fail, reported
from bellwire.relay_client import DataOption, KeyFileOption, RelayClient, RelayOption, find_relay
from config.agent import AgentSettings, BrokerSettings, agent_file, default_panel
from config.private_file import write_private
from signaling.identifiers import parse_device_id, parse_identity
from signaling.requests import ChannelRequest, DeviceRequest

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
    rotate: Annotated[
        bool, typer.Option("--rotate", help="Give a device that exists new credentials.")
    ] = False,
    relay: RelayOption = None,
    data: DataOption = None,
    api_key_file: KeyFileOption = None,
) -> None:
    """Registers a device and writes its agent's configuration file, with credentials of its own.

    The file is readable by you alone (mode 600): bring it to the device and start it there with
    `bellwire agent --config FILE`. The broker lets the device reach its own topics and nothing else.
    """
    device_id, identity = parse_device_id(device_id), parse_identity(identity)
    panel = default_panel([parse_identity(name) for name in calls or []])
    if out.exists() and not rotate:
        fail(f"{out} exists already: remove it, or give another --out FILE")
    request = DeviceRequest(
        identity=identity,
        channels=[ChannelRequest(kind="mqtt")],
        rotate_credentials=rotate,
    )
    with RelayClient(find_relay(relay, data, api_key_file)) as client:
        known = {device.device_id for device in client.devices().devices}
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
