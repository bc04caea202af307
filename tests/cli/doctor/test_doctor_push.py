"""`bellwire doctor --config relay.toml` finds what is wrong with the push settings, and says how to
mend it, before a call is missed."""

import base64
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from bellwire.cli.doctor.diagnosis import Condition, Finding
from bellwire.cli.doctor.push import examine_push
from bellwire.cli.doctor.relay import examine_call_policy
from bellwire.config.private_file import write_private
from bellwire.config.relay import RelaySettings, load_relay_settings
from tests.cli.command import bellwire
from tests.cli.push_credentials import (
    EC_KEY,
    NOW,
    RSA_KEY,
    account,
    certificate,
    pem,
    tls_server,
)

NOWHERE = "127.0.0.1:1"
BUNDLE = "com.example.app"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with credentials in which nothing is wrong."""
    write_private(tmp_path / "AuthKey_ABC123DEFG.p8", pem(EC_KEY))
    write_private(tmp_path / "voip.pem", certificate(RSA_KEY) + pem(RSA_KEY))
    write_private(tmp_path / "account.json", account())
    write_private(tmp_path / "secret", f"whsec_{base64.b64encode(bytes(32)).decode()}\n")
    write_private(tmp_path / "twilio", "0" * 32)
    return tmp_path


def settings(files: Path, more: str = "", *, bundle: str = BUNDLE) -> RelaySettings:
    """Settings with a key and a service account, whose servers are not to be reached."""
    file = files / "relay.toml"
    file.write_text(
        f"""{more}
