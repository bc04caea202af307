"""Every error is one line that says what to do, with exit code 1; never a traceback, never a secret."""

import socket
from pathlib import Path

import pytest

from tests.cli.command import bellwire

NOWHERE = "http://127.0.0.1:1"


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text("bwk_of-nobody\n")
    return path


@pytest.mark.parametrize(
    "command",
    [
        ("devices", "list"),
        ("devices", "remove", "gate"),
        ("token", "alice"),
        ("call", "alice"),
    ],
    ids=" ".join,
)
async def test_relay_that_does_not_answer_is_named_with_what_starts_one(
    command: tuple[str, ...], key: Path
) -> None:
    ended = await bellwire(*command, "--relay", NOWHERE, "--api-key-file", key)
    ended.must_say_in_one_line(NOWHERE, "bellwire relay", "--relay URL")


async def test_missing_api_key_says_the_three_ways_to_give_one(tmp_path: Path) -> None:
    ended = await bellwire("devices", "list", "--relay", NOWHERE, "--data", tmp_path / "none")
    ended.must_say_in_one_line("--data DIR", "--api-key-file FILE", "BELLWIRE_API_KEY")


async def test_agent_without_its_file_is_told_how_to_make_one(tmp_path: Path) -> None:
    missing = tmp_path / "gate.toml"
    ended = await bellwire("agent", "--config", missing, "--simulate")
    ended.must_say_in_one_line(str(missing), "bellwire devices add")


async def test_agent_with_a_file_that_is_no_toml_is_told_where(tmp_path: Path) -> None:
    broken = tmp_path / "gate.toml"
    broken.write_text('device_id = "gate"\nidentity = [')
    ended = await bellwire("agent", "--config", broken, "--simulate")
    ended.must_say_in_one_line(str(broken), "at end of document")


async def test_agent_with_wrong_settings_is_told_each_place_and_no_secret(tmp_path: Path) -> None:
    wrong = tmp_path / "gate.toml"
    wrong.write_text(
        'device_id = "gate"\nidentity = "gate"\ncall_timeout_s = 0\nshoe_size = 43\n'
        '[broker]\nurl = "mqtt://127.0.0.1"\nusername = "gate"\npassword = ["hunter2"]\n'
    )
    ended = await bellwire("agent", "--config", wrong, "--simulate")
    ended.must_say_in_one_line(str(wrong), "call_timeout_s", "shoe_size", "broker.password")
    assert "hunter2" not in ended.err + ended.out


@pytest.mark.parametrize(
    ("text", "words"),
    [(None, ("cannot be read",)), ("listen = [", ("TOML", "at end of document"))],
    ids=["missing", "no TOML"],
)
async def test_relay_names_a_settings_file_that_it_cannot_read(
    text: str | None, words: tuple[str, ...], tmp_path: Path
) -> None:
    file = tmp_path / "relay.toml"
    if text is not None:
        file.write_text(text)
    ended = await bellwire("relay", "--config", file, "--data", tmp_path / "data")
    ended.must_say_in_one_line(str(file), *words)


@pytest.mark.parametrize("listen", ["nonsense", "127.0.0.1:99999", "127.0.0.1:", "127.0.0.1"])
async def test_relay_refuses_an_address_that_is_none(listen: str, tmp_path: Path) -> None:
    ended = await bellwire("relay", "--listen", listen, "--data", tmp_path / "data")
    ended.must_say_in_one_line(listen, "HOST:PORT")


async def test_relay_says_that_its_port_is_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        ended = await bellwire("relay", "--listen", listen, "--data", tmp_path / "data")
    ended.must_say_in_one_line(listen, "in use", "--listen")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://broker", ("mqtt(s)://HOST",)),
        ("mqtt://", ("mqtt(s)://HOST",)),
        ("mqtt://relay:hunter2@broker", ("BELLWIRE_BROKER_PASSWORD",)),
    ],
)
async def test_relay_refuses_a_broker_url_that_is_wrong_or_holds_a_password(
    url: str, words: tuple[str, ...], tmp_path: Path
) -> None:
    ended = await bellwire(
        "relay", "--listen", "127.0.0.1:0", "--data", tmp_path / "data", "--broker", url
    )
    ended.must_say_in_one_line(*words)
    assert "hunter2" not in ended.err + ended.out


async def test_relay_refuses_a_data_directory_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    data = tmp_path / "file" / "data"
    ended = await bellwire("relay", "--listen", "127.0.0.1:0", "--data", data)
    ended.must_say_in_one_line(str(data))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ("whom", "--twiml FILE")),
        (("bob", "--param", "reason"), ("reason", "NAME=VALUE")),
        (("bob", "--param", "a=1", "--param", "a=2"), ("given twice",)),
        (("--twiml", "/nowhere.xml"), ("/nowhere.xml",)),
    ],
    ids=["nobody", "param", "param twice", "twiml"],
)
async def test_call_says_what_is_wrong_with_its_arguments(
    arguments: tuple[str, ...], words: tuple[str, ...], key: Path
) -> None:
    ended = await bellwire("call", *arguments, "--relay", NOWHERE, "--api-key-file", key)
    ended.must_say_in_one_line(*words)


@pytest.mark.parametrize(
    ("device", "identity", "wrong"),
    [("bad id!", "gate", "bad id!"), ("gate", "two words", "two words")],
)
async def test_names_that_are_none_are_refused_before_the_relay_is_asked(
    device: str, identity: str, wrong: str, tmp_path: Path, key: Path
) -> None:
    out = tmp_path / "gate.toml"
    ended = await bellwire(
        *("devices", "add", device, "--identity", identity, "--out", out),
        *("--relay", NOWHERE, "--api-key-file", key),
    )
    ended.must_say_in_one_line(wrong, "must be")
    assert not out.exists()


async def test_live_demo_without_a_keyboard_says_how_to_do_without() -> None:
    (await bellwire("demo")).must_say_in_one_line("--once")
