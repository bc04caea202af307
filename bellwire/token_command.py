"""`bellwire token`."""

import json
from typing import Annotated

import typer
from rich.console import Console

from bellwire.failures import reported
from bellwire.relay_client import DataOption, KeyFileOption, RelayClient, RelayOption, find_relay
from signaling.identifiers import parse_identity
from signaling.requests import TokenRequest
from signaling.tokens import DEFAULT_TTL_S, MAX_TTL_S


@reported
def token(
    identity: Annotated[str, typer.Argument(metavar="NAME", help="The identity it is for.")],
    device: Annotated[
        str | None, typer.Option(metavar="ID", help="The one device that may use it.")
    ] = None,
    ttl: Annotated[
        int, typer.Option(min=1, max=MAX_TTL_S, help="Seconds it is valid.")
    ] = DEFAULT_TTL_S,
    as_json: Annotated[bool, typer.Option("--json", help="Print its expiry too, as JSON.")] = False,
    relay: RelayOption = None,
    data: DataOption = None,
    api_key_file: KeyFileOption = None,
) -> None:
    """Issues an access token, with which an app acts as one identity. Prints it and nothing else."""
    request = TokenRequest(identity=parse_identity(identity), device_id=device, ttl=ttl)
    with RelayClient(find_relay(relay, data, api_key_file)) as client:
        answer = client.issue_token(request)
    console = Console(soft_wrap=True)
    console.out(json.dumps(answer.model_dump(mode="json")) if as_json else answer.token)
