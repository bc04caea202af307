"""Where a broker is, read from its URL."""

import ssl
from pathlib import Path

import pytest

from bellwire.broker.session.address import BrokerAddress, parse_broker_url
from bellwire.signaling.errors import InvalidInput


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("mqtt://broker", BrokerAddress("broker", 1883)),
        ("mqtts://broker", BrokerAddress("broker", 8883, tls=True)),
        ("mqtt://10.0.0.1:4000", BrokerAddress("10.0.0.1", 4000)),
        ("mqtt://[::1]:4000", BrokerAddress("::1", 4000)),
        ("MQTT://Broker", BrokerAddress("broker", 1883)),
        ("mqtt://lobby@broker", BrokerAddress("broker", 1883, username="lobby")),
    ],
)
def test_a_broker_url_gives_its_address(url: str, expected: BrokerAddress) -> None:
    assert parse_broker_url(url) == expected


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("", "must be mqtt"),
        ("broker:1883", "must be mqtt"),
        ("http://broker", "must be mqtt"),
        ("mqtt://", "must be mqtt"),
        ("mqtt://broker:port", "Port could not be cast"),
        ("mqtt://broker:70000", "out of range"),
    ],
)
def test_a_url_that_is_no_brokers_is_refused_and_says_what_is_wrong(
    url: str, complaint: str
) -> None:
    with pytest.raises(InvalidInput, match=complaint):
        parse_broker_url(url)


def test_a_password_in_the_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(InvalidInput, match="BELLWIRE_BROKER_PASSWORD") as refused:
        parse_broker_url("mqtt://lobby:hunter2@broker")
    assert "hunter2" not in str(refused.value)


def test_the_password_stays_out_of_repr_and_url() -> None:
    address = parse_broker_url("mqtt://lobby@broker", password="hunter2")
    assert address.password == "hunter2"
    assert "hunter2" not in repr(address) + address.url


def test_a_username_given_beside_the_url_wins() -> None:
    assert parse_broker_url("mqtt://lobby@broker", username="desk").username == "desk"


@pytest.mark.parametrize("url", ["mqtt://[::1]:4000", "mqtts://broker:8883", "mqtt://broker:1883"])
def test_an_address_writes_the_url_it_was_read_from(url: str) -> None:
    assert parse_broker_url(url).url == url


def test_tls_verifies_the_broker() -> None:
    context = parse_broker_url("mqtts://broker").tls_context()
    assert context is not None
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert parse_broker_url("mqtt://broker").tls_context() is None


def test_a_ca_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "ca.pem"
    with pytest.raises(InvalidInput, match=r"ca\.pem cannot be read"):
        parse_broker_url("mqtts://broker", ca_file=missing).tls_context()


@pytest.mark.parametrize(
    ("url", "loopback", "in_clear"),
    [
        ("mqtt://127.0.0.1", True, False),
        ("mqtt://127.8.8.8:99", True, False),
        ("mqtt://localhost", True, False),
        ("mqtt://[::1]", True, False),
        ("mqtts://localhost", True, False),
        ("mqtt://192.0.2.7", False, True),
        ("mqtt://broker.example.org", False, True),
        ("mqtts://broker.example.org", False, False),
    ],
)
def test_an_address_tells_whether_the_password_crosses_a_network_in_clear(
    url: str, loopback: bool, in_clear: bool
) -> None:
    address = parse_broker_url(url)
    assert (address.is_loopback, address.is_in_clear) == (loopback, in_clear)
