"""`bellwire fleet`: all its commands by name, and the two that are not about layers."""

import asyncio
import json
import secrets
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bellwire.broker.session.session import NobodyListens, NotConnected
from bellwire.cli.failures import fail, reported
from bellwire.cli.fleet import apply, layer, status
from bellwire.cli.fleet.operator import operator
from bellwire.cli.fleet.session import JsonOption, OperatorOption, open_fleet
from bellwire.config.agent.settings import settings_schema
from bellwire.signaling.errors import Unavailable
from bellwire.signaling.identifiers import DeviceId, parse_device_id
from bellwire.signaling.topics import command_topic
from bellwire.signaling.wire.station import COMMAND_LIFE_S, CommandResult, RingTest

fleet = typer.Typer(
    no_args_is_help=True,
    help="Configures all devices and shows which follow, over MQTT alone: no relay need run.",
)
fleet.command("apply", epilog="Example: `bellwire fleet apply fleet/ --dry-run`")(apply.apply)
fleet.command("diff", epilog="Example: `bellwire fleet diff fleet/`")(apply.diff)
fleet.command("status", epilog="Example: `bellwire fleet status`")(status.status)
fleet.command("watch", epilog="Example: `bellwire fleet watch`")(status.watch)
fleet.command("export", epilog="Example: `bellwire fleet export fleet/`")(apply.export)
fleet.command("set", epilog="Example: `bellwire fleet set audio.ring_volume=0.4 --group north`")(
    layer.set_value
)
fleet.command("unset", epilog="Example: `bellwire fleet unset audio.ring_volume --group north`")(
    layer.unset
)
fleet.command("log", epilog="Example: `bellwire fleet log --group north`")(layer.log)
fleet.command("rollback", epilog="Example: `bellwire fleet rollback --group north`")(layer.rollback)


@fleet.command("ring-test", epilog="Example: `bellwire fleet ring-test lobby-1`")
@reported
def ring_test(
    device: Annotated[str, typer.Argument(metavar="DEVICE", help="The device's id.")],
    seconds: Annotated[float, typer.Option(min=0.1, max=10, help="How long to ring.")] = 3,
    as_json: JsonOption = False,
    operator: OperatorOption = None,
) -> None:
    """Rings one device for a moment, without a call, and says whether it did.

    A device that is in a call refuses. One that is away never rings later.
    """
    device_id = parse_device_id(device)
    result = asyncio.run(_ring(device_id, seconds, operator))
    if as_json:
        shown = {"device_id": device_id, **result.model_dump()}
        Console(soft_wrap=True).out(json.dumps(shown, ensure_ascii=False))
    if result.result == "refused":
        fail(f"{device_id} did not ring: {result.reason or 'it does not say why'}")
    if not as_json:
        Console().print(f"{device_id} rang for {seconds:g} s.", highlight=False)


async def _ring(device_id: DeviceId, seconds: float, operator_file: Path | None) -> CommandResult:
    command = RingTest(id=secrets.token_hex(8), duration_s=seconds)
    async with open_fleet(operator_file) as opened:
        known = opened.devices.get(device_id)
        if known is not None and not known.online:
            raise Unavailable(f"{device_id} is offline: see `bellwire fleet status`")
        try:
            async with asyncio.timeout(seconds + COMMAND_LIFE_S):
                await opened.session.publish(
                    command_topic(device_id),
                    command.model_dump_json().encode(),
                    expires_in_s=COMMAND_LIFE_S,
                    to_somebody=True,
                )
                while True:
                    sender, result = await opened.results.get()
                    if sender == device_id and result.id == command.id:
                        return result
        except NobodyListens as error:
            raise Unavailable(
                f"no device {device_id} listens: check the id with `bellwire fleet status`"
            ) from error
        except (NotConnected, TimeoutError) as error:
            raise Unavailable(f"{device_id} did not answer: {error!s}") from error


@fleet.command("schema", epilog="Example: `bellwire fleet schema --out agent.schema.json`")
@reported
def schema(
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write it there.")] = None,
) -> None:
    """Prints the JSON Schema of a layer's settings, for editors that check and complete files."""
    text = schema_text()
    if out is None:
        Console(soft_wrap=True).out(text.rstrip(), highlight=False)
        return
    try:
        out.write_text(text)
    except OSError as error:
        fail(f"{out} cannot be written: {error.strerror}")
    Console().print(f"Written: {out}. In a TOML file's first line: #:schema {out}", markup=False)


def schema_text() -> str:
    """The JSON Schema as the file that is published."""
    return json.dumps(settings_schema(), indent=2) + "\n"


fleet.add_typer(operator, name="operator")
