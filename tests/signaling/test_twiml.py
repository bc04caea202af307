"""TwiML as an invite: what Twilio's documents say is understood, all else is refused by name."""

import re
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bellwire.signaling.calls.calls import RejectStatus
from bellwire.signaling.calls.dials import Callback, CallbackMethod, LegEvent
from bellwire.signaling.errors import InvalidInput, TooLarge
from bellwire.signaling.identifiers import Identity
from bellwire.signaling.twiml import (
    MAX_BYTES,
    TwimlAnswer,
    TwimlClient,
    TwimlDial,
    TwimlHangup,
    TwimlReject,
    check_nothing_more,
    parse_answer,
    parse_twiml,
)

BOB = "<Client>bob</Client>"


def response(inside: str) -> bytes:
    return f'<?xml version="1.0" encoding="UTF-8"?><Response>{inside}</Response>'.encode()


def dial(inside: str = BOB, attributes: str = "") -> bytes:
    return response(f"<Dial {attributes}>{inside}</Dial>")


def client(inside: str) -> TwimlClient:
    (only,) = parse_twiml(dial(f"<Client>{inside}</Client>")).clients
    return only


def test_document_of_the_seed_is_understood() -> None:
    document = b"""<?xml version="1.0" encoding="UTF-8"?>
<Response>
<Dial callerId="client:alice">
<Client>
<Identity>bob</Identity>
<Parameter name="caller_first_name" value="alice" />
<Parameter name="caller_last_name" value="smith" />
</Client>
</Dial>
</Response>
"""
    assert parse_twiml(document) == TwimlDial(
        clients=(
            TwimlClient(
                Identity("bob"), {"caller_first_name": "alice", "caller_last_name": "smith"}
            ),
        ),
        caller=Identity("alice"),
        timeout_s=None,
        answer_on_bridge=False,
    )


def test_short_form_names_the_client_in_its_text() -> None:
    assert parse_twiml(dial("<Client> bob\n</Client>")) == TwimlDial(
        (TwimlClient(Identity("bob")),)
    )


def test_several_clients_keep_their_order_and_each_its_own_parameters() -> None:
    parsed = parse_twiml(
        dial(
            "<Client>carol</Client>"
            '<Client><Identity>bob</Identity><Parameter name="floor" value="2"/></Client>'
            '<Client><Identity>dave</Identity><Parameter name="floor" value="3"/></Client>'
        )
    )
    assert parsed.clients == (
        TwimlClient(Identity("carol")),
        TwimlClient(Identity("bob"), {"floor": "2"}),
        TwimlClient(Identity("dave"), {"floor": "3"}),
    )


def test_parameters_keep_their_order() -> None:
    inside = "<Identity>bob</Identity>" + "".join(
        f'<Parameter name="{name}" value=""/>' for name in "zamb"
    )
    assert list(client(inside).custom_parameters) == ["z", "a", "m", "b"]


def test_parameter_value_may_be_any_text() -> None:
    inside = '<Identity>bob</Identity><Parameter name="a" value="&lt;T&#252;r&gt; &amp; 100%"/>'
    assert client(inside).custom_parameters == {"a": "<Tür> & 100%"}


@pytest.mark.parametrize(
    ("attribute", "caller"),
    [
        ('callerId="client:alice"', "alice"),
        ('callerId="alice"', "alice"),
        ('callerId="+4930123456"', "+4930123456"),
        ("", None),
    ],
)
def test_caller_id_names_the_caller(attribute: str, caller: str | None) -> None:
    assert parse_twiml(dial(attributes=attribute)).caller == caller


@pytest.mark.parametrize(
    ("text", "seconds"), [("1", 1), ("30", 30), ("600", 600), ("030", 30), ("0000000600", 600)]
)
def test_timeout_is_taken_in_seconds(text: str, seconds: int) -> None:
    # Zeros before a number say nothing; refusing them is as good as ignoring them.
    try:
        parsed = parse_twiml(dial(attributes=f'timeout="{text}"'))
    except InvalidInput:
        assert text.startswith("0")
    else:
        assert parsed.timeout_s == seconds


def test_url_that_twilio_would_push_by_is_refused_by_name_with_the_reason() -> None:
    url = "https://relay.example.org/v1/twilio/notifications"
    client = f'<Client clientNotificationUrl="{url}"><Identity>bob</Identity></Client>'
    with pytest.raises(
        InvalidInput, match=r"'clientNotificationUrl' \(the relay pushes by itself\)"
    ):
        parse_twiml(dial(client))


@pytest.mark.parametrize(("text", "expected"), [("true", True), ("false", False)])
def test_answer_on_bridge_is_taken(text: str, expected: bool) -> None:
    assert parse_twiml(dial(attributes=f'answerOnBridge="{text}"')).answer_on_bridge is expected