[apns."{bundle}"]
key_file = "{files}/AuthKey_ABC123DEFG.p8"
key_id = "ABC123DEFG"
team_id = "TEAM123456"
server = "{NOWHERE}"
[fcm."com.example.android"]
credentials_file = "{files}/account.json"
server = "https://{NOWHERE}"
[webhooks.backend]
url = "https://backend.example.org/events"
secret_file = "{files}/secret"
"""
    )
    return load_relay_settings(file)


def with_certificate(files: Path) -> RelaySettings:
    file = files / "relay.toml"
    file.write_text(
        f'[apns."{BUNDLE}"]\ncertificate_file = "{files}/voip.pem"\nserver = "{NOWHERE}"\n'
    )
    return load_relay_settings(file)


def found(settings: RelaySettings, verdict: Condition) -> list[Finding]:
    return [finding for finding in examine_push(settings, NOW) if finding.condition is verdict]


def the_one(settings: RelaySettings, verdict: Condition = Condition.BAD) -> Finding:
    (finding,) = found(settings, verdict)
    assert finding.mend
    return finding


async def test_doctor_examines_a_relays_file_and_finds_nothing_where_all_is_well(
    files: Path,
) -> None:
    settings(files, f'data = "{files}/none"')
    ended = await bellwire("doctor", "--config", files / "relay.toml")
    assert ended.code == 0, ended.out
    assert f"The push settings of {files}/relay.toml" in ended.out
    assert "AuthKey_ABC123DEFG.p8 is an APNs key" in ended.out
    assert "is the account relay@doorbells.example of doorbells" in ended.out
    assert f"secret 1 of {files}/secret is well" in ended.out
    assert f"no relay has run with {files}/none" in ended.out
    assert "The agent of" not in ended.out
    for secret in ("PRIVATE KEY", "whsec_A"):
        assert secret not in ended.out + ended.err


async def test_doctor_examines_the_push_settings_of_the_environment(files: Path) -> None:
    apps = {BUNDLE: {"certificate_file": str(files / "gone.pem"), "server": NOWHERE}}
    more = {"BELLWIRE_APNS": json.dumps(apps), "BELLWIRE_DATA": str(files / "none")}
    ended = await bellwire("doctor", more=more)
    assert ended.code == 1
    assert "The push settings of the environment" in ended.out
    assert "✗" in ended.out
    assert "gone.pem cannot be read" in ended.out


async def test_doctor_names_each_setting_that_is_wrong(files: Path) -> None:
    (files / "relay.toml").write_text('public_url = "nonsense"\n[apns."a.b"]\nkey_id = "x"\n')
    ended = await bellwire("doctor", "--config", files / "relay.toml", "--data", files / "none")
    assert ended.code == 1
    assert "✗ public_url: " in ended.out
    assert "✗ apns.a.b.key_id: " in ended.out


def break_key(files: Path) -> None:
    (files / "AuthKey_ABC123DEFG.p8").write_text("no key")


def break_curve(files: Path) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    (files / "AuthKey_ABC123DEFG.p8").write_text(pem(key))


def remove_key(files: Path) -> None:
    (files / "AuthKey_ABC123DEFG.p8").unlink()


def open_key(files: Path) -> None:
    (files / "AuthKey_ABC123DEFG.p8").chmod(0o644)


def break_account(files: Path) -> None:
    (files / "account.json").write_text("{")


def take_a_users_account(files: Path) -> None:
    (files / "account.json").write_text(account(type="authorized_user"))


def lose_project(files: Path) -> None:
    (files / "account.json").write_text(account(project_id=None))


def break_account_key(files: Path) -> None:
    (files / "account.json").write_text(account(private_key="none"))


def plain_secret(files: Path) -> None:
    (files / "secret").write_text("hunter2")


def no_base64(files: Path) -> None:
    (files / "secret").write_text("whsec_hunter*2")


def short_secret(files: Path) -> None:
    (files / "secret").write_text("whsec_aHVudGVyMg==")


@pytest.mark.parametrize(
    ("spoil", "what", "mend"),
    [
        (break_key, "holds no private key", "Apple's Keys page"),
        (break_curve, "no EC key on the curve P-256", "Apple's Keys page"),
        (remove_key, "cannot be read: No such file", "where the relay starts"),
        (open_key, "everybody may read", "chmod 600"),
        (break_account, "no service account's key", "Firebase console"),
        (take_a_users_account, "no service account's key", "Firebase console"),
        (lose_project, "lacks project_id", "Firebase console"),
        (break_account_key, "holds no private key", "Firebase console"),
        (plain_secret, "does not begin with whsec_", "openssl rand"),
        (no_base64, "is no base64", "openssl rand"),
        (short_secret, "has 7 bytes", "openssl rand"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_file_that_is_wrong_is_found_and_its_secret_is_not_shown(
    spoil: Callable[[Path], None], what: str, mend: str, files: Path
) -> None:
    spoil(files)
    finding = the_one(settings(files))
    assert what in finding.what
    assert mend in finding.mend
    assert "hunter" not in finding.what + finding.mend


def test_key_of_another_id_than_the_settings_say_is_found(files: Path) -> None:
    other = files / "AuthKey_ZZZZZZZZZZ.p8"
    (files / "AuthKey_ABC123DEFG.p8").rename(other)
    settings(files)
    text = (files / "relay.toml").read_text()
    (files / "relay.toml").write_text(text.replace("AuthKey_ABC123DEFG", "AuthKey_ZZZZZZZZZZ"))
    finding = the_one(load_relay_settings(files / "relay.toml"))
    assert "is the key ZZZZZZZZZZ, and key_id says ABC123DEFG" in finding.what


@pytest.mark.parametrize(
    ("bundle", "what"),
    [("com.example.app.voip", ".voip is no part"), ("example app", "look like a bundle id")],
)
def test_bundle_id_that_is_none_is_found(bundle: str, what: str, files: Path) -> None:
    assert what in the_one(settings(files, bundle=bundle)).what


@pytest.mark.parametrize(
    "made",
    [
        {"name": f"VoIP Services: {BUNDLE}"},
        {"name": "anything", "user": f"{BUNDLE}.voip"},
        {"name": f"Apple Push Services: {BUNDLE}", "topics": f"{BUNDLE}.voip"},
    ],
    ids=["name", "user id", "topics"],
)
def test_certificate_of_each_kind_that_may_push_voip_is_well(
    made: dict[str, str], files: Path
) -> None:
    (files / "voip.pem").write_text(certificate(RSA_KEY, **made) + pem(RSA_KEY))  # type: ignore[arg-type]
    assert not found(with_certificate(files), Condition.BAD)
    assert not found(with_certificate(files), Condition.WARNING)


@pytest.mark.parametrize(
    ("made", "verdict", "what"),
    [
        ({"days": -1}, Condition.BAD, "expired on"),
        ({"days": 29}, Condition.WARNING, "expires in 29 days"),
        ({"days": 31}, None, ""),
        ({"name": f"Apple Push Services: {BUNDLE}"}, Condition.BAD, "is no VoIP certificate"),
        ({"name": "VoIP Services: com.example.other"}, Condition.BAD, "com.example.other"),
        ({"name": "x", "topics": f"{BUNDLE}.voip.other"}, Condition.BAD, "is no VoIP certificate"),
    ],
    ids=["expired", "soon", "not soon", "no voip", "other app", "other topic"],
)
def test_certificate_is_found_that_has_expired_soon_will_or_is_another_apps(
    made: dict[str, object], verdict: Condition | None, what: str, files: Path
) -> None:
    (files / "voip.pem").write_text(certificate(RSA_KEY, **made) + pem(RSA_KEY))  # type: ignore[arg-type]
    findings = [
        *found(with_certificate(files), Condition.BAD),
        *found(with_certificate(files), Condition.WARNING),
    ]
    assert [finding.condition for finding in findings] == ([] if verdict is None else [verdict])
    assert all(what in finding.what for finding in findings)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (certificate(RSA_KEY), "does not hold the private key"),
        (certificate(RSA_KEY) + pem(EC_KEY), "does not hold the private key"),
        (pem(RSA_KEY), "holds no certificate"),
    ],
    ids=["no key", "another key", "no certificate"],
)
def test_certificate_file_without_both_halves_is_found(text: str, what: str, files: Path) -> None:
    (files / "voip.pem").write_text(text)
    assert what in the_one(with_certificate(files)).what


@pytest.mark.parametrize(
    ("more", "verdict", "what"),
    [
        ('[webhooks.a]\nurl = "https://10.0.0.1/x"', Condition.BAD, "private network"),
        (
            '[webhooks.a]\nurl = "http://localhost/x"\nallow_private_network = true',
            *(None, ""),
        ),
        (
            '[webhooks.a]\nurl = "http://backend.example.org"',
            Condition.BAD,
            "for private networks only",
        ),
        ('[webhooks.a]\nurl = "https:///x"', Condition.BAD, "names no host"),
    ],
)
def test_webhook_that_would_not_be_sent_or_not_safely_is_found(
    more: str, verdict: Condition | None, what: str, files: Path
) -> None:
    settings(files)
    text = (files / "relay.toml").read_text()
    (files / "relay.toml").write_text(f'{text}{more}\nsecret_file = "{files}/secret"\n')
    given = load_relay_settings(files / "relay.toml")
    findings = [*found(given, Condition.BAD), *found(given, Condition.WARNING)]
    assert [finding.condition for finding in findings] == ([] if verdict is None else [verdict])
    assert all(what in finding.what for finding in findings)


def test_account_of_another_project_and_app_without_an_account_are_found(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GOOGLE_CLOUD_PROJECT", raising=False)
    file = files / "fcm.toml"
    file.write_text(
        f'[fcm."a.b"]\ncredentials_file = "{files}/account.json"\nproject_id = "x"\n'
        f'server = "https://{NOWHERE}"'
    )
    finding = the_one(load_relay_settings(file), Condition.WARNING)
    assert "is of the project doorbells, and project_id says x" in finding.what
    file.write_text(f'[fcm."a.b"]\nserver = "https://{NOWHERE}"')
    assert "neither an account nor" in the_one(load_relay_settings(file), Condition.WARNING).what
    file.write_text(f'[fcm."1.b"]\nproject_id = "x"\nserver = "https://{NOWHERE}"')
    assert "look like a package name" in the_one(load_relay_settings(file)).what


@pytest.mark.parametrize(
    ("minutes_off", "verdict"), [(0, Condition.GOOD), (-70, Condition.BAD), (70, Condition.BAD)]
)
def test_clock_is_compared_with_apples_and_googles(
    minutes_off: int, verdict: Condition, files: Path
) -> None:
    with tls_server(files, minutes_off=minutes_off, status=404) as server:
        settings(files)
        text = (files / "relay.toml").read_text().replace(NOWHERE, server)
        trusted = text.replace("server =", f'ca_file = "{files}/ca.pem"\nserver =')
        (files / "relay.toml").write_text(trusted)
        given = load_relay_settings(files / "relay.toml")
        clocks = [f for f in examine_push(given, NOW) if "machine's clock" in f.what]
    # Apple's and Google's stand-ins are one server here, which is asked once.
    assert [finding.condition for finding in clocks] == [verdict]
    if verdict is Condition.BAD:
        assert "its tokens are refused" in clocks[0].what
        assert "NTP" in clocks[0].mend


def test_clock_that_cannot_be_compared_is_said_to_be_so_and_is_no_fault(files: Path) -> None:
    unknown = found(settings(files), Condition.UNKNOWN)
    assert len(unknown) == 1
    assert "clock was not compared" in unknown[0].what
    assert not found(settings(files), Condition.BAD)


def test_public_url_that_leads_elsewhere_is_found_and_twilio_needs_one(files: Path) -> None:
    token = f'twilio_auth_token_file = "{files}/twilio"\n'
    assert "public_url is not" in the_one(settings(files, token)).what
    (files / "twilio").write_text("a password")
    given = settings(files, f'{token}public_url = "https://{NOWHERE}"')
    assert "does not hold Twilio's auth token" in the_one(given).what
    assert "is not reached from here" in found(given, Condition.UNKNOWN)[0].what
    query = settings(files, 'public_url = "https://relay.example.org/?a=b"')
    assert "is no plain URL" in the_one(query).what


async def test_a_relay_where_everybody_may_ring_everybody_is_warned_of_loudly(
    tmp_path: Path,
) -> None:
    file = tmp_path / "relay.toml"
    for without in ("", '[policy]\nrules = [{from = ["a"], to = ["b"], allow = true}]\n'):
        file.write_text(f'listen = "127.0.0.1:1"\n{without}')
        ended = await bellwire("doctor", "--config", file, "--data", tmp_path / "none")
        assert "! EVERYBODY MAY RING EVERYBODY" in ended.out
    file.write_text('[policy]\ndefault = "deny"\n')
    (finding,) = examine_call_policy(load_relay_settings(file))
    assert finding.condition is Condition.GOOD
    assert "0 rules, and what none fits is refused" in finding.what


def test_relay_whose_backend_says_whom_calls_ring_is_not_warned_of(files: Path) -> None:
    (files / "twilio").write_text("0123456789abcdef" * 2)
    told = f'twilio_auth_token_file = "{files}/twilio"\nvoice_url = "https://{NOWHERE}/voice"\n'
    given = settings(files, told)
    assert not found(given, Condition.BAD), "public_url is for what Twilio itself would sign"
    (finding,) = examine_call_policy(given)
    assert finding.condition is Condition.GOOD
    assert "the backend at voice_url says" in finding.what


def test_ca_file_that_holds_no_certificate_is_found(files: Path) -> None:
    (files / "ca.pem").write_text("none")
    settings(files)
    text = (files / "relay.toml").read_text()
    (files / "relay.toml").write_text(text + f'ca_file = "{files}/ca.pem"\n')
    assert "holds no certificate" in the_one(load_relay_settings(files / "relay.toml")).what
