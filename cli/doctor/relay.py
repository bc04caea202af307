"""The doctor's look at a relay: does it answer, is it ready, who may ring whom, does it know the operator,
do clocks agree."""

import json
import os
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx

from bellwire.cli.doctor.diagnosis import Finding, bad, good, unknown, warning
from bellwire.cli.relay_client import RelayClient, RelayRefused, find_relay
from bellwire.config.relay import RelaySettings, default_data_folder
from bellwire.push.data_disk import look_at_disk
from bellwire.signaling.errors import InvalidInput, Unavailable

_SKEW_S = 5


def examine_relay(relay: str | None, data: Path | None, key_file: Path | None) -> Iterator[Finding]:
    """The relay that the options mean."""
    folder = data or default_data_folder()
    yield from _data(folder)
    try:
        access = find_relay(relay, data, key_file)
    except InvalidInput as error:
        yield unknown("no relay examined", error.detail)
        return
    with RelayClient(access) as client:
        try:
            answer = client.get("/healthz")
        except Unavailable as error:
            yield bad(f"no relay answers at {client.url}", error.detail)
            return
        if not answer.is_success:
            yield bad(f"{client.url} answers, but is no relay", "name the relay with --relay URL")
            return
        yield good(f"a relay answers at {client.url}")
        yield _ready(client.get("/readyz"))
        yield _clock(answer)
        if _lets_all_ring_all(folder, client.url):
            yield _all_may_ring_all()
        yield from _operator(client)


def examine_call_policy(settings: RelaySettings) -> Iterator[Finding]:
    """Who may ring whom, by a relay's settings."""
    policy = settings.policy
    if settings.all_may_ring_all:
        yield _all_may_ring_all()
        return
    if settings.voice_url is not None:
        yield good("the backend at voice_url says whom a call of an app or device rings")
        return
    rules = f"{len(policy.rules)} rule{'' if len(policy.rules) == 1 else 's'}"
    others = "is allowed" if policy.default == "allow" else "is refused"
    yield good(f"a call policy says who may ring whom: {rules}, and what none fits {others}")


def _all_may_ring_all() -> Finding:
    return warning(
        "EVERYBODY MAY RING EVERYBODY: this relay has no call policy",
        "say in [policy] of its file, or in BELLWIRE_POLICY, who may ring whom: docs/operations.md,"
        ' "Who may ring whom"',
    )


def _lets_all_ring_all(folder: Path, url: str) -> bool:
    """Whether the relay of this URL has said so when it last started with this folder."""
    try:
        said = json.loads((folder / "relay.json").read_text())
        return said["url"].rstrip("/") == url and said["all_may_ring_all"] is True
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return False  # no relay of this folder, or one of the version before


def _data(folder: Path) -> Iterator[Finding]:
    if not folder.exists():
        yield unknown(f"no relay has run with {folder}", "start one with `bellwire relay`")
        return
    for path, limit in ((folder, 0o700), (folder / "api-key", 0o600), (folder / "relay.db", 0o600)):
        if not path.exists():
            continue
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & ~limit:
            yield bad(f"others may read {path} (mode {mode:o})", f"chmod {limit:o} {path}")
        else:
            yield good(f"{path} is private")
    disk = look_at_disk(folder, write=os.access(folder, os.W_OK))
    if disk.problem is not None:
        yield bad(disk.problem, "see what fills it: `du -xh --max-depth=2 / | sort -h | tail`")
    elif disk.is_low:
        yield warning(
            f"only {disk.free_bytes / 1e6:.0f} MB are free for {folder}",
            "free some before it is full: then no call can be made",
        )
    else:
        yield good(f"{disk.free_bytes / 1e6:.0f} MB are free for {folder}")


def _ready(answer: httpx.Response) -> Finding:
    if answer.is_success:
        return good("its database and its broker are there")
    try:
        detail = answer.json()["detail"]
    except (ValueError, KeyError):
        detail = f"status {answer.status_code}"
    return bad(f"it is not ready: {detail}", "look into its log; with --broker, is that broker up?")


def _clock(answer: httpx.Response) -> Finding:
    said = answer.headers.get("date")
    if said is None:
        return unknown("it does not tell the time")
    skew_s = (parsedate_to_datetime(said) - datetime.now(UTC)).total_seconds()
    if abs(skew_s) > _SKEW_S:
        return bad(
            f"its clock is {skew_s:+.0f} s from this machine's",
            "set both by NTP: `timedatectl set-ntp true`",
        )
    return good("its clock agrees with this machine's")


def _operator(client: RelayClient) -> Iterator[Finding]:
    try:
        devices = client.devices().devices
    except (RelayRefused, Unavailable) as error:
        yield bad(
            f"it does not take the API key: {error.detail}",
            "use the key in DIR/api-key of this relay",
        )
        return
    yield good("it takes the API key")
    if devices:
        yield good(f"{len(devices)} device{'s' if len(devices) > 1 else ''} registered")
    else:
        yield unknown(
            "no device is registered", "bellwire devices add ID --identity NAME --out FILE"
        )
