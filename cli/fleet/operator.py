"""`bellwire fleet operator`: who may configure the fleet. Run it where the relay's data is."""

import asyncio
import json
import os
import re
import secrets
from pathlib import Path
from typing import Annotated

import typer
from pydantic import SecretStr
from rich.console import Console

from bellwire.broker.accounts.credentials import DynamicSecurity
from bellwire.broker.embedded import embedded_address
from bellwire.broker.session.address import BrokerAddress, parse_broker_url
from bellwire.broker.session.session import Session
from bellwire.cli.failures import fail, reported
from bellwire.cli.fleet.session import JsonOption, running
from bellwire.cli.process.logs import configure_logs
from bellwire.cli.relay_client import DataOption
from bellwire.config.fleet.operator import (
    USERNAME_PREFIX,
    OperatorSettings,
    default_operator_file,
    write_operator_file,
)
from bellwire.signaling.errors import InvalidInput

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="The operator's name, such as ann.")
]
AdminOption = Annotated[
    str | None,
    typer.Option(
        "--admin-broker",
        metavar="URL",
        help="A broker that is not the relay's own; its account in BELLWIRE_BROKER_USERNAME"
        " and BELLWIRE_BROKER_PASSWORD.",
    ),
]

operator = typer.Typer(no_args_is_help=True, help="Adds and removes the operators of the fleet.")


@operator.command("add", epilog="Example: `bellwire fleet operator add ann --out ann.toml`")
@reported
def add(
    name: NameArgument,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Where to write their file. [~/.config/bellwire/operator.toml]"
        ),
    ] = None,
    broker: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="The broker's URL as the operator reaches it. [the relay's]"
        ),
    ] = None,
    ca_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The broker's CA, on their machine.")
    ] = None,
    rotate: Annotated[
        bool, typer.Option("--rotate", help="Give an operator that exists a new password.")
    ] = False,
    data: DataOption = None,
    admin_broker: AdminOption = None,
    as_json: JsonOption = False,
) -> None:
    """Gives somebody the right to configure the fleet, and writes their file (mode 600).

    They may write layers and commands and read what devices report: no calls, no accounts. The
    broker must run; the relay serves no part in it. Bring the file to their machine by a safe way.
    """
    username, path = _username(name), out or default_operator_file()
    if path.exists() and not rotate:
        fail(f"{path} exists already: remove it, or give another --out FILE, or --rotate")
    admin = _admin_address(data, admin_broker)
    url = broker or admin.url
    parse_broker_url(url)
    password = asyncio.run(_grant(admin, username, rotate=rotate))
    settings = OperatorSettings(
        url=url, username=username, password=SecretStr(password), ca_file=ca_file
    )
    write_operator_file(path, settings)
    if as_json:
        _print_json({"operator": name, "file": str(path), "broker": url})
        return
    console = Console()
    console.print(
        f"Added operator [bold]{name}[/]; their file is {path} (mode 600).", soft_wrap=True
    )
    console.print(f"Next: [bold]bellwire fleet status --operator {path}[/]", soft_wrap=True)


@operator.command("remove", epilog="Example: `bellwire fleet operator remove ann`")
@reported
def remove(
    name: NameArgument,
    data: DataOption = None,
    admin_broker: AdminOption = None,
    as_json: JsonOption = False,
) -> None:
    """Takes an operator's access away, at once. What they have written stays."""
    username = _username(name)
    if not asyncio.run(_revoke(_admin_address(data, admin_broker), username)):
        fail(f"there is no operator {name}")
    if as_json:
        _print_json({"operator": name, "removed": True})
    else:
        Console().print(f"Removed operator {name}.")


def _print_json(shown: dict[str, str | bool]) -> None:
    Console(soft_wrap=True).out(json.dumps(shown, ensure_ascii=False), highlight=False)


async def _grant(admin: BrokerAddress, username: str, *, rotate: bool) -> str:
    session, provisioner = _provisioner(admin)
    async with running(session):
        if not rotate and await provisioner.has_operator(username):
            raise InvalidInput(
                f"operator {username.removeprefix(USERNAME_PREFIX)} exists already:"
                " give them a new password with --rotate"
            )
        return await provisioner.grant_operator(username)


async def _revoke(admin: BrokerAddress, username: str) -> bool:
    session, provisioner = _provisioner(admin)
    async with running(session):
        return await provisioner.revoke_operator(username)


def _provisioner(admin: BrokerAddress) -> tuple[Session, DynamicSecurity]:
    configure_logs("error")
    session = Session(admin, f"operators-{secrets.token_hex(8)}")
    return session, DynamicSecurity(session)


def _username(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise InvalidInput(
            f"operator {name[:40]!r} must be 1 to 64 of A-Z a-z 0-9 . _ -, starting with a letter or digit"
        )
    return f"{USERNAME_PREFIX}{name}"


def _admin_address(data: Path | None, admin_broker: str | None) -> BrokerAddress:
    """The account that may give rights: the relay's own broker's, or that of an external one."""
    if admin_broker is not None:
        return parse_broker_url(
            admin_broker,
            username=os.environ.get("BELLWIRE_BROKER_USERNAME"),
            password=os.environ.get("BELLWIRE_BROKER_PASSWORD"),
        )
    from bellwire.config.relay import default_data_folder  # all other fleet commands do without

    try:
        return embedded_address((data or default_data_folder()) / "broker")
    except InvalidInput as error:
        raise InvalidInput(
            f"{error}. Run this where the relay's data is, as its user, with --data DIR;"
            " or name an external broker with --admin-broker URL"
        ) from error