def test_comments_and_character_data_sections_are_read_as_xml_means_them() -> None:
    document = dial("<!-- who --><Client><![CDATA[bob]]><!-- is it --></Client>")
    assert parse_twiml(document).clients == (TwimlClient(Identity("bob")),)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "iso-8859-1"])
def test_document_is_read_in_the_encoding_it_declares(encoding: str) -> None:
    text = (
        f'<?xml version="1.0" encoding="{encoding}"?>'
        "<Response><Dial><Client>zoë</Client></Dial></Response>"
    )
    assert parse_twiml(text.encode(encoding)).clients == (TwimlClient(Identity("zoë")),)


@pytest.mark.parametrize(
    ("document", "named"),
    [
        (response("<Say>hello</Say>"), "<Say>"),
        (response(f"<Dial>{BOB}</Dial><Hangup/>"), "<Hangup>"),
        (response(f"<Record/><Dial>{BOB}</Dial>"), "<Record>"),
        (response(f"<dial>{BOB}</dial>"), "<dial>"),
        (response(f"<Dial>{BOB}</Dial>" * 2), "one <Dial>"),
        (response(""), "one <Dial>"),
        (b"<Request/>", "<Request>"),
        (dial("<Number>+4930</Number>"), "<Number>"),
        (dial(BOB + "<Sip>sip:bob@example.org</Sip>"), "<Sip>"),
        (dial(""), "<Client>"),
        (dial("+4930123456"), "<Dial>"),
        (dial(f"hello {BOB}"), "<Dial>"),
        (dial(attributes='record="true"'), "'record'"),
        (dial(attributes='record="record-from-answer"'), "media server"),
        (response("<Say>hello</Say>"), "media server"),
        (dial(attributes='timeLimit="0"'), "timeLimit"),
        (dial(attributes='timeLimit="86401"'), "timeLimit"),
        (dial(attributes='action="/over"'), "action must be an http(s) URL"),
        (dial(attributes='action="ftp://backend.example/over"'), "action must be"),
        (dial(attributes='action="https:///over"'), "action must be"),
        (dial(attributes='action="https://backend.example/over" method="PUT"'), "method"),
        (dial('<Client statusCallback="/s">bob</Client>'), "statusCallback must be"),
        (
            dial(
                '<Client statusCallback="https://b.example" statusCallbackEvent="ring">b</Client>'
            ),
            "'ring'",
        ),
        (dial(attributes='callerid="alice"'), "'callerid'"),
        (dial(attributes='callerId="al ice"'), "al ice"),
        (dial(attributes='callerId="client:"'), "client:"),
        (dial(attributes='answerOnBridge="yes"'), "answerOnBridge"),
        (dial('<Client url="/x">bob</Client>'), "'url'"),
        (dial("<Client/>"), "identity"),
        (dial("<Client>  </Client>"), "identity"),
        (dial("<Client>bob and carol</Client>"), "bob and carol"),
        (dial("<Client><Identity/></Client>"), "identity"),
        (dial("<Client><Identity>a</Identity><Identity>b</Identity></Client>"), "one <Identity>"),
        (dial("<Client>bob<Identity>bob</Identity></Client>"), "<Client>"),
        (dial('<Client><Identity x="1">bob</Identity></Client>'), "'x'"),
        (dial("<Client><Identity>bob<b/></Identity></Client>"), "<Identity>"),
        (dial("<Client>bob<Prompt/></Client>"), "<Prompt>"),
        (dial('<Client>bob<Parameter name="a"/></Client>'), "<Parameter>"),
        (dial('<Client>bob<Parameter value="a"/></Client>'), "<Parameter>"),
        (dial('<Client>bob<Parameter name="a" value="1" x=""/></Client>'), "'x'"),
        (dial('<Client>bob<Parameter name="a b" value="1"/></Client>'), "a b"),
        (dial('<Client>bob<Parameter name="" value="1"/></Client>'), "empty"),
        (b"", "well-formed"),
        (b"  ", "well-formed"),
        (b"Dial bob", "well-formed"),
        (b"<Response><Dial>", "well-formed"),
        (b"<Response></Dial>", "well-formed"),
        (response(f"<Dial>{BOB}</Dial>") + b"<Response/>", "well-formed"),
        (response("<Dial>&bob;</Dial>"), "well-formed"),
        (b'<?xml version="1.0" encoding="klingon"?><Response/>', "UTF-8"),
        (b'<?xml version="1.0" encoding="idna"?><Response/>', "UTF-8"),
        (b'<?xml version="1.0" encoding="rot13"?><Response/>', "UTF-8"),
        (b"<Response>\xff\xfe</Response>", "well-formed"),
    ],
)
def test_anything_else_is_refused_and_named(document: bytes, named: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(named)):
        parse_twiml(document)


