"""Who may configure the fleet, and that several of them may do so at once."""

import asyncio
import json

from bellwire.config.fleet.operator import load_operator_settings
from tests.cli.command import Ended, bellwire
from tests.cli.fleet_stage import FleetStage, invoke


async def operate(*arguments: object) -> Ended:
    return await asyncio.to_thread(invoke, ["fleet", *map(str, arguments)])


async def test_operator_is_added_works_and_is_removed(stage: FleetStage) -> None:
    file = stage.folder / "keys" / "eve.toml"
    data = ("--data", stage.folder)
    added = await operate("operator", "add", "eve", "--out", file, *data)
    assert added.code == 0, added.err
    assert file.stat().st_mode & 0o777 == 0o600
    settings = load_operator_settings(file)
    assert (settings.name, settings.url) == ("eve", stage.broker.address.url)
    assert settings.password.get_secret_value() not in added.out + added.err + repr(settings)
    assert (await operate("set", "log_level=info", "--default", "--operator", file)).code == 0

    again = await operate("operator", "add", "eve", "--out", file, *data)
    again.must_say_in_one_line("exists already", "--rotate")
    other = await operate("operator", "add", "eve", "--out", stage.folder / "b.toml", *data)
    other.must_say_in_one_line("eve exists already", "--rotate")
    assert not (stage.folder / "b.toml").exists()
    rotated = await operate("operator", "add", "eve", "--rotate", "--out", file, "--json", *data)
    assert json.loads(rotated.out) == {
        "operator": "eve",
        "file": str(file),
        "broker": stage.broker.address.url,
    }
    assert load_operator_settings(file).password != settings.password

    removed = await operate("operator", "remove", "eve", *data)
    assert (removed.code, removed.out) == (0, "Removed operator eve.\n")
    gone = await operate("status", "--operator", file)
    gone.must_say_in_one_line("refuses the credentials")
    (await operate("operator", "remove", "eve", "--json", *data)).must_say_in_one_line(
        "no operator eve"
    )


async def test_operator_is_added_only_where_the_relays_data_is(stage: FleetStage) -> None:
    nowhere = await operate(
        *("operator", "add", "eve", "--out", stage.folder / "e.toml"),
        *("--data", stage.folder / "none"),
    )
    nowhere.must_say_in_one_line("login.json", "--data DIR", "--admin-broker URL")
    bad = await operate(
        *("operator", "add", "eve:x", "--out", stage.folder / "e.toml", "--data", stage.folder)
    )
    bad.must_say_in_one_line("operator 'eve:x'")


async def test_commands_of_several_operators_at_the_same_moment_all_stand(
    stage: FleetStage,
) -> None:
    """Each a process of its own, each with another key of one layer."""
    pairs = ("log_level=debug", "call_timeout_s=30", "audio.ring_volume=0.3")
    files = [await stage.operator(name) for name in ("ann", "bob", "eve")]
    done = await asyncio.gather(
        *(
            bellwire("fleet", "set", pair, "--default", "--operator", file)
            for pair, file in zip(pairs, files, strict=True)
        )
    )
    assert [ended.code for ended in done] == [0, 0, 0], done
    history = await stage.json("log", "--default")
    assert [row["revision"] for row in history] == [3, 2, 1]
    assert history[0]["settings"] == {
        "log_level": "debug",
        "call_timeout_s": 30,
        "audio": {"ring_volume": 0.3},
    }
