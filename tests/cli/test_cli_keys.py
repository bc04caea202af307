"""`bellwire keys` and `bellwire token revoke`, as an operator runs them."""

import json
import re
import stat
from pathlib import Path

import httpx
import pytest

from bellwire.cli.keys import seconds_in
from bellwire.signaling.errors import InvalidInput
from tests.cli.command import Ended, bellwire
from tests.conftest import PATIENCE_S
from tests.forking import ForkedRelay


async def operate(relay: ForkedRelay, *arguments: object) -> Ended:
    return await bellwire(*arguments, "--data", relay.data)


async def status_of(relay: ForkedRelay, credentials: str, path: str = "/v1/devices") -> int:
    headers = {"Authorization": f"Bearer {credentials}"}
    async with httpx.AsyncClient(base_url=relay.access.url, timeout=PATIENCE_S) as http:
        return (await http.get(path, headers=headers)).status_code


async def test_a_key_is_made_used_listed_rotated_and_revoked(
    shared_relay: ForkedRelay, tmp_path: Path
) -> None:
    file = tmp_path / "billing.key"
    scopes = ("--scope", "devices", "--scope", "calls")
    made = await operate(
        shared_relay, "keys", "add", "billing", *scopes, "--expires", "90d", "--out", file
    )
    assert made.code == 0, made.err
    key = file.read_text().strip()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "billing.key" in made.out and key not in made.out
    assert await status_of(shared_relay, key) == 200
    assert await status_of(shared_relay, key, "/v1/groups") == 403
    # The commands take it too.
    listed = await operate(shared_relay, "devices", "list", "--api-key-file", file)
    assert listed.code == 0, listed.err
    refused = await operate(shared_relay, "keys", "list", "--api-key-file", file)
    refused.must_say_in_one_line("scope `admin`", "calls")

    shown = await operate(shared_relay, "keys", "list")
    (row,) = [line for line in shown.out.splitlines() if "billing" in line]
    assert re.search(r"calls, devices\W+[\d: -]+\W+[\d: -]+\W+[\d: -]+", row), "it was used"
    assert key not in shown.out
    as_json = json.loads((await operate(shared_relay, "keys", "list", "--json")).out)
    assert {"billing"} < {one["name"] for one in as_json}

    again = await operate(shared_relay, "keys", "add", "billing", *scopes, "--out", file)
    again.must_say_in_one_line("exists already")
    rotated = await operate(shared_relay, "keys", "rotate", "billing", "--out", file)
    assert rotated.code == 0, rotated.err
    new = file.read_text().strip()
    assert await status_of(shared_relay, key) == 401
    assert await status_of(shared_relay, new) == 200

    revoked = await operate(shared_relay, "keys", "revoke", "billing")
    assert revoked.code == 0 and "billing" in revoked.out
    assert await status_of(shared_relay, new) == 401
    (await operate(shared_relay, "keys", "revoke", "billing")).must_say_in_one_line("keys list")


async def test_a_key_is_printed_alone_where_no_file_is_named(shared_relay: ForkedRelay) -> None:
    made = await operate(shared_relay, "keys", "add", "printed", "--scope", "metrics")
    assert re.fullmatch(r"bwk_[\w-]{43}\n", made.out)
    assert await status_of(shared_relay, made.out.strip(), "/metrics/devices") == 200


async def test_a_relays_own_key_that_has_leaked_is_rotated_in_place(tmp_path: Path) -> None:
    async with ForkedRelay(tmp_path / "relay") as relay:
        file = relay.data / "api-key"
        leaked = file.read_text().strip()
        listed = json.loads((await operate(relay, "keys", "list", "--json")).out)
        (own,) = [one["name"] for one in listed]
        assert own.startswith("relay-")
        rotated = await operate(relay, "keys", "rotate", own, "--out", file)
        assert rotated.code == 0, rotated.err
        assert await status_of(relay, leaked) == 401
        assert (await operate(relay, "devices", "list")).code == 0
        last = await operate(relay, "keys", "revoke", own)
        last.must_say_in_one_line("last API key")
        await relay.stop()
        await relay.start()
        assert await status_of(relay, leaked) == 401
        assert (await operate(relay, "devices", "list")).code == 0


async def test_a_key_that_nobody_could_see_is_not_made(shared_relay: ForkedRelay) -> None:
    nowhere = "/nonexistent/key"
    made = await operate(shared_relay, "keys", "add", "x", "--scope", "calls", "--out", nowhere)
    made.must_say_in_one_line("no folder")
    listed = json.loads((await operate(shared_relay, "keys", "list", "--json")).out)
    own = listed[-1]["name"]
    assert "x" not in {one["name"] for one in listed}
    rotated = await operate(shared_relay, "keys", "rotate", own, "--out", nowhere)
    rotated.must_say_in_one_line("no folder")
    assert (await operate(shared_relay, "keys", "list")).code == 0, "the old key is good"


async def test_tokens_are_revoked_and_the_next_are_good(shared_relay: ForkedRelay) -> None:
    async def issued(*more: str) -> str:
        return (await operate(shared_relay, "token", "issue", "alice", *more)).out.strip()

    first, second = await issued(), await issued()
    ended = await operate(shared_relay, "token", "revoke", "--token", first)
    assert ended.code == 0 and "every relay refuses" in ended.out
    assert await status_of(shared_relay, first, "/v1/calls") == 401
    assert await status_of(shared_relay, second, "/v1/calls") == 200
    ended = await operate(shared_relay, "token", "revoke", "--identity", "alice")
    assert "the access tokens of alice" in ended.out
    assert await status_of(shared_relay, second, "/v1/calls") == 401
    assert await status_of(shared_relay, await issued(), "/v1/calls") == 200
    for wrong in ((), ("--identity", "alice", "--device", "phone")):
        (await operate(shared_relay, "token", "revoke", *wrong)).must_say_in_one_line("give one of")
    forged = await operate(shared_relay, "token", "revoke", "--token", "ey.forged.token")
    forged.must_say_in_one_line("not issued by this relay")


@pytest.mark.parametrize(
    ("text", "seconds"), [("90d", 7_776_000), ("12h", 43_200), ("30m", 1_800), ("45s", 45)]
)
def test_times_are_written_with_their_unit(text: str, seconds: int) -> None:
    assert seconds_in(text) == seconds


@pytest.mark.parametrize("text", ["90", "0d", "d", "1w", "-1d", "1.5h", "9" * 12 + "d"])
def test_a_time_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="90d, 12h, 30m or 45s"):
        seconds_in(text)


def test_a_time_that_no_key_is_good_for_is_refused_with_the_longest() -> None:
    with pytest.raises(InvalidInput, match=r"at most 3660d, or leave --expires out"):
        seconds_in("9999d")


async def test_a_name_that_no_key_can_have_is_refused_in_words(shared_relay: ForkedRelay) -> None:
    """`revoke ../devices` was a request of another route."""
    for name in ("bad name", "", "../devices", "a/b"):
        for command in (("add", "--scope", "calls"), ("rotate",), ("revoke",)):
            ended = await operate(shared_relay, "keys", command[0], name, *command[1:])
            ended.must_say_in_one_line("no name of a key", "1 to 64")
