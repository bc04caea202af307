"""`bellwire keys`: the API keys of servers."""

import json
import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from bellwire.cli.failures import fail, reported
from bellwire.cli.relay_client import (
    DataOption,
    KeyFileOption,
    RelayClient,
    RelayOption,
    find_relay,
)
from bellwire.config.private_file import write_private
from bellwire.signaling.errors import InvalidInput
from bellwire.signaling.tokens import SCOPE_MEANINGS, Scope
from bellwire.signaling.wire.answers import NewApiKeyAnswer
from bellwire.signaling.wire.requests import MAX_KEY_LIFE_S, ApiKeyRequest, RotateKeyRequest

keys = typer.Typer(no_args_is_help=True, help="Adds, lists, rotates and revokes API keys.")

_UNITS_S = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="What the key is called, such as billing.")
]
ExpiresOption = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="How long it is good: 90d, 12h, 30m or 45s."),
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Where to write the key (mode 600), in place of printing it."
    ),
]


def seconds_in(text: str) -> int:
    """The seconds that `90d`, `12h`, `30m` or `45s` are.

    Raises:
        InvalidInput: it is none of them, or longer than a key may be good.
    """
    found = re.fullmatch(r"([1-9][0-9]{0,8})([dhms])", text)
    if found is None:
        raise InvalidInput(f"{text[:40]!r} is no time: write 90d, 12h, 30m or 45s")
    seconds = int(found[1]) * _UNITS_S[found[2]]
    if seconds > MAX_KEY_LIFE_S:
        longest = f"{MAX_KEY_LIFE_S // _UNITS_S['d']}d"
        raise InvalidInput(
            f"{text} is too long: at most {longest}, or leave --expires out for a key without an end"
        )
    return seconds


@keys.command("add", epilog="Example: `bellwire keys add billing --scope calls --expires 90d`")
@reported
def add(
    name: NameArgument,
    scope: Annotated[
        list[Scope],
        typer.Option(help="What it may do; once for each. `admin` is everything."),
    ],
    expires: ExpiresOption = None,
    out: OutOption = None,
    relay: RelayOption = None,
    data: DataOption = None,
    api_key_file: KeyFileOption = None,
) -> None:
    """Makes an API key that may do what its scopes say. It is shown this once: the relay keeps its hash.

    It is good at every relay within a second. `bellwire keys scopes` says what each scope opens.
    """
    _check_name(name)
    if out is not None and out.exists():
        fail(f"{out} exists already: remove it, or give another --out FILE")
    _check_folder(out)
    life_s = None if expires is None else seconds_in(expires)
    request = ApiKeyRequest(name=name, scopes=scope, expires_in=life_s)
    with RelayClient(find_relay(relay, data, api_key_file)) as client:
        _hand_over(client.add_key(request), out)


@keys.command("list", epilog="Example: `bellwire keys list`")
@reported
def list_keys(
    as_json: Annotated[bool, typer.Option("--json", help="Print them as JSON.")] = False,
    relay: RelayOption = None,
    data: DataOption = None,
    api_key_file: KeyFileOption = None,
) -> None:
    """Lists the API keys: what each may do, since and until when, and when it was last used."""
    with RelayClient(find_relay(relay, data, api_key_file)) as client:
        found = client.keys()
    if as_json:
        Console(soft_wrap=True).out(json.dumps(found.model_dump(mode="json")["keys"]))
        return
    table = Table("Name", "Scopes", "Made", "Expires", "Last used")
    for key in found.keys:
        table.add_row(
            key.name,
            ", ".join(key.scopes),
            _shown(key.created_at),
            "never" if key.expires_at is None else _expiry(key.expires_at, datetime.now(UTC)),
            "never" if key.last_used_at is None else _shown(key.last_used_at),
        )
    Console().print(table)


@keys.command("rotate", epilog="Example: `bellwire keys rotate billing --out billing.key`")
@reported
def rotate(
    name: NameArgument,
    expires: ExpiresOption = None,
    out: OutOption = None,
    relay: RelayOption = None,
    data: DataOption = None,
    api_key_file: KeyFileOption = None,
) -> None:
    """Makes an API key in place of one, with its name and scopes. The old one is refused at every relay
    within a second. It is good as long as that was made for, unless told otherwise."""
    _check_name(name)
    _check_folder(out)
    life_s = None if expires is None else seconds_in(expires)
    with RelayClient(find_relay(relay, data, api_key_file)) as client:
        _hand_over(client.rotate_key(name, RotateKeyRequest(expires_in=life_s)), out)


@keys.command("revoke", epilog="Example: `bellwire keys revoke billing`")
@reported
def revoke(
    name: NameArgument,
    relay: RelayOption = None,
    data: DataOption = None,
    api_key_file: KeyFileOption = None,
) -> None:
    """Ends an API key: it is refused at every relay within a second."""
    _check_name(name)
    with RelayClient(find_relay(relay, data, api_key_file)) as client:
        client.revoke_key(name)
    Console().print(f"Revoked the API key {name}.")


@keys.command("scopes", epilog="Example: `bellwire keys scopes`")
@reported
def scopes() -> None:
    """Says what each scope opens. docs/http.md has the routes."""
    table = Table("Scope", "What it opens")
    for scope, meaning in SCOPE_MEANINGS.items():
        table.add_row(scope, meaning)
    Console().print(table)


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        fail(
            f"{name[:40]!r} is no name of a key: it has 1 to 64 of A-Z a-z 0-9 . _ -, and starts with a"
            " letter or digit"
        )


def _check_folder(out: Path | None) -> None:
    """Before a key is made that nobody could see."""
    if out is not None and not (out.parent.is_dir() and os.access(out.parent, os.W_OK)):
        fail(f"{out.parent} is no folder to write in: give another --out FILE")


def _hand_over(key: NewApiKeyAnswer, out: Path | None) -> None:
    if out is None:
        Console(soft_wrap=True).out(key.key)
        return
    write_private(out, key.key + "\n")
    Console(soft_wrap=True).print(f"The API key {key.name} is in {out} (mode 600).")


def _shown(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M")


def _expiry(moment: datetime, now: datetime) -> str:
    return f"{_shown(moment)}{' (has expired)' if moment <= now else ''}"