def test_attribute_of_the_response_is_refused_by_name() -> None:
    with pytest.raises(InvalidInput, match="'version'"):
        parse_twiml(f'<Response version="2"><Dial>{BOB}</Dial></Response>'.encode())


@pytest.mark.parametrize(
    "document",
    [
        response(f"hello<Dial>{BOB}</Dial>"),
        dial('<Client>bob<Parameter name="a" value="1">text</Parameter></Client>'),
        dial('<Client>bo<Parameter name="a" value="1"/>b</Client>'),
    ],
    ids=["in Response", "in Parameter", "around Parameter"],
)
def test_text_where_none_belongs_is_refused(document: bytes) -> None:
    with pytest.raises(InvalidInput, match="text"):
        parse_twiml(document)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "-1",
        "601",
        "1.5",
        "30s",
        " 30",
        "1e2",
        "\N{ARABIC-INDIC DIGIT FIVE}",
        "9" * 5000,
        "0000601",
        "0001000000",
        "000001" + "9" * 5000,
    ],
)
def test_timeout_outside_1_to_600_seconds_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="timeout") as refused:
        parse_twiml(dial(attributes=f'timeout="{text}"'))
    assert "600" in refused.value.detail
    assert len(refused.value.detail) < 200


def test_parameter_given_twice_is_refused_by_name() -> None:
    twice = '<Parameter name="floor" value="2"/>' * 2
    with pytest.raises(InvalidInput, match="'floor'"):
        parse_twiml(dial(f"<Client><Identity>bob</Identity>{twice}</Client>"))


def billion_laughs() -> str:
    names = [f"l{i}" for i in range(10)]
    grown = "".join(f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in pairwise(names))
    return f'<!DOCTYPE Response [<!ENTITY l0 "ha">{grown}]>'


@pytest.mark.parametrize(
    "doctype",
    [
        "<!DOCTYPE Response>",
        billion_laughs(),
        '<!DOCTYPE Response [<!ENTITY l9 SYSTEM "file:///etc/passwd">]>',
        '<!DOCTYPE Response SYSTEM "http://127.0.0.1:9/evil.dtd">',
        '<!DOCTYPE Response [<!ENTITY % p SYSTEM "http://127.0.0.1:9/p"> %p;]>',
    ],
    ids=["plain", "billion laughs", "external entity", "external DTD", "parameter entity"],
)
def test_document_with_a_doctype_is_refused(doctype: str) -> None:
    document = f"{doctype}<Response><Dial><Client>&l9;</Client></Dial></Response>".encode()
    with pytest.raises(InvalidInput, match="DOCTYPE"):
        parse_twiml(document)


def padded(size: int) -> bytes:
    document = dial()
    return document + b" " * (size - len(document))


def test_document_of_64_kib_is_read_and_one_byte_more_is_too_large() -> None:
    assert MAX_BYTES == 65_536
    assert parse_twiml(padded(65_536)).clients == (TwimlClient(Identity("bob")),)
    with pytest.raises(TooLarge, match=r"65537.*65536"):
        parse_twiml(padded(65_537))


@pytest.mark.parametrize("depth", [9, 9_000])
def test_deeply_nested_document_is_refused(depth: int) -> None:
    with pytest.raises(InvalidInput, match="nested"):
        parse_twiml(b"<a>" * depth + b"</a>" * depth)


def test_unclosed_deep_document_is_refused() -> None:
    with pytest.raises(InvalidInput, match="nested"):
        parse_twiml(b"<a>" * 20_000)


PIECES = [
    "<Response>",
    "</Response>",
    "<Dial>",
    "</Dial>",
    '<Dial timeout="',
    "<Client>",
    "</Client>",
    "<Identity>",
    "</Identity>",
    '<Parameter name="',
    '" value="',
    '"/>',
    '">',
    "bob",
    "alice",
    "600",
    "0",
    "&amp;",
    "&#0;",
    "&x;",
    "<!--",
    "-->",
    "<![CDATA[",
    "]]>",
    "<?pi ",
    "?>",
    "<!DOCTYPE a>",
    '<?xml version="1.0" encoding="',
    "utf-16",
    "hex",
    "\x00",
]
documents = (
    st.binary()
    | st.lists(st.sampled_from(PIECES), max_size=25).map(lambda parts: "".join(parts).encode())
    | st.text().map(lambda text: dial(f"<Client>{text}</Client>".encode(errors="replace").decode()))
    | st.text("0123456789", max_size=12).map(lambda text: dial(attributes=f'timeout="{text}"'))
)


