"""`bellwire token`: issues and revokes access tokens."""

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from bellwire.cli.failures import fail, reported
from bellwire.cli.relay_client import (
    DataOption,
    KeyFileOption,
    RelayClient,
    RelayOption,
    find_relay,
)
from bellwire.signaling.identifiers import parse_identity
from bellwire.signaling.tokens import DEFAULT_TTL_S, MAX_TTL_S
from bellwire.signaling.wire.requests import RevokeTokensRequest, TokenRequest


class _IssuesUnlessTold(TyperGroup):
    """`bellwire token alice` issues, as it did before there was anything else to do with tokens."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - Typer's own click
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["issue", *args]
        return super().parse_args(ctx, args)


token = typer.Typer(
    cls=_IssuesUnlessTold,
    invoke_without_command=True,
    no_args_is_help=True,
    help="Issues and revokes access tokens. `bellwire token NAME` is `bellwire token issue NAME`.",
)


@token.command("issue", epilog="Example: `bellwire token issue alice --ttl 3600`")
@reported
def issue(
    identity: Annotated[str, typer.Argument(metavar="NAME", help="The identity it is for.")],
    device: Annotated[
        str | None,
        typer.Option(metavar="ID", help="The one device that may use it, once registered."),
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


@token.command("revoke", epilog="Example: `bellwire token revoke --device alice-phone`")
@reported
def revoke(
    identity: Annotated[
        str | None, typer.Option(metavar="NAME", help="All tokens of this identity.")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(metavar="ID", help="All tokens for this device, or that have acted as it."),
    ] = None,
    shown: Annotated[
        str | None, typer.Option("--token", metavar="TOKEN", help="This token.")
    ] = None,
    jti: Annotated[
        str | None, typer.Option(metavar="ID", help="The token that has this claim `jti`.")
    ] = None,
    relay: RelayOption = None,
    data: DataOption = None,
    api_key_file: KeyFileOption = None,
) -> None:
    """Ends access tokens before their time, at every relay within a second, and closes their streams.

    Those that are issued afterwards are good. Removing a device (`bellwire devices remove`) ends its tokens
    by itself, and takes its access to the broker too.
    """
    given = {"identity": identity, "device_id": device, "token": shown, "jti": jti}
    named = {name: value for name, value in given.items() if value is not None}
    if len(named) != 1:
        fail("say whose tokens: give one of --identity, --device, --token and --jti")
    with RelayClient(find_relay(relay, data, api_key_file)) as client:
        answer = client.revoke_tokens(RevokeTokensRequest.model_validate(named))
    if answer.identity is not None:
        ended, what = f"the access tokens of {answer.identity}, if there were any", "them"
    elif answer.device_id is not None:
        ended, what = (
            f"the access tokens of the device {answer.device_id}, if there were any",
            "them",
        )
    else:
        ended, what = f"the access token {answer.jti}", "it"
    Console(soft_wrap=True).print(f"Ended {ended}: every relay refuses {what} within a second.")
