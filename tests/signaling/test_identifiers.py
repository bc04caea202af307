"""Identities, device ids and call SIDs: what they look like, and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from bellwire.signaling.errors import InvalidInput
from bellwire.signaling.identifiers import (
    CallSidField,
    DeviceIdField,
    IdentityField,
    new_call_sid,
    parse_call_sid,
    parse_device_id,
    parse_identity,
    wire_address,
)
from bellwire.signaling.tokens import AccessTokenClaims

MILLISECONDS = st.integers(0, 2**48 - 1)
TEN_BYTES = st.binary(min_size=10, max_size=10)


def accepts(text: str) -> bool:
    try:
        parse_identity(text)
    except InvalidInput:
        return False
    return True


IDENTITIES = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=121)


@pytest.mark.parametrize(
    ("text", "identity"),
    [
        ("alice", "alice"),
        ("client:alice", "alice"),
        ("zoë@example.org", "zoë@example.org"),
        ("+4930123456", "+4930123456"),
        ("sip:bob@example.org", "sip:bob@example.org"),
        ("a" * 121, "a" * 121),
        ("client:" + "a" * 121, "a" * 121),
    ],
)
def test_identity_is_the_name_with_or_without_client_before_it(text: str, identity: str) -> None:
    assert parse_identity(text) == identity
    assert TypeAdapter(IdentityField).validate_python(text) == identity


@pytest.mark.parametrize(
    "text",
    [
        "",
        "client:",
        " ",
        "al ice",
        "alice\n",
        "\talice",
        "a\x00b",
        "a\x7f",
        "a\xa0b",
        "\ud800",
        "a\u200b",
        "a\u202eb",
        "a" * 122,
        "client:" + "a" * 122,
    ],
)
def test_empty_long_or_unprintable_identity_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="identity"):
        parse_identity(text)
    with pytest.raises(ValidationError):
        TypeAdapter(IdentityField).validate_python(text)


@given(IDENTITIES.filter(accepts))
def test_identity_comes_back_from_its_address_on_the_wire(text: str) -> None:
    identity = parse_identity(text)
    assert parse_identity(wire_address(identity)) == identity


@given(st.text(st.sampled_from("client:ab"), max_size=30).filter(accepts))
def test_identity_that_was_read_once_is_the_same_when_read_again(text: str) -> None:
    assert parse_identity(parse_identity(text)) == parse_identity(text)


def test_token_made_for_one_identity_never_becomes_another_ones() -> None:
    # What a token request reads from `client:client:alice` must not be read as `alice` later.
    try:
        identity = TypeAdapter(IdentityField).validate_python("client:client:alice")
    except ValidationError:
        return
    claims = AccessTokenClaims(iss="relay", sub=identity, iat=1, exp=2, jti="x")
    assert claims.sub == identity


@pytest.mark.parametrize(
    ("identity", "address"),
    [
        ("alice", "client:alice"),
        ("+4930123456", "+4930123456"),
        ("+49x", "client:+49x"),
        ("sip:bob@example.org", "sip:bob@example.org"),
        ("sips:bob@example.org", "sips:bob@example.org"),
        ("sipho", "client:sipho"),
    ],
)
def test_client_number_and_sip_address_are_written_as_twilio_writes_them(
    identity: str, address: str
) -> None:
    assert wire_address(parse_identity(identity)) == address


@pytest.mark.parametrize("text", ["a", "0", "Front-door_2.pi", "a" * 64])
def test_device_id_is_taken(text: str) -> None:
    assert parse_device_id(text) == text
    assert TypeAdapter(DeviceIdField).validate_python(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a/b",
        "/",
        "+",
        "#",
        "a+",
        "a#",
        "a b",
        "a\n",
        "\na",
        ".",
        "..",
        "-a",
        "_a",
        "$SYS",
        "é",
        "a\x00",
        "a" * 65,
        "\N{FULLWIDTH LATIN SMALL LETTER A}",
        "a²",
    ],
)
def test_device_id_that_could_not_be_a_level_of_a_topic_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="device id"):
        parse_device_id(text)
    with pytest.raises(ValidationError):
        TypeAdapter(DeviceIdField).validate_python(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "CA",
        "CA" + "0" * 31,
        "CA" + "0" * 33,
        "ca" + "0" * 32,
        "CA" + "A" * 32,
        "CA" + "g" * 32,
        "CB" + "0" * 32,
        "CA" + "0" * 32 + "\n",
        " CA" + "0" * 32,
        "CA" + "\N{ARABIC-INDIC DIGIT ONE}" * 32,
    ],
)
def test_call_sid_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="call SID"):
        parse_call_sid(text)
    with pytest.raises(ValidationError):
        TypeAdapter(CallSidField).validate_python(text)


@given(MILLISECONDS, TEN_BYTES)
def test_new_call_sid_is_a_call_sid(at_ms: int, randomness: bytes) -> None:
    sid = new_call_sid(at_ms, randomness)
    assert parse_call_sid(sid) == sid
    assert TypeAdapter(CallSidField).validate_python(sid) == sid


@given(MILLISECONDS, MILLISECONDS, TEN_BYTES, TEN_BYTES)
def test_call_sids_sort_by_time(one: int, other: int, a: bytes, b: bytes) -> None:
    if one != other:
        assert (new_call_sid(one, a) < new_call_sid(other, b)) == (one < other)


@given(MILLISECONDS, TEN_BYTES, TEN_BYTES)
def test_call_sids_of_one_instant_differ_by_their_randomness(
    at_ms: int, a: bytes, b: bytes
) -> None:
    assert (new_call_sid(at_ms, a) == new_call_sid(at_ms, b)) == (a == b)


@pytest.mark.parametrize("length", [0, 9, 11, 16])
def test_call_sid_with_too_little_or_too_much_randomness_is_refused(length: int) -> None:
    with pytest.raises(InvalidInput, match=rf"10 .*{length}"):
        new_call_sid(0, bytes(length))


@pytest.mark.parametrize("at_ms", [-1, 2**48])
def test_call_sid_of_a_time_it_cannot_hold_is_refused(at_ms: int) -> None:
    with pytest.raises(InvalidInput):
        new_call_sid(at_ms, bytes(10))
