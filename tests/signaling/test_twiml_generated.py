"""TwiML as Twilio's own library writes it, in whatever shape: read back exactly, or refused by name."""

import re
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twilio.twiml.voice_response import VoiceResponse

from bellwire.signaling.calls.dials import Callback, CallbackMethod, LegEvent
from bellwire.signaling.errors import InvalidInput
from bellwire.signaling.identifiers import Identity
from bellwire.signaling.twi_params import MAX_PARAMETERS
from bellwire.signaling.twiml import TwimlClient, TwimlDial, parse_twiml

# What XML 1.0 can hold (§2.2): no other character can stand in a document at all.
in_xml = st.characters(
    codec="utf-8",
    exclude_characters="".join(map(chr, {*range(32)} - {9, 10, 13})) + "\ufffe\uffff",
)
identities = (
    st.text(in_xml.filter(str.isprintable), min_size=1, max_size=20)
    .filter(lambda name: not any(c.isspace() for c in name))
    .filter(lambda name: not name.startswith("client:"))
)
names = st.text("ABCxyz019_-.!$'*,:;<>?@[]^`{|}~/\"()\\", min_size=1, max_size=20)
parameters = st.dictionaries(names, st.text(in_xml, max_size=30), max_size=6)
timeouts = st.integers(1, 600)


def written(
    clients: Sequence[tuple[str, Mapping[str, str]]], *, short: bool = False, **attributes: object
) -> bytes:
    """A document by Twilio's library."""
    response = VoiceResponse()
    dial = response.dial(**attributes)
    for identity, given_parameters in clients:
        client = dial.client(identity if short else None)
        if not short:
            client.identity(identity)
        for name, value in given_parameters.items():
            client.parameter(name=name, value=value)
    return str(response).encode()


@given(
    st.lists(st.tuples(identities, parameters), min_size=1, max_size=5),
    st.booleans(),
    st.none() | identities,
    st.none() | timeouts,
    st.none() | st.booleans(),
)
def test_what_twilio_writes_reads_back_exactly(
    clients: list[tuple[str, dict[str, str]]],
    short: bool,
    caller: str | None,
    timeout: int | None,
    bridge: bool | None,
) -> None:
    document = written(
        clients, short=short, caller_id=caller, timeout=timeout, answer_on_bridge=bridge
    )
    assert parse_twiml(document) == TwimlDial(
        clients=tuple(TwimlClient(Identity(name), given) for name, given in clients),
        caller=None if caller is None else Identity(caller),
        timeout_s=timeout,
        answer_on_bridge=bool(bridge),
    )


@given(
    st.permutations(list(LegEvent)).flatmap(lambda all_: st.integers(1, 4).map(lambda n: all_[:n])),
    st.sampled_from(list(CallbackMethod)),
    st.integers(1, 24 * 3600),
)
def test_what_twilio_writes_of_callbacks_reads_back_exactly(
    events: list[LegEvent], method: CallbackMethod, time_limit_s: int
) -> None:
    response = VoiceResponse()
    dial = response.dial(action="/over?a=1&b=2", method=method.value, time_limit=time_limit_s)
    dial.client(
        "bob",
        status_callback="https://other.example/s?x=<&>",
        status_callback_event=" ".join(events),
        status_callback_method=method.value,
    )
    read = parse_twiml(str(response).encode(), "https://backend.example/voice")
    assert read.action == Callback("https://backend.example/over?a=1&b=2", method)
    assert read.time_limit_s == time_limit_s
    (client,) = read.clients
    assert client.status_callback == Callback("https://other.example/s?x=<&>", method)
    assert client.events == tuple(event for event in LegEvent if event in events)


@given(parameters)
def test_order_of_parameters_is_kept(given_parameters: dict[str, str]) -> None:
    (client,) = parse_twiml(written([("bob", given_parameters)])).clients
    assert list(client.custom_parameters.items()) == list(given_parameters.items())


@given(identities)
def test_identity_may_be_written_as_a_client_address(identity: str) -> None:
    document = written([(f"client:{identity}", {})], caller_id=f"client:{identity}")
    parsed = parse_twiml(document)
    assert (parsed.clients[0].identity, parsed.caller) == (identity, identity)


@given(st.text(min_size=1, max_size=10), st.text(max_size=10))
def test_any_parameter_reads_back_or_is_refused(name: str, value: str) -> None:
    try:
        document = written([("bob", {name: value})])
    except UnicodeEncodeError:
        return  # A lone surrogate, which Twilio's library cannot write.
    try:
        (client,) = parse_twiml(document).clients
    except InvalidInput as refusal:
        assert refusal.detail
    else:
        assert client.custom_parameters == {name: value}


def test_as_many_parameters_as_an_invite_may_have_are_read_and_one_more_is_refused() -> None:
    many = {f"p{n}": "" for n in range(MAX_PARAMETERS)}
    (client,) = parse_twiml(written([("bob", many)])).clients
    assert client.custom_parameters == many
    with pytest.raises(InvalidInput, match="65 custom parameters"):
        parse_twiml(written([("bob", {**many, "one more": ""})]))


@given(
    st.sampled_from(
        ["say", "play", "hangup", "pause", "record", "redirect", "reject", "leave", "gather"]
    ),
    st.booleans(),
)
def test_other_verb_of_twilios_is_refused_by_name(verb: str, first: bool) -> None:
    response = VoiceResponse()
    arguments = ("text",) if verb in ("say", "redirect", "play") else ()
    if first:
        getattr(response, verb)(*arguments)
    response.dial().client("bob")
    if not first:
        getattr(response, verb)(*arguments)
    with pytest.raises(InvalidInput, match=re.escape(f"<{verb.capitalize()}>")):
        parse_twiml(response.to_xml().encode())