def spoiled(document: bytes, at: int, by: bytes) -> bytes:
    at %= len(document) + 1
    return document[:at] + by + document[at + len(by) :]


FULL = dial(
    '<Client><Identity>bob</Identity><Parameter name="a" value="1"/></Client><Client>c</Client>',
    'callerId="client:alice" timeout="30" answerOnBridge="true"',
)


@given(documents | st.builds(spoiled, st.just(FULL), st.integers(0), st.binary(max_size=4)))
@example(FULL)
@example(b'<?xml version="1.0" encoding="unicode_escape"?><Response/>')
@example(b'<?xml version="1.0" encoding="punycode"?><Response/>')
@example(b'<?xml version="1.0" encoding="utf-7"?><Response/>')
def test_any_bytes_are_a_dial_or_a_refusal_and_nothing_else(document: bytes) -> None:
    try:
        parsed = parse_twiml(document)
    except (InvalidInput, TooLarge) as refusal:
        assert refusal.detail
    else:
        assert parsed.clients
        assert parsed.timeout_s is None or 1 <= parsed.timeout_s <= 600


BASE = "https://backend.example/twiml/voice?tenant=1"


def test_urls_are_relative_to_the_voice_url_and_events_stand_in_their_order() -> None:
    inside = (
        '<Client statusCallback="status?leg=1" statusCallbackMethod="GET"'
        ' statusCallbackEvent="completed initiated">bob</Client>'
        '<Client statusCallback="https://other.example/s">carol</Client>'
        '<Client statusCallbackEvent="ringing">dave</Client>'
    )
    read = parse_twiml(dial(inside, 'action="/over" method="GET" timeLimit="90"'), BASE)
    assert read.action == Callback("https://backend.example/over", CallbackMethod.GET)
    assert read.time_limit_s == 90
    bob, carol, dave = read.clients
    assert bob.status_callback == Callback(
        "https://backend.example/twiml/status?leg=1", CallbackMethod.GET
    )
    assert bob.events == (LegEvent.INITIATED, LegEvent.COMPLETED)
    assert carol.status_callback == Callback("https://other.example/s")
    assert carol.events == (LegEvent.COMPLETED,), "as Twilio does where the document is silent"
    assert (dave.status_callback, dave.events) == (None, ())


@pytest.mark.parametrize(
    ("document", "answer"),
    [
        (response("<Reject/>"), TwimlReject(RejectStatus.REJECTED)),
        (response('<Reject reason="busy"/>'), TwimlReject(RejectStatus.BUSY)),
        (response("<Hangup/>"), TwimlHangup()),
        (response(""), TwimlHangup()),
        (response(f"<Dial>{BOB}</Dial><Hangup/>"), TwimlDial((TwimlClient(Identity("bob")),))),
    ],
)
def test_backend_that_is_asked_may_dial_reject_and_hang_up(
    document: bytes, answer: TwimlAnswer
) -> None:
    assert parse_answer(document, BASE) == answer


@pytest.mark.parametrize(
    ("document", "named"),
    [
        (response(f"<Say>hello</Say><Dial>{BOB}</Dial>"), "<Say>"),
        (response(f"<Dial>{BOB}</Dial><Say>bye</Say>"), "<Say>"),
        (response("<Play>https://x.example/a.mp3</Play>"), "media server"),
        (response("<Redirect>/other</Redirect>"), "<Redirect>"),
        (response('<Reject reason="tired"/>'), "'tired'"),
        (response("<Reject><Say>no</Say></Reject>"), "<Say>"),
        (response("<Hangup>now</Hangup>"), "<Hangup>"),
        (b"", "well-formed"),
        (b"<html><body>502</body></html>", "<html>"),
    ],
)
def test_backend_that_answers_anything_else_is_refused_by_name(document: bytes, named: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(named)):
        parse_answer(document, BASE)


@pytest.mark.parametrize("document", [b"", b" \n", response(""), response("<Hangup/>")])
def test_answer_to_an_action_may_be_empty_or_a_hangup(document: bytes) -> None:
    check_nothing_more(document)


@pytest.mark.parametrize(
    ("document", "named"),
    [
        (response(f"<Dial>{BOB}</Dial>"), "<Dial>"),
        (response("<Hangup/><Say>bye</Say>"), "<Say>"),
        (b"OK", "well-formed"),
    ],
)
def test_answer_to_an_action_that_asks_for_more_is_refused_by_name(
    document: bytes, named: str
) -> None:
    with pytest.raises(InvalidInput, match=re.escape(named)):
        check_nothing_more(document)
