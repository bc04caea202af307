"""Settings of the relay: a file, over it the environment, over that the flags."""

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from bellwire.config.relay import RelaySettings, default_data_folder, load_relay_settings
from bellwire.signaling.errors import InvalidInput

PASSWORD = "a password that nobody may read"


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.startswith("BELLWIRE_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "relay.toml"


def test_a_relay_that_is_told_nothing_listens_on_loopback_alone() -> None:
    settings = load_relay_settings()
    assert (settings.listen, settings.host, settings.port) == ("127.0.0.1:8080", "127.0.0.1", 8080)
    assert settings.broker is None and settings.database is None
    assert settings.max_body_bytes == 65_536
    assert (settings.log_level, settings.log_format) == ("info", "auto")


@pytest.mark.parametrize(
    ("in_file", "in_environment", "as_flag", "in_force"),
    [
        (None, None, None, "info"),
        ("debug", None, None, "debug"),
        ("debug", "warning", None, "warning"),
        ("debug", "warning", "error", "error"),
        ("debug", None, "error", "error"),
        (None, "warning", "error", "error"),
        ("debug", "", None, "debug"),  # an empty variable is one that is not set
    ],
)
def test_flags_win_over_the_environment_and_that_over_the_file(
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    in_file: str | None,
    in_environment: str | None,
    as_flag: str | None,
    in_force: str,
) -> None:
    file.write_text("" if in_file is None else f'log_level = "{in_file}"')
    if in_environment is not None:
        monkeypatch.setenv("BELLWIRE_LOG_LEVEL", in_environment)
    assert load_relay_settings(file, log_level=as_flag).log_level == in_force


def test_each_setting_is_taken_from_the_highest_source_that_has_it(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text('listen = "0.0.0.0:1"\nissuer = "file"\nmax_body_bytes = 2048\n')
    monkeypatch.setenv("BELLWIRE_ISSUER", "environment")
    monkeypatch.setenv("BELLWIRE_DATA", "/srv/bellwire")
    settings = load_relay_settings(file, listen="[::1]:2", broker=None)
    assert (settings.listen, settings.host, settings.port) == ("[::1]:2", "::1", 2)
    assert (settings.issuer, settings.max_body_bytes) == ("environment", 2048)
    assert settings.data == Path("/srv/bellwire")


def test_a_file_of_one_relay_is_not_another_ones(file: Path) -> None:
    file.write_text('issuer = "first"')
    assert load_relay_settings(file).issuer == "first"
    assert load_relay_settings().issuer == "bellwire"


@pytest.mark.parametrize(
    ("line", "setting", "message"),
    [
        ("listen = 5", "listen", "string"),
        ("max_body_bytes = 3", "max_body_bytes", "1024"),
        ('max_body_bytes = "many"', "max_body_bytes", "integer"),
        ("idempotency_keep_s = 59", "idempotency_keep_s", "60"),
        ("broker_port = 70000", "broker_port", "65535"),
        ('log_level = "loud"', "log_level", "'debug', 'info', 'warning' or 'error'"),
        ('log_format = "xml"', "log_format", "'auto', 'console' or 'json'"),
    ],
)
def test_a_mistake_in_the_file_is_named_by_its_setting(
    file: Path, line: str, setting: str, message: str
) -> None:
    file.write_text(line)
    with pytest.raises(ValidationError) as refused:
        load_relay_settings(file)
    (error,) = refused.value.errors()
    assert error["loc"] == (setting,)
    assert message in error["msg"]


def test_all_mistakes_are_reported_together(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("max_body_bytes = 3")
    monkeypatch.setenv("BELLWIRE_BROKER_PORT", "none")
    with pytest.raises(ValidationError) as refused:
        load_relay_settings(file, log_level="loud")
    places = {error["loc"] for error in refused.value.errors()}
    assert places == {("max_body_bytes",), ("broker_port",), ("log_level",)}


def test_a_file_that_is_missing_or_no_toml_is_refused_with_its_name(file: Path) -> None:
    with pytest.raises(InvalidInput, match=r"relay\.toml cannot be read: No such file"):
        load_relay_settings(file)
    file.write_text("listen = ")
    with pytest.raises(InvalidInput, match=r"relay\.toml is not a TOML file"):
        load_relay_settings(file)


def test_a_list_in_the_environment_that_is_no_json_is_refused_with_its_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was blamed on the file `None`."""
    monkeypatch.setenv("BELLWIRE_EMERGENCY_CALLERS", "porter")
    with pytest.raises(InvalidInput, match=r'^BELLWIRE_EMERGENCY_CALLERS .* JSON: .*\["one"'):
        load_relay_settings()


def test_a_setting_that_there_is_not_is_refused_by_name(file: Path) -> None:
    file.write_text('listn = "127.0.0.1:1"')
    with pytest.raises(ValidationError) as refused:
        load_relay_settings(file)
    assert [error["loc"] for error in refused.value.errors()] == [("listn",)]


@pytest.mark.parametrize("listen", ["8080x", "host:", "host:http", "host:65536", "host:-1", ""])
def test_an_address_without_a_port_number_is_a_mistake(listen: str) -> None:
    with pytest.raises(ValueError, match=r"port|invalid literal"):
        _ = load_relay_settings(listen=listen).port


@pytest.mark.parametrize("source", ["environment", "file"])
def test_the_brokers_password_shows_nowhere(
    file: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    file.write_text(f'broker_password = "{PASSWORD}"' if source == "file" else "")
    if source == "environment":
        monkeypatch.setenv("BELLWIRE_BROKER_PASSWORD", PASSWORD)
    settings = load_relay_settings(file)
    assert settings.broker_password is not None
    assert settings.broker_password.get_secret_value() == PASSWORD
    for shown in (
        repr(settings),
        str(settings),
        settings.model_dump_json(),
        f"{settings.model_dump()}",
    ):
        assert PASSWORD not in shown


def test_settings_in_force_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load_relay_settings().listen = "0.0.0.0:80"  # type: ignore[misc] # what is tested


def test_data_goes_where_systemd_or_the_users_folders_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/bellwire:/var/lib/other")
    monkeypatch.setenv("XDG_DATA_HOME", "/home/a/data")
    assert default_data_folder() == Path("/var/lib/bellwire")
    monkeypatch.delenv("STATE_DIRECTORY")
    assert RelaySettings().data == Path("/home/a/data/bellwire")
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", "/home/a")
    assert default_data_folder() == Path("/home/a/.local/share/bellwire")


def test_the_call_policy_stands_in_the_file_with_rules_in_their_order(file: Path) -> None:
    file.write_text(
        """
emergency_callers = ["porter", "client:fire"]
[policy]
default = "deny"
rules = [
  {from = ["lobby"], to = ["group:office", "client:ann"], allow = true},
  {from = ["*"], to = ["porter"], allow = false},
]
"""
    )
    settings = load_relay_settings(file)
    assert settings.emergency_callers == ("porter", "fire")
    assert settings.policy.default == "deny"
    assert [(rule.from_, rule.to, rule.allow) for rule in settings.policy.rules] == [
        (("lobby",), ("group:office", "ann"), True),
        (("*",), ("porter",), False),
    ]


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ('{from = ["a"], to = ["group:a b"], allow = true}', "names no group"),
        ('{from = [], to = ["b"], allow = true}', "nobody is named"),
        ('{from = ["a"], allow = true}', "policy.rules.0.to"),
    ],
)
def test_a_rule_that_cannot_be_is_refused_by_its_place(file: Path, rule: str, told: str) -> None:
    file.write_text(f"[policy]\nrules = [{rule}]")
    with pytest.raises(ValidationError, match=told):
        load_relay_settings(file)


def test_a_relay_lets_everybody_ring_everybody_unless_told() -> None:
    assert load_relay_settings().policy.lets_all_ring_all
